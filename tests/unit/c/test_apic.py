# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvApicLib against the wording of the manuals."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.host import HostLibrary

FLAT, CLUSTER = 0xFFFF_FFFF, 0x0FFF_FFFF
FIXED, LOWEST, SMI, REMOTE, NMI, INIT, STARTUP, EXTINT = range(8)
DESTINATION, SELF, ALL, OTHERS = range(4)

Id = tuple[int, int, int]
"""APIC id, LDR, DFR."""


def decode(hv: HostLibrary, icr: int, x2apic: bool) -> tuple[str, dict[str, int]]:
    ipi = hv.ffi.new("HV_IPI *")
    status = hv.name(hv.lib.HvApicDecodeIcr(icr, x2apic, ipi))
    names = ("DeliveryMode", "Vector", "Level", "Trigger", "Shorthand", "Logical", "Destination")
    return status, {name: int(getattr(ipi, name)) for name in names}


@given(icr=st.integers(0, 2**64 - 1), x2apic=st.booleans(), clean=st.booleans())
def test_fields_of_the_command(hv: HostLibrary, icr: int, x2apic: bool, clean: bool) -> None:
    reserved = [13, 16, 17, *range(20, 32)]
    if clean:
        icr &= ~sum(1 << bit for bit in reserved)
    bits = f"{icr:064b}"[::-1]

    def field(low: int, high: int) -> int:
        return int(bits[low : high + 1][::-1], 2)

    status, ipi = decode(hv, icr, x2apic)
    assert ipi == {
        "Vector": field(0, 7),
        "DeliveryMode": field(8, 10),
        "Logical": field(11, 11),
        "Level": field(14, 14),
        "Trigger": field(15, 15),
        "Shorthand": field(18, 19),
        "Destination": field(32, 63) if x2apic else field(56, 63),
    }
    bad = x2apic and any(bits[bit] == "1" for bit in reserved)
    assert status == ("INVALID_PARAMETER" if bad else "SUCCESS")


@pytest.mark.parametrize(
    ("icr", "init", "deassert", "sipi"),
    [
        (0x0000_C500, True, False, False),  # level-triggered assert, as operating systems send it
        (0x0000_4500, True, False, False),  # edge
        (0x0000_0500, True, False, False),  # edge, level bit 0: no de-assert without level trigger
        (0x0000_8500, False, True, False),
        (0x000C_8500, False, True, False),
        (0x000C_4500, True, False, False),
        (0x0000_4610, False, False, True),
        (0x000C_0699, False, False, True),
        (0x0000_4400, False, False, False),
        (0x0000_40FB, False, False, False),
    ],
)
def test_kinds(hv: HostLibrary, icr: int, init: bool, deassert: bool, sipi: bool) -> None:
    ipi = hv.ffi.new("HV_IPI *")
    hv.lib.HvApicDecodeIcr(icr, False, ipi)
    lib = hv.lib
    assert (bool(lib.HvIpiIsInit(ipi)), bool(lib.HvIpiIsInitDeassert(ipi)), bool(lib.HvIpiIsSipi(ipi))) == (
        init,
        deassert,
        sipi,
    )


def model(shorthand: int, logical: bool, destination: int, x2apic: bool, self: int, ids: list[Id]) -> set[int]:
    """Whom an IPI reaches (SDM "Determining IPI Destination", "IPI Delivery in x2APIC Mode"; APM2 16.6)."""
    everyone = set(range(len(ids)))
    if shorthand != DESTINATION:
        return {SELF: {self}, ALL: everyone, OTHERS: everyone - {self}}[shorthand]
    if destination == (0xFFFF_FFFF if x2apic else 0xFF):
        return everyone
    if not logical:
        return {index for index, (apic_id, _, _) in enumerate(ids) if apic_id == destination}
    reached = set()
    for index, (apic_id, ldr, dfr) in enumerate(ids):
        if x2apic:
            logical_id = apic_id // 16 % 65536 << 16 | 1 << apic_id % 16
            same_cluster = logical_id >> 16 == destination >> 16
            hit = same_cluster and logical_id & destination & 0xFFFF
        elif dfr >> 28 == 0b1111:
            hit = ldr >> 24 & destination
        elif dfr >> 28 == 0:
            hit = ldr >> 28 == destination >> 4 and ldr >> 24 & destination & 0b1111
        else:
            hit = False
        if hit:
            reached.add(index)
    return reached


def targets(hv: HostLibrary, ipi: dict[str, int], x2apic: bool, self: int, ids: list[Id]) -> set[int]:
    words = (len(ids) + 63) // 64
    bitmap = hv.ffi.new(f"UINT64[{words + 1}]", [2**64 - 1] * (words + 1))
    rows = hv.ffi.new("HV_APIC_ID[]", ids)
    command = hv.ffi.new("HV_IPI *", ipi)
    assert hv.name(hv.lib.HvApicTargets(command, x2apic, self, rows, len(ids), bitmap, words)) == "SUCCESS"
    assert bitmap[words] == 2**64 - 1
    value = sum(word << 64 * n for n, word in enumerate(list(bitmap)[:words]))
    reached = {n for n in range(64 * words) if value >> n & 1}
    single = {n for n in range(len(ids)) if hv.lib.HvApicIsTarget(command, x2apic, n == self, rows + n)}
    assert single == reached
    return reached


APIC_ID = st.one_of(st.integers(0, 40), st.integers(0, 254), st.integers(0, 2**32 - 2))
REGISTERS = st.tuples(
    st.one_of(st.sampled_from([1 << 24 + n for n in range(8)]), st.integers(0, 2**32 - 1)),
    st.sampled_from([FLAT, CLUSTER, 0x1FFF_FFFF]),
)


@given(data=st.data(), x2apic=st.booleans(), logical=st.booleans())
def test_targets(hv: HostLibrary, data: st.DataObject, x2apic: bool, logical: bool) -> None:
    numbers = data.draw(st.lists(APIC_ID, min_size=1, max_size=130, unique=True))
    ids = [(number, *data.draw(REGISTERS)) for number in numbers[:20]]
    ids += [(number, 1 << 24 + number % 8, FLAT) for number in numbers[20:]]
    self = data.draw(st.integers(0, len(ids) - 1))
    somebody = data.draw(st.sampled_from(ids))
    near = [0xFF, 0xFFFF_FFFF, somebody[0], somebody[1] >> 24, somebody[0] // 16 << 16 | 1 << somebody[0] % 16]
    destination = data.draw(st.one_of(st.sampled_from(near), st.integers(0, 255), st.integers(0, 2**32 - 1)))
    destination &= 0xFFFF_FFFF if x2apic else 0xFF
    shorthand = data.draw(st.sampled_from((DESTINATION,) * 5 + (SELF, ALL, OTHERS)))
    ipi = {"Shorthand": shorthand, "Logical": int(logical), "Destination": destination, "DeliveryMode": INIT}
    wanted = model(shorthand, logical, destination, x2apic, self, ids)
    assert targets(hv, ipi, x2apic, self, ids) == wanted


@pytest.mark.parametrize("dfr", [FLAT, CLUSTER])
def test_every_logical_destination_of_the_xapic(hv: HostLibrary, dfr: int) -> None:
    ids = [(n, ldr << 24, dfr) for n, ldr in enumerate(range(256))]
    for destination in range(256):
        ipi = {"Logical": 1, "Destination": destination}
        assert targets(hv, ipi, False, 0, ids) == model(DESTINATION, True, destination, False, 0, ids)


def test_every_id_in_the_x2apic_clusters(hv: HostLibrary) -> None:
    ids = [(n, 0, 0) for n in (*range(0, 300, 7), 0xFFFF0, 0xFFFFF, 0x100000)]
    for cluster, mask in itertools.product((0, 1, 2, 18, 0xFFFF), (0, 1, 2, 0x8000, 0xFFFF, 0x1234)):
        ipi = {"Logical": 1, "Destination": cluster << 16 | mask}
        assert targets(hv, ipi, True, 0, ids) == model(DESTINATION, True, cluster << 16 | mask, True, 0, ids)


def test_bad_parameters(hv: HostLibrary) -> None:
    ffi, lib = hv.ffi, hv.lib
    ipi, rows, bitmap = ffi.new("HV_IPI *"), ffi.new("HV_APIC_ID[65]"), ffi.new("UINT64[2]")

    def call(*arguments: object) -> str:
        return hv.name(lib.HvApicTargets(*arguments))

    assert call(ipi, False, 65, rows, 65, bitmap, 2) == "INVALID_PARAMETER"
    assert call(ipi, False, 0, rows, 0, bitmap, 2) == "INVALID_PARAMETER"
    assert call(ffi.NULL, False, 0, rows, 65, bitmap, 2) == "INVALID_PARAMETER"
    assert call(ipi, False, 0, ffi.NULL, 65, bitmap, 2) == "INVALID_PARAMETER"
    assert call(ipi, False, 0, rows, 65, ffi.NULL, 2) == "INVALID_PARAMETER"
    assert call(ipi, False, 0, rows, 65, bitmap, 1) == "BUFFER_TOO_SMALL"
    assert call(ipi, False, 0, rows, 65, bitmap, 2) == "SUCCESS"


def test_registers_of_the_x2apic(hv: HostLibrary) -> None:
    """SDM table "Local APIC Register Address Map Supported by x2APIC"."""
    wanted = {0x802, 0x803, 0x808, 0x80A, 0x80B, 0x80D, 0x80F, *range(0x810, 0x829), 0x82F, 0x830}
    wanted |= {0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x839, 0x83E, 0x83F}
    found = {offset: hv.lib.HvApicRegisterMsr(offset) for offset in range(0x1100)}
    assert {msr for msr in found.values() if msr} == wanted
    assert all(msr == 0x800 + offset / 16 for offset, msr in found.items() if msr)
    assert found[hv.constants["HV_APIC_REG_ICR_LOW"]] == hv.constants["HV_X2APIC_MSR_ICR"]
    assert found[hv.constants["HV_APIC_REG_SELF_IPI"]] == hv.constants["HV_X2APIC_MSR_SELF_IPI"]

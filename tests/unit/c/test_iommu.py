# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvIommuLib: tables of ACPI that may hold anything, and tables of an IOMMU, walked as the manuals say."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.host import HostLibrary

PAGE = 4096
GIB = 1 << 30
ADDRESS = (1 << 52) - PAGE
UNITS_MAX = 16
HEADER = 48
POOL_PAGES = 64
KINDS = ["HvIommuVtd", "HvIommuAmdVi"]
BASES = st.integers(1, (1 << 40) - 1).map(lambda number: number * PAGE)


def find(hv: HostLibrary, kind: str, table: bytes) -> tuple[str, list[int]]:
    units, count = hv.ffi.new("UINT64[]", UNITS_MAX), hv.ffi.new("UINT32 *")
    # A page of its own at the end of what may be read: a look behind the table is a fault.
    memory = mmap.mmap(-1, 2 * PAGE)
    try:
        place = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(place) + PAGE - len(table)
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + len(table)), PAGE, 0) == 0
        memory[PAGE - len(table) : PAGE] = table
        status = hv.name(
            hv.lib.HvIommuFind(getattr(hv.lib, kind), hv.ffi.cast("UINT8 *", start), len(table), units, count)
        )
        del place
    finally:
        memory.close()
    return status, list(units[0 : count[0]])


def structure(kind: str, number: int, base: int, length: int = 24) -> bytes:
    head = (
        struct.pack("<HHHH", number, length, 0, 0)
        if kind == "HvIommuVtd"
        else struct.pack("<BBHHH", number, 0, length, 2, 0x40)
    )
    return (head + struct.pack("<Q", base)).ljust(length, b"\0")[:length]


UNIT = {"HvIommuVtd": [0], "HvIommuAmdVi": [0x10, 0x11, 0x40]}
OTHER = {"HvIommuVtd": [1, 2, 3, 4, 5, 6], "HvIommuAmdVi": [0x20, 0x21, 0x22]}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_each_unit_is_found_once(hv: HostLibrary, kind: str, data: st.DataObject) -> None:
    bases = data.draw(st.lists(BASES, max_size=UNITS_MAX, unique=True))
    items = [structure(kind, number, base) for base in bases for number in UNIT[kind]]
    items += [structure(kind, number, 0, data.draw(st.integers(4, 40))) for number in OTHER[kind]]
    table = bytes(HEADER) + b"".join(data.draw(st.permutations(items)))
    status, found = find(hv, kind, table)
    assert sorted(found) == sorted(bases)
    assert status == ("SUCCESS" if bases else "NOT_FOUND")


@pytest.mark.parametrize("kind", KINDS)
def test_more_units_than_there_is_room_for(hv: HostLibrary, kind: str) -> None:
    table = bytes(HEADER) + b"".join(structure(kind, UNIT[kind][0], (1 + n) * PAGE) for n in range(UNITS_MAX + 1))
    assert find(hv, kind, table)[0] == "BUFFER_TOO_SMALL"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "table",
    [
        b"",
        bytes(HEADER - 1),
        bytes(HEADER + 3),
        bytes(HEADER) + struct.pack("<HH", 1, 0),
        bytes(HEADER) + struct.pack("<HH", 1, 3),
        bytes(HEADER) + struct.pack("<HH", 1, 5),
    ],
    ids=["empty", "header", "structure", "length-0", "length-3", "length-5"],
)
def test_a_table_that_is_cut_off_is_refused(hv: HostLibrary, kind: str, table: bytes) -> None:
    assert find(hv, kind, table) == ("COMPROMISED_DATA", [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("base", "length"), [(0, 24), (0x1001, 24), (1 << 52, 24), (PAGE, 15)])
def test_a_unit_that_cannot_be_is_refused(hv: HostLibrary, kind: str, base: int, length: int) -> None:
    assert find(hv, kind, bytes(HEADER) + structure(kind, UNIT[kind][0], base, length))[0] == "COMPROMISED_DATA"


@pytest.mark.parametrize("kind", KINDS)
@given(table=st.binary(max_size=400), start=st.sampled_from([b"", bytes(HEADER)]))
def test_any_bytes_are_read_and_nothing_else(hv: HostLibrary, kind: str, table: bytes, start: bytes) -> None:
    status, found = find(hv, kind, start + table)
    assert status in ("SUCCESS", "NOT_FOUND", "BUFFER_TOO_SMALL", "COMPROMISED_DATA")
    assert len(found) <= UNITS_MAX and all(base and base & ~ADDRESS == 0 for base in found)


class Pages:
    """A pool of pages, and what is in them."""

    def __init__(self, hv: HostLibrary, count: int) -> None:
        self.hv = hv
        self.memory = hv.ffi.new("UINT8[]", (count + 1) * PAGE)
        self.base = -(-int(hv.ffi.cast("uintptr_t", self.memory)) // PAGE) * PAGE
        self.pool = hv.ffi.new("HV_PAGE_POOL *")
        assert hv.name(hv.lib.HvPagePoolInit(self.pool, self.base, count)) == "SUCCESS"

    def words(self, address: int, count: int = 512) -> tuple[int, ...]:
        return tuple(self.hv.ffi.cast("UINT64 *", address)[0:count])


def translate(pages: Pages, kind: str, table: int, level: int, address: int) -> int | None:
    """Where a device's access goes, read and write, by VT-d 9.8 or AMD-Vi 2.2.3; None: refused."""
    while True:
        entry = pages.words(table & ADDRESS)[address >> 12 + 9 * (level - 1) & 511]
        size = 1 << 12 + 9 * (level - 1)
        if kind == "HvIommuVtd":
            if not entry & 3:
                return None
            assert entry & 3 == 3 and not entry & ~(ADDRESS | 0x83)
            leaf = level == 1 or bool(entry & 0x80)
        else:
            if not entry & 1:
                assert entry == 0
                return None
            assert entry >> 61 & 3 == 3 and not entry & ~(ADDRESS | 0xE01 | 3 << 61)
            following = entry >> 9 & 7
            leaf = following == 0
            assert leaf or following == level - 1
        if leaf:
            assert level <= 3 and (entry & ADDRESS) % size == 0
            return int(entry & ADDRESS) + address % size
        table, level = entry, level - 1


def probes(end: int, base: int, stop: int) -> Iterator[int]:
    for edge in (0, base, stop, end, base & -(1 << 21), stop & -(1 << 21), base & -GIB, stop & -GIB):
        for near in (-PAGE, -1, 0, 1, PAGE):
            if 0 <= edge + near < 1 << 48:
                yield edge + near


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), large=st.booleans())
def test_all_is_mapped_to_itself_but_the_hole(hv: HostLibrary, kind: str, data: st.DataObject, large: bool) -> None:
    end = data.draw(st.integers(1, 20)) * GIB
    base = data.draw(st.integers(0, end // PAGE - 1)) * PAGE
    stop = base + data.draw(st.one_of(st.integers(1, 2000), st.integers(1, end // PAGE))) * PAGE
    stop = min(stop, end)
    pages = Pages(hv, POOL_PAGES)
    root = hv.lib.HvIommuMap(getattr(hv.lib, kind), pages.pool, end, base, stop, large)
    assert root != 0 and pages.pool.Used <= hv.lib.HvIommuMapPages(end, large)
    others = data.draw(st.lists(st.integers(0, end + GIB), max_size=20))
    for address in (*probes(end, base, stop), *others):
        expected = None if address >= end or base <= address < stop else address
        assert translate(pages, kind, root, 4, address) == expected, hex(address)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", range(6))
def test_without_enough_pages_there_is_no_table(hv: HostLibrary, kind: str, count: int) -> None:
    pages = Pages(hv, count)
    assert hv.lib.HvIommuMap(getattr(hv.lib, kind), pages.pool, 4 * GIB, 3 << 20, (3 << 20) + PAGE, False) == 0


@pytest.mark.parametrize("levels", [3, 4])
def test_every_device_of_vt_d_has_the_same_table(hv: HostLibrary, levels: int) -> None:
    pages = Pages(hv, POOL_PAGES)
    table = hv.lib.HvIommuMap(hv.lib.HvIommuVtd, pages.pool, 4 * GIB, GIB, 2 * GIB, False)
    root, context = (int(hv.ffi.cast("uintptr_t", hv.lib.HvPagePoolTake(pages.pool))) for _ in range(2))
    hv.lib.HvIommuVtdDevices(hv.ffi.cast("UINT64 *", root), hv.ffi.cast("UINT64 *", context), table, levels)
    assert pages.words(root) == (context | 1, 0) * 256
    top, high = pages.words(context)[:2]
    assert pages.words(context) == (top, high) * 256
    assert top & 1 and high == 1 << 8 | levels - 2
    assert translate(pages, "HvIommuVtd", top, levels, 3 * GIB) == 3 * GIB
    assert translate(pages, "HvIommuVtd", top, levels, GIB) is None


def test_every_device_of_amd_vi_has_the_same_table(hv: HostLibrary) -> None:
    pages = Pages(hv, 512 + POOL_PAGES)
    table = hv.lib.HvIommuMap(hv.lib.HvIommuAmdVi, pages.pool, 4 * GIB, GIB, 2 * GIB, True)
    devices = pages.base + POOL_PAGES * PAGE
    hv.lib.HvIommuAmdViDevices(hv.ffi.cast("UINT64 *", devices), table)
    first = pages.words(devices, 4)
    assert pages.words(devices, 4 * 65536) == first * 65536
    # V, TV, mode 4, IR, IW; domain 1, SysMgt 01b; INIT, ExtInt, NMI, LINT0, LINT1 pass and no table of interrupts.
    assert first == (table | 3 | 4 << 9 | 3 << 61, 1 | 1 << 40, 7 << 56 | 3 << 62, 0)
    assert translate(pages, "HvIommuAmdVi", first[0], first[0] >> 9 & 7, 3 * GIB) == 3 * GIB
    assert translate(pages, "HvIommuAmdVi", first[0], 4, GIB) is None

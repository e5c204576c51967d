# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvMemoryTypeLib against a model that looks at one page at a time."""

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.c.host import HostLibrary

PAGE = 1 << 12
UC, WC, WT, WP, WB = 0, 1, 4, 5, 6
TYPES = (UC, WC, WT, WP, WB)
ENABLE, FIXED_ENABLE, VALID = 1 << 11, 1 << 10, 1 << 11
WINDOW = 4 << 20
MERGED = 256


@dataclass
class Mtrrs:
    """The registers."""

    def_type: int
    fixed: list[int] = field(default_factory=lambda: [0] * 11)
    variable: list[tuple[int, int]] = field(default_factory=list)


Answer = tuple[int, bool]
"""Type, and whether the manuals define it."""


def model(mtrrs: Mtrrs, address: int) -> Answer:
    """The type of one page (SDM 11.11.4.1, "MTRR Precedences")."""
    if not mtrrs.def_type & ENABLE:
        return UC, True
    if address < 1 << 20 and mtrrs.def_type & FIXED_ENABLE:
        # The 88 ranges in the order of the table "Address Mapping for Fixed-Range MTRRs".
        sizes = [64 << 10] * 8 + [16 << 10] * 16 + [4 << 10] * 64
        start = 0
        for number, size in enumerate(sizes):
            if start <= address < start + size:
                kind = mtrrs.fixed[number // 8].to_bytes(8, "little")[number % 8] & 7
                return (kind, True) if kind in TYPES else (UC, False)
            start += size
    matching = [base & 0xFF for base, mask in mtrrs.variable if mask & VALID and matches(address, base, mask)]
    kinds = set(matching) or {mtrrs.def_type & 0xFF}
    if not kinds <= set(TYPES):
        return UC, False
    if len(kinds) == 1:
        return kinds.pop(), True
    if UC in kinds:
        return UC, True
    return (WT, True) if kinds == {WT, WB} else (UC, False)


def matches(address: int, base: int, mask: int) -> bool:
    """Whether a variable range covers a page."""
    return address >> 12 & mask >> 12 == base >> 12 & mask >> 12


def get(hv: HostLibrary, mtrrs: Mtrrs, bits: int, address: int) -> tuple[Answer, int]:
    """What the library says."""
    registers = hv.ffi.new(
        "HV_MTRRS *",
        {
            "DefType": mtrrs.def_type,
            "Fixed": mtrrs.fixed,
            "VariableCount": len(mtrrs.variable),
            "Base": [base for base, _ in mtrrs.variable],
            "Mask": [mask for _, mask in mtrrs.variable],
        },
    )
    kind, end = hv.ffi.new("UINT8 *"), hv.ffi.new("UINT64 *")
    status = hv.name(hv.lib.HvMemoryTypeGet(registers, bits, address, kind, end))
    assert status in ("SUCCESS", "COMPROMISED_DATA")
    return (kind[0], status == "SUCCESS"), end[0]


KIND = st.one_of(st.sampled_from(TYPES), st.sampled_from(TYPES), st.sampled_from(TYPES), st.sampled_from((2, 3, 7)))
DEF_TYPE = st.builds(
    lambda kind, flags: kind | flags,
    KIND,
    st.sampled_from((0, FIXED_ENABLE, ENABLE, ENABLE | FIXED_ENABLE, ENABLE | FIXED_ENABLE, ENABLE)),
)
FIXED = st.one_of(
    st.sampled_from([kind * 0x0101_0101_0101_0101 for kind in TYPES]),
    st.lists(st.one_of(KIND, st.sampled_from((0x1E, 0x18))), min_size=8, max_size=8).map(
        lambda kinds: int.from_bytes(bytes(kinds), "little")
    ),
)
FIXED_ALL = st.one_of(st.just([0x0606_0606_0606_0606] * 11), st.lists(FIXED, min_size=11, max_size=11))


@st.composite
def variables(draw: st.DrawFn, bits: int, low: int, high: int) -> tuple[int, int]:
    """A variable range of 2^low to 2^high bytes, now and then with a mask that has gaps."""
    size = draw(st.integers(low, high))
    mask = (1 << bits) - (1 << size)
    if draw(st.integers(0, 3)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            mask &= ~(1 << draw(st.integers(low, min(high + 1, bits - 1))))
    base = draw(st.integers(0, (1 << high + 1 - low) - 1)) << low
    valid = draw(st.sampled_from((VALID, VALID, VALID, VALID, 0)))
    return base | draw(KIND), mask | valid


@settings(max_examples=200, deadline=None)
@given(def_type=DEF_TYPE, fixed=FIXED_ALL, variable=st.lists(variables(36, 12, 21), max_size=6), bits=st.just(36))
def test_every_page_of_a_window(
    hv: HostLibrary, def_type: int, fixed: list[int], variable: list[tuple[int, int]], bits: int
) -> None:
    """All ranges lie in a window (below 4 MiB), so that each page of it can be looked at."""
    mtrrs = Mtrrs(def_type, fixed, variable)
    answers = [model(mtrrs, address) for address in range(0, WINDOW, PAGE)]
    ends = [0] * len(answers)
    runs = [0] * len(answers)
    end = steps = 0
    for page in reversed(range(len(answers))):
        if page == len(answers) - 1 or answers[page] != answers[page + 1]:
            end, steps = (page + 1) * PAGE, 0
        ends[page], runs[page] = end, steps
        steps += 1
    for page, answer in enumerate(answers):
        address = page * PAGE
        assert page % 16 or model(mtrrs, address + 0xFFF) == answer
        found, end = get(hv, mtrrs, bits, address)
        assert found == answer, hex(address)
        if ends[page] < WINDOW and runs[page] <= MERGED:
            assert end == ends[page], hex(address)
        elif ends[page] < WINDOW:
            assert address + MERGED * PAGE < end <= ends[page], hex(address)
        else:
            assert end > address and (end >= WINDOW or end - address > MERGED * PAGE), hex(address)


@settings(max_examples=600, deadline=None)
@given(
    def_type=DEF_TYPE,
    fixed=FIXED_ALL,
    bits=st.sampled_from((32, 36, 39, 46, 52)),
    data=st.data(),
)
def test_large_ranges(hv: HostLibrary, def_type: int, fixed: list[int], bits: int, data: st.DataObject) -> None:
    """Whatever the registers say: right at both ends and in between, and it changes where the library says."""
    variable = data.draw(st.lists(variables(bits, 12, bits - 1), max_size=8))
    mtrrs = Mtrrs(def_type, fixed, variable)
    edges = [1 << 20, *(base & ~0xFFF for base, _ in variable)]
    edges += [(base & ~0xFFF) + (mask & -(mask & ~0xFFF) & ~0xFFF) for base, mask in variable]
    address = data.draw(st.one_of(st.sampled_from(edges), st.integers(0, (1 << bits) - 1)))
    address = max(0, min(address + data.draw(st.sampled_from((0, 0, -1, -PAGE, 5))), (1 << bits) - 1))
    answer, end = get(hv, mtrrs, bits, address)
    assert answer == model(mtrrs, address)
    assert address < end <= 1 << bits and end % PAGE == 0
    inside = [end - 1, end - PAGE, *edges, *(edge - 1 for edge in edges)]
    inside += [address + (end - address) * part // 97 for part in range(97)]
    assert all(model(mtrrs, point) == answer for point in inside if address <= point < end)
    if end < 1 << bits and all(contiguous(mask, bits) for _, mask in variable):
        assert model(mtrrs, end) != answer


def contiguous(mask: int, bits: int) -> bool:
    """Whether a mask has no gaps: then there are few boundaries, and the end that is found is the true one."""
    mask &= ~0xFFF
    return mask + (mask & -mask) == 1 << bits


@given(order=st.permutations([UC, WC, WT, WP, WB, 3]), count=st.integers(1, 6))
@example(order=[WT, WB, UC, WC, WP, 3], count=2)
@example(order=[WC, WP, UC, WT, WB, 3], count=3)
def test_overlaps_do_not_depend_on_the_order(hv: HostLibrary, order: list[int], count: int) -> None:
    variable = [(kind, (1 << 36) - (1 << 30) | VALID) for kind in order[:count]]
    mtrrs = Mtrrs(ENABLE | WB, variable=variable)
    assert get(hv, mtrrs, 36, 0)[0] == model(mtrrs, 0)


def test_a_machine_with_a_hole_below_4_gib(hv: HostLibrary) -> None:
    """WB by default, UC from 3 to 4 GiB, VGA window UC by fixed ranges: as firmware sets it up."""
    fixed = [0x0606_0606_0606_0606] * 11
    fixed[2] = 0
    mtrrs = Mtrrs(ENABLE | FIXED_ENABLE | WB, fixed, [(3 << 30 | UC, (1 << 40) - (1 << 30) | VALID)])
    assert get(hv, mtrrs, 40, 0) == ((WB, True), 0xA0000)
    assert get(hv, mtrrs, 40, 0xA0000) == ((UC, True), 0xC0000)
    assert get(hv, mtrrs, 40, 0xC0123) == ((WB, True), 3 << 30)
    assert get(hv, mtrrs, 40, 3 << 30) == ((UC, True), 4 << 30)
    assert get(hv, mtrrs, 40, 4 << 30) == ((WB, True), 1 << 40)
    assert get(hv, Mtrrs(WB), 40, 5) == ((UC, True), 1 << 40)


def test_bad_parameters(hv: HostLibrary) -> None:
    ffi, lib = hv.ffi, hv.lib
    registers, kind, end = ffi.new("HV_MTRRS *"), ffi.new("UINT8 *"), ffi.new("UINT64 *")
    bad = "INVALID_PARAMETER"
    assert hv.name(lib.HvMemoryTypeGet(registers, 36, 0, kind, end)) == "SUCCESS"
    assert hv.name(lib.HvMemoryTypeGet(ffi.NULL, 36, 0, kind, end)) == bad
    assert hv.name(lib.HvMemoryTypeGet(registers, 36, 0, ffi.NULL, end)) == bad
    assert hv.name(lib.HvMemoryTypeGet(registers, 36, 0, kind, ffi.NULL)) == bad
    assert hv.name(lib.HvMemoryTypeGet(registers, 31, 0, kind, end)) == bad
    assert hv.name(lib.HvMemoryTypeGet(registers, 53, 0, kind, end)) == bad
    assert hv.name(lib.HvMemoryTypeGet(registers, 36, 1 << 36, kind, end)) == bad
    registers.VariableCount = hv.constants["HV_MTRR_VARIABLE_MAX"] + 1
    assert hv.name(lib.HvMemoryTypeGet(registers, 36, 0, kind, end)) == bad

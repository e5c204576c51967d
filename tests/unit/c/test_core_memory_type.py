# SPDX-License-Identifier: BSD-2-Clause-Patent
"""EPT after any sequence of MTRR changes, against a model that looks at one page at a time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.c.core_host import Core
from tests.unit.c.test_core_control import set_msr
from tests.unit.c.test_memory_type import DEF_TYPE, ENABLE, FIXED_ALL, FIXED_ENABLE, UC, VALID, WB, Mtrrs, model

PAGE, MIB, GIB = 1 << 12, 1 << 20, 1 << 30
BITS = 36
WINDOW = 8 * MIB
HOST, HOST_BYTES = 6 * MIB, 64 << 10
READ, ALL = 1, 7
CAP, DEF, BASE, MASK = 0xFE, 0x2FF, 0x200, 0x201
FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
VARIABLES = 4
PLENTY = 400
HOST_LEAF = (WB, READ | 4)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    """A variable range of 4 KiB to 4 MiB somewhere in the window."""
    size = draw(st.integers(12, 22))
    base = draw(st.integers(0, (WINDOW >> size) - 1)) << size
    kind = draw(st.sampled_from((0, 1, 4, 5, 6)))
    return base | kind, (1 << BITS) - (1 << size) | draw(st.sampled_from((VALID, VALID, VALID, 0)))


PROGRAM = st.builds(Mtrrs, DEF_TYPE, FIXED_ALL, st.lists(ranges(), min_size=VARIABLES, max_size=VARIABLES))


def machine(core: Core, pages: int) -> None:
    """Two processors under EPT with 2 GiB of write-back memory, a few pages of it the host's."""
    fake = core.reset(2)
    host = fake.Host
    row = fake.Leaf[fake.LeafCount]
    row.Leaf, row.SubLeaf, row.Registers = 1, 0, [0, 0, 0, 1 << 12]
    fake.LeafCount += 1
    variables = [number for index in range(VARIABLES) for number in (BASE + 2 * index, MASK + 2 * index)]
    for number in (CAP, DEF, *FIXED, *variables):
        row = fake.Msr[fake.MsrCount]
        row.Msr, row.Value, row.Refused = number, 0, 0
        fake.MsrCount += 1
        if number in (CAP, DEF):
            row.Value = {CAP: VARIABLES | 1 << 8, DEF: ENABLE | WB}[number]
    host.AddressBits = BITS
    host.Base, host.Bytes = HOST, HOST_BYTES
    core.lib.HvCoreReadMtrrs(core.ffi.addressof(host, "Mtrrs"))
    pool = core.ffi.addressof(host, "Pool")
    nested = core.ffi.addressof(host.Root, "Nested")
    assert core.lib.HvPagePoolInit(pool, core.lib.HvFakeRam(pages << 12), pages) == 0
    assert core.lib.HvPagingInit(nested, core.lib.HvPagingEpt4, pool, 3, BITS) == 0
    root = core.ffi.addressof(host, "Root")
    assert core.lib.HvCoreMapIdentity(core.ffi.addressof(fake, "Host"), root, 0, 2 * GIB) == 0
    assert core.lib.HvPagingProtect(nested, HOST, HOST_BYTES, READ | 4 | WB << 8) == 0


def apply(core: Core, mtrrs: Mtrrs) -> None:
    """As an operating system does it: off, all of them, on."""
    set_msr(core, DEF, mtrrs.def_type & ~ENABLE)
    for number, value in zip(FIXED, mtrrs.fixed, strict=True):
        set_msr(core, number, value)
    for index, (base, mask) in enumerate(mtrrs.variable):
        set_msr(core, BASE + 2 * index, base)
        set_msr(core, MASK + 2 * index, mask)
    set_msr(core, DEF, mtrrs.def_type)
    fake = core.lib.gFake
    fake.MsrWrites = fake.Nmis = fake.Lines = 0


def types(core: Core) -> list[tuple[int, int]]:
    """Type and rights of each page of the window, and of the last page that is mapped."""
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    found = []
    for address in (*range(0, WINDOW, PAGE), 2 * GIB - PAGE):
        assert core.lib.HvPagingQuery(nested, address, leaf) == 0 and leaf.Present
        assert leaf.HostAddress == address
        found.append((int(leaf.Attributes) >> 8 & 7, int(leaf.Attributes) & 7))
    return found


def expected(mtrrs: Mtrrs) -> list[tuple[int, int]]:
    return [
        HOST_LEAF if HOST <= address < HOST + HOST_BYTES else (model(mtrrs, address)[0], ALL)
        for address in (*range(0, WINDOW, PAGE), 2 * GIB - PAGE)
    ]


def assert_right_or_uncacheable(core: Core, mtrrs: Mtrrs) -> None:
    pairs = list(zip(types(core), expected(mtrrs), strict=True))
    assert all(got == want or (got == (UC, ALL) and want != HOST_LEAF) for got, want in pairs)


@settings(max_examples=60, deadline=None)
@given(programs=st.lists(PROGRAM, min_size=1, max_size=4))
def test_every_page_has_the_type_of_the_last_program_that_was_on(core: Core, programs: list[Mtrrs]) -> None:
    machine(core, PLENTY)
    wanted = expected(Mtrrs(ENABLE | WB, variable=[]))
    for mtrrs in programs:
        apply(core, mtrrs)
        if mtrrs.def_type & ENABLE:
            wanted = expected(mtrrs)
        assert types(core) == wanted
    assert core.lib.gFake.Host.Root.Lock == 0


@settings(max_examples=60, deadline=None)
@given(programs=st.lists(PROGRAM, min_size=1, max_size=4), pages=st.integers(4, 7))
def test_without_pages_to_split_a_leaf_is_right_or_uncacheable(core: Core, programs: list[Mtrrs], pages: int) -> None:
    machine(core, pages)
    for mtrrs in programs:
        before = int(core.lib.gFake.Host.Pool.Used)
        apply(core, mtrrs)
        assert before <= core.lib.gFake.Host.Pool.Used <= pages
        if mtrrs.def_type & ENABLE:
            assert_right_or_uncacheable(core, mtrrs)


def test_the_tables_recover_when_the_ranges_are_gone(core: Core) -> None:
    machine(core, 6)
    odd = [(index * 2 * MIB | PAGE | UC, (1 << BITS) - PAGE | VALID) for index in range(VARIABLES)]
    apply(core, Mtrrs(ENABLE | WB, variable=odd))
    assert types(core) != expected(Mtrrs(ENABLE | WB, variable=odd))
    assert_right_or_uncacheable(core, Mtrrs(ENABLE | WB, variable=odd))
    assert core.lib.gFake.Cpu[0].Logged[core.lib.HvLogEventMapFailed] > 0
    apply(core, Mtrrs(ENABLE | WB, variable=[(0, 0)] * VARIABLES))
    assert types(core) == expected(Mtrrs(ENABLE | WB, variable=[]))


def test_the_first_two_mib_are_small_pages_where_the_fixed_ranges_differ(core: Core) -> None:
    machine(core, PLENTY)
    fixed = [0x0606_0606_0606_0606] * 11
    fixed[2] = 0
    apply(core, Mtrrs(ENABLE | FIXED_ENABLE | WB, fixed, [(0, 0)] * VARIABLES))
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    for address in range(0, 2 * MIB, PAGE):
        assert core.lib.HvPagingQuery(nested, address, leaf) == 0 and leaf.Level == 1
        assert int(leaf.Attributes) >> 8 & 7 == (UC if 0xA0000 <= address < 0xC0000 else WB)


@pytest.mark.parametrize("unit", [WINDOW - 4 * PAGE, GIB], ids=["behind the host", "far behind it"])
def test_registers_of_an_iommu_do_not_send_the_walk_back(core: Core, unit: int) -> None:
    """They are host memory that is not in the host's block."""
    machine(core, PLENTY)
    fake = core.lib.gFake
    fake.Host.Iommu[0].Base, fake.Host.Iommu[0].End = unit, unit + 4 * PAGE
    fake.Host.IommuCount = 1
    set_msr(core, DEF, ENABLE | UC)
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(fake.Host.Root, "Nested")
    for address, kind in ((unit - 1, UC), (unit, WB), (unit + 4 * PAGE - 1, WB), (unit + 4 * PAGE, UC)):
        core.lib.HvPagingQuery(nested, address, leaf)
        assert int(leaf.Attributes) >> 8 & 7 == kind, hex(address)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""EPT after any sequence of MTRR changes, against a model that looks at one page at a time."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.c.core_host import Core
from tests.unit.c.test_core_control import set_msr
from tests.unit.c.test_memory_type import DEF_TYPE, ENABLE, FIXED_ALL, FIXED_ENABLE, UC, VALID, WB, WT, Mtrrs, model

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


#
# A default type that comes unseen (HV_BACKEND_OPS.PassDefType).
#

CD = 1 << 30
FIRMWARE = [0x0606_0606_0606_0606] * 2 + [0] * 9
"""The fixed ranges: 640 KiB of memory, the rest UC."""
DEVICE = 4 * MIB
"""From here to the host's block there is no memory: a device."""
RAM = ((0, 0xA0000), (MIB, DEVICE), (HOST, 2 * GIB))


WINDOWS = (2 * GIB | UC, (1 << BITS) - 2 * GIB | VALID)
"""What firmware with a default type of WB says of the upper half below 4 GiB."""


def vmx(core: Core, kind: int, variable: tuple[tuple[int, int], ...] = (WINDOWS,)) -> None:
    """A machine as firmware leaves it, with this default type, whose guest has turned its caches off."""
    machine(core, PLENTY)
    fake = core.reset(2, virtual_nmis=True)
    row = fake.Leaf[fake.LeafCount]
    row.Leaf, row.SubLeaf, row.Registers = 1, 0, [0, 0, 0, 1 << 12]
    fake.LeafCount += 1
    ranges = [*variable, *[(0, 0)] * (VARIABLES - len(variable))]
    values = {CAP: VARIABLES | 1 << 8, DEF: ENABLE | FIXED_ENABLE | kind, **dict(zip(FIXED, FIRMWARE, strict=True))}
    for index, (base, mask) in enumerate(ranges):
        values[BASE + 2 * index], values[MASK + 2 * index] = base, mask
    for number, value in values.items():
        row = fake.Msr[fake.MsrCount]
        row.Msr, row.Value, row.Refused = number, value, 0
        fake.MsrCount += 1
    host = fake.Host
    host.AddressBits = BITS
    host.Base, host.Bytes = HOST, HOST_BYTES
    for index, (base, end) in enumerate(RAM):
        host.Ram[index].Base, host.Ram[index].End = base, end
    host.RamCount = len(RAM)
    fake.Fake[0].State.Cr0 |= CD
    core.lib.HvCoreReadMtrrs(core.ffi.addressof(host, "Mtrrs"))
    build(core, core.lib.HvPagingEpt4)


def build(core: Core, form: int) -> None:
    """The root's tables as HvDxe builds them, of 4 GiB."""
    host = core.lib.gFake.Host
    pool, root = core.ffi.addressof(host, "Pool"), core.ffi.addressof(host, "Root")
    nested = core.ffi.addressof(host.Root, "Nested")
    assert core.lib.HvPagePoolInit(pool, core.lib.HvFakeRam(PLENTY << 12), PLENTY) == 0
    assert core.lib.HvPagingInit(nested, form, pool, 3, BITS) == 0
    assert core.lib.HvCoreMapStart(core.ffi.addressof(core.lib.gFake, "Host"), root, 4 * GIB) == 0
    assert core.lib.HvPagingProtect(nested, HOST, HOST_BYTES, READ | 4 | WB << 8) == 0


def registers(core: Core) -> Mtrrs:
    fake = core.lib.gFake
    values = {int(row.Msr): int(row.Value) for row in fake.Msr[0 : fake.MsrCount]}
    variable = [(values[BASE + 2 * index], values[MASK + 2 * index]) for index in range(VARIABLES)]
    return Mtrrs(values[DEF], [values[number] for number in FIXED], variable)


def guest_writes(core: Core, number: int, value: int) -> bool:
    """WRMSR of the guest; whether it exits."""
    fake = core.lib.gFake
    if number == DEF and fake.Fake[0].PassesDefType:
        for row in fake.Msr[0 : fake.MsrCount]:
            if row.Msr == DEF:
                row.Value = value
        return False
    fake.MsrWrites = fake.Nmis = fake.Lines = 0
    set_msr(core, number, value)
    return True


def found(core: Core, address: int) -> int | None:
    """The type of a page, None where it is absent."""
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    core.lib.HvPagingQuery(core.ffi.addressof(core.lib.gFake.Host.Root, "Nested"), address, leaf)
    return int(leaf.Attributes) >> 8 & 7 if leaf.Present else None


def touch(core: Core, address: int) -> None:
    """The guest uses an address that may be absent."""
    if found(core, address) is None:
        core.run(core.exit("NestedFault", Gpa=address))
    assert found(core, address) is not None


def is_ram(address: int) -> bool:
    return any(base <= address < end for base, end in RAM)


ON, OFF = ENABLE | FIXED_ENABLE, 0


@pytest.mark.parametrize("kind", [UC, WB])
def test_the_mtrrs_go_off_and_on_with_one_exit(core: Core, kind: int) -> None:
    vmx(core, kind)
    fake = core.lib.gFake
    for _ in range(3):
        assert guest_writes(core, DEF, OFF) and fake.Fake[0].PassesDefType
        assert not fake.Vcpu[0].Quick(core.ffi.addressof(fake.Vcpu[0])), "the next exit is seen, whatever it is"
        assert not guest_writes(core, DEF, ON | kind)
        core.run(core.exit("Cpuid", NextRip=2))
        assert not fake.Fake[0].PassesDefType and fake.Vcpu[0].UnseenDefType == 0
        assert fake.Vcpu[0].Quick == fake.Host.Ops.Quick
        assert (core.writes("Nmi"), core.log(), fake.Wbinvds) == ([], [], 0), "nothing has changed"
    assert fake.Host.Root.Lock == 0 and fake.BadAccesses == 0


def test_the_timer_is_an_exit_like_any_other(core: Core) -> None:
    vmx(core, UC)
    fake = core.lib.gFake
    guest_writes(core, DEF, OFF)
    assert not guest_writes(core, DEF, ON | WB)
    assert found(core, MIB) == UC
    rip, injections = int(fake.Vcpu[0].Regs.Rip), int(fake.Fake[0].Injections)
    core.run(core.exit("Timer"))
    assert found(core, MIB) == WB
    assert (fake.Vcpu[0].Regs.Rip, fake.Fake[0].Injections) == (rip, injections)
    assert fake.Cpu[0].Exits[core.lib.HvExitTimer] == 1
    assert [event for event, _ in core.log()] == ["MemoryTypes"]


def test_memory_that_was_cached_too_long_is_written_back(core: Core) -> None:
    vmx(core, WB)
    fake = core.lib.gFake
    guest_writes(core, DEF, OFF)
    guest_writes(core, DEF, ON | UC)
    assert found(core, MIB) == WB
    core.run(core.exit("Cpuid", NextRip=2))
    assert found(core, MIB) == UC and fake.Wbinvds == 1
    assert fake.Cpu[1].Mailbox.Word & 0x10000 and len(core.writes("Nmi")) == 1, "the other processor flushes, too"


def test_mtrrs_that_stay_off_do_not_stay_unseen(core: Core) -> None:
    vmx(core, WB)
    fake = core.lib.gFake
    guest_writes(core, DEF, OFF)
    core.run(core.exit("Timer"))
    assert not fake.Fake[0].PassesDefType and found(core, MIB) == WB
    assert guest_writes(core, DEF, ON | UC), "what turns them on is seen"
    assert found(core, MIB) == UC


def test_a_range_that_changes_takes_the_write_that_turns_them_on_with_it(core: Core) -> None:
    vmx(core, WB)
    guest_writes(core, DEF, OFF)
    guest_writes(core, BASE + 2, 0)
    assert not core.lib.gFake.Fake[0].PassesDefType, "it is what it was, but the next one may not be"
    guest_writes(core, BASE + 2, 2 * MIB | UC)
    guest_writes(core, MASK + 2, (1 << BITS) - 2 * MIB | VALID)
    assert not core.lib.gFake.Fake[0].PassesDefType
    assert guest_writes(core, DEF, ON | WB)
    assert found(core, 2 * MIB) == UC and found(core, MIB) == WB


@pytest.mark.parametrize("why", ["caches on", "no fixed ranges", "no timer", "a device is cached", "not in the tables"])
def test_where_it_could_do_harm_every_write_exits(core: Core, why: str) -> None:
    kind, other = (UC, WB) if why == "no fixed ranges" else (WB, UC)
    flags = ON
    vmx(core, kind)
    fake = core.lib.gFake
    match why:
        case "caches on":
            fake.Fake[0].State.Cr0 &= ~CD & (1 << 64) - 1
        case "no fixed ranges":
            flags = ENABLE
            guest_writes(core, DEF, flags | kind)
        case "no timer":
            fake.NoTimer = 1
        case "a device is cached":
            touch(core, DEVICE)
            assert found(core, DEVICE) == WB
        case _:
            for row in fake.Msr[0 : fake.MsrCount]:
                row.Value = 2 * MIB if row.Msr == BASE + 2 else row.Value
    assert guest_writes(core, DEF, OFF) and not fake.Fake[0].PassesDefType
    assert guest_writes(core, DEF, flags | other)
    assert found(core, MIB) == other
    if why == "a device is cached":
        assert guest_writes(core, DEF, OFF) and fake.Fake[0].PassesDefType, "it is UC now, like all of the rest"


def test_what_only_the_default_type_caches_is_mapped_on_first_use(core: Core) -> None:
    """Where it is memory it is there from the start; ranges decide for themselves; NPT has no types."""
    vmx(core, WB)
    assert [found(core, at) for at in (0, 0xA0000, MIB, DEVICE - 1, DEVICE, HOST - 1, HOST)] == [
        WB, UC, WB, WB, None, None, WB,
    ]  # fmt: skip
    assert [found(core, at) for at in (2 * GIB - 1, 2 * GIB, 4 * GIB - 1, 4 * GIB)] == [WB, UC, UC, None]
    core.lib.gFake.Host.RamCount = 2
    build(core, core.lib.HvPagingEpt4)
    assert [found(core, at) for at in (DEVICE - 1, DEVICE, GIB, 2 * GIB - 1, 2 * GIB)] == [WB, None, None, None, UC]
    build(core, core.lib.HvPagingNpt4)
    assert None not in [found(core, at) for at in (DEVICE, GIB, 2 * GIB)]
    vmx(core, UC)
    assert [found(core, at) for at in (MIB, DEVICE, HOST)] == [UC, UC, WB]


def test_first_use_maps_what_is_absent_and_nothing_else(core: Core) -> None:
    vmx(core, WB, ())
    touch(core, DEVICE + PAGE)
    assert [found(core, at) for at in (DEVICE, DEVICE + 2 * MIB - 1)] == [WB, WB]
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    core.lib.HvPagingQuery(nested, HOST, leaf)
    assert (int(leaf.Attributes) >> 8 & 7, int(leaf.Attributes) & 7) == HOST_LEAF, "its neighbour is the host's block"
    touch(core, 3 * GIB + 5 * MIB)
    assert [found(core, at) for at in (3 * GIB - 1, 3 * GIB, 4 * GIB - 1, 4 * GIB)] == [None, WB, WB, None]


def test_the_page_of_the_local_apic_is_there_from_the_start(core: Core) -> None:
    """Else the first use would map it writable, and no interrupt command would exit any more."""
    vmx(core, WB, ())
    page = int(core.lib.gFake.Host.ApicPage)
    assert [found(core, at) for at in (page - 1, page, page + PAGE)] == [None, WB, None]
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    assert core.lib.HvPagingProtect(nested, page, PAGE, READ | WB << 8) == 0
    touch(core, page - PAGE)
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    core.lib.HvPagingQuery(nested, page, leaf)
    assert int(leaf.Attributes) & 7 == READ and found(core, page + PAGE) == WB


def test_what_another_processor_changed_is_not_missed(core: Core) -> None:
    """Its kick may be on the way when this one's MTRRs are let go on unseen."""
    vmx(core, WB)
    fake = core.lib.gFake
    flushes = int(fake.Fake[0].Flushes)
    guest_writes(core, DEF, OFF)
    assert fake.Fake[0].PassesDefType and fake.Fake[0].Flushes == flushes + 1


def test_registers_of_an_iommu_are_no_device_of_the_root(core: Core) -> None:
    """The page that is there instead is memory."""
    vmx(core, WB)
    fake = core.lib.gFake
    unit = 3 * GIB
    fake.Host.Iommu[0].Base, fake.Host.Iommu[0].End, fake.Host.IommuCount = unit, unit + PAGE, 1
    nested = core.ffi.addressof(fake.Host.Root, "Nested")
    assert core.lib.HvPagingMap(nested, unit, HOST, PAGE, READ | 4 | WB << 8) == 0
    guest_writes(core, DEF, OFF)
    guest_writes(core, DEF, ON | WT)
    core.run(core.exit("Timer"))
    assert found(core, MIB) == WT, "the tables are made new, and looked at"
    assert guest_writes(core, DEF, OFF) and fake.Fake[0].PassesDefType


def test_small_leaves_take_a_table_at_a_time(core: Core) -> None:
    """The pool has one for each piece on demand, not for a GiB of them."""
    vmx(core, WB)
    fake = core.lib.gFake
    pool, nested = core.ffi.addressof(fake.Host, "Pool"), core.ffi.addressof(fake.Host.Root, "Nested")
    assert core.lib.HvPagePoolInit(pool, core.lib.HvFakeRam(PLENTY << 12), PLENTY) == 0
    assert core.lib.HvPagingInit(nested, core.lib.HvPagingEpt4, pool, 1, BITS) == 0
    used = int(fake.Host.Pool.Used)
    for number, address in enumerate((4 * GIB, 4 * GIB + 6 * MIB, 9 * GIB, 4 * GIB + 2 * MIB)):
        touch(core, address)
        assert fake.Host.Pool.Used <= used + 4 + 2 * number
    assert fake.BadAccesses == 0


STEP = st.one_of(
    st.tuples(st.just("default"), st.sampled_from((UC, 1, 4, 5, WB)), st.sampled_from((ON, ON, ON, ENABLE, OFF))),
    st.tuples(st.just("range"), st.integers(0, VARIABLES - 1), ranges()),
    st.tuples(st.sampled_from(("Cpuid", "Timer")), st.none(), st.none()),
    st.tuples(st.just("touch"), st.integers(0, WINDOW // PAGE - 1), st.none()),
    st.tuples(st.just("caches"), st.booleans(), st.none()),
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from((UC, WB)), steps=st.lists(STEP, min_size=1, max_size=14))
def test_no_device_is_cached_by_what_comes_unseen(core: Core, kind: int, steps: list[tuple[str, Any, Any]]) -> None:
    """After each write; and after each exit with the MTRRs on all pages have the types that they say."""
    vmx(core, kind)
    fake = core.lib.gFake
    kept = registers(core)
    for what, first, second in steps:
        exits = True
        if what == "default":
            guest_writes(core, DEF, OFF)
            exits = guest_writes(core, DEF, second | first)
        elif what == "range":
            guest_writes(core, BASE + 2 * first, second[0])
            guest_writes(core, MASK + 2 * first, second[1])
        elif what == "touch":
            exits = found(core, first * PAGE) is None
            touch(core, first * PAGE)
        elif what == "caches":
            exits = False
            fake.Fake[0].State.Cr0 = fake.Fake[0].State.Cr0 & ~CD & (1 << 64) - 1 | (0 if first else CD)
        else:
            core.run(core.exit(what, NextRip=2))
        now = registers(core)
        if exits and now.def_type & ENABLE:
            kept = now
        for address in range(0, WINDOW, PAGE):
            there = found(core, address)
            if there is None or HOST <= address < HOST + HOST_BYTES:
                continue
            if not fake.Fake[0].PassesDefType:
                assert there == model(kept, address)[0], hex(address)
            elif not is_ram(address) and address >= MIB and now.def_type & ENABLE:
                assert there in (UC, model(now, address)[0]), hex(address)
    assert fake.Host.Root.Lock == 0 and fake.BadAccesses == 0

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Task switches that the core carries out (SDM volume 3, chapter 8): saved, loaded, checked, and whose fault it is."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import Core

CALL, IRET, JMP, GATE = range(4)
DB, DF, TS, NP, SS, GP, PF = 1, 8, 10, 11, 12, 13, 14
NT, VM, IF, RF = 1 << 14, 1 << 17, 1 << 9, 1 << 16
PE, TASK_SWITCHED, PG = 1, 8, 1 << 31
TR = 7
OLD, NEW, LDT, CODE, DATA, CODE3, DATA3 = (8 * index for index in range(1, 8))
GDT_AT, OLD_AT, NEW_AT, LDT_AT, STACK_AT, DIRECTORY_AT, TABLE_AT = 0, 0x400, 0x600, 0x800, 0x1000, 0x2000, 0x3000
RAM = 0x4000
REGISTERS = ["Rax", "Rcx", "Rdx", "Rbx", "Rsp", "Rbp", "Rsi", "Rdi"]
OLD_RIP, LENGTH, NEW_RIP = 0x1111, 5, 0x2222
OLD_FLAGS, NEW_FLAGS = 0x2 | IF | NT, 0x2 | 0x40
SELECTORS = [DATA, CODE, DATA, DATA, DATA, DATA]
OLD_SELECTORS = [0x101, 0x108, 0x110, 0x118, 0x121, 0x128]


def descriptor(base: int, limit: int, rights: int, flags: int = 0) -> bytes:
    """A segment descriptor; flags are G, D/B, L, AVL."""
    low = (base & 0xFFFF) << 16 | limit & 0xFFFF
    high = base & 0xFF000000 | flags << 20 | limit & 0xF0000 | rights << 8 | base >> 16 & 0xFF
    return struct.pack("<II", low, high)


@dataclass
class Layout:
    """Where a TSS has its fields, from figures 8-2 and 8-10 of the manual."""

    kind: int
    size: int
    width: str
    ip: int
    registers: int
    selectors: int
    count: int
    ldt: int

    def image(self, values: list[int], rip: int, flags: int, selectors: list[int], ldt: int, cr3: int = 0) -> bytearray:
        made = bytearray(self.size)
        self.put(made, self.ip, [rip, flags])
        self.put(made, self.registers, values)
        self.put(made, self.selectors, selectors[: self.count])
        self.put(made, self.ldt, [ldt])
        if self.size == 104:
            self.put(made, 0x1C, [cr3])
        return made

    def put(self, image: bytearray, at: int, values: list[int]) -> None:
        text = f"<{len(values)}{self.width}"
        mask = (1 << 8 * struct.calcsize(self.width)) - 1
        struct.pack_into(text, image, at, *(value & mask for value in values))

    def get(self, image: bytes, at: int, count: int) -> list[int]:
        return list(struct.unpack_from(f"<{count}{self.width}", image, at))


TSS32 = Layout(0x89, 104, "I", 0x20, 0x28, 0x48, 6, 0x60)
TSS16 = Layout(0x81, 44, "H", 0x0E, 0x12, 0x22, 4, 0x2A)


class Machine:
    """Two tasks in protected mode: one runs, the other one is about to."""

    def __init__(self, core: Core, old: Layout = TSS32, new: Layout = TSS32, paging: bool = False) -> None:
        self.core, self.old, self.new = core, old, new
        self.fake = core.reset(1, virtual_nmis=True)
        self.ram = int(core.lib.HvFakeRam(RAM))
        self.view = core.ffi.buffer(core.ffi.cast("char *", self.ram), RAM)
        self.regs, self.own = self.fake.Vcpu[0].Regs, self.fake.Fake[0]
        state = self.state = self.own.State
        state.Efer, state.Cr0, state.Cr4, state.Dr7 = 0, PE | 0x30, 0, 0x4FF
        base = self.base = 0 if paging else self.ram
        state.GdtBase, state.GdtLimit = base + GDT_AT, 8 * 8 - 1
        for index, selector in enumerate(OLD_SELECTORS):
            segment = state.Segment[index]
            segment.Selector, segment.Attributes, segment.Limit = selector, 0xC9B if index == 1 else 0xC93, 0xFFFFFFFF
        task = state.Segment[TR]
        task.Selector, task.Attributes, task.Base, task.Limit = OLD, old.kind | 2, base + OLD_AT, old.size - 1
        self.descriptors = {
            OLD: descriptor(base + OLD_AT, old.size - 1, old.kind | 2),
            NEW: descriptor(base + NEW_AT, new.size - 1, new.kind),
            LDT: descriptor(base + LDT_AT, 0x1F, 0x82),
            CODE: descriptor(0, 0xFFFFF, 0x9A, 0xC),
            DATA: descriptor(0, 0xFFFFF, 0x92, 0xC),
            CODE3: descriptor(0, 0xFFFFF, 0xFA, 0xC),
            DATA3: descriptor(0, 0xFFFFF, 0xF2, 0xC),
        }
        for index, name in enumerate(REGISTERS):
            setattr(self.regs, name, 0x11110000 * (index + 1) % (1 << 32) + index)
        self.regs.Rip, self.regs.Rflags = OLD_RIP, OLD_FLAGS
        self.values = [0x80000000 + 0x10203 * index for index in range(8)]
        self.values[4] = base + STACK_AT + 0x100 if new is TSS32 else 0x100
        self.cr3 = 0
        if paging:
            self.cr3 = self.ram + DIRECTORY_AT
            state.Cr0 |= PG
            state.Cr3 = self.cr3
            self.write(DIRECTORY_AT, struct.pack("<I", self.ram + TABLE_AT | 7))
            self.write(TABLE_AT, struct.pack("<4I", *(self.ram + 0x1000 * page | 7 for page in range(4))))
        self.image = new.image(self.values, NEW_RIP, NEW_FLAGS, SELECTORS, LDT, self.cr3)
        self.exit = core.exit("TaskSwitch", NextRip=OLD_RIP + LENGTH, TaskSelector=NEW, TaskSource=CALL)

    def write(self, at: int, value: bytes) -> None:
        self.view[at : at + len(value)] = value

    def event(self, kind: str, vector: int, code: int | None = None) -> None:
        """The one that the switch is to deliver."""
        event = self.own.Event
        event.Type, event.Vector = getattr(self.core.lib, f"HvEvent{kind}"), vector
        event.HasErrorCode, event.ErrorCode = code is not None, code or 0
        self.exit.TaskSource, self.exit.NextRip = GATE, OLD_RIP

    def run(self, source: int | None = None) -> None:
        if source is not None:
            self.exit.TaskSource = source
        self.state.Dr6 = 0xFFFF0FF0
        if self.exit.TaskSource == IRET:
            self.descriptors[NEW] = descriptor(self.base + NEW_AT, self.new.size - 1, self.new.kind | 2)
        for selector, value in self.descriptors.items():
            self.write(GDT_AT + selector, value)
        self.write(NEW_AT, bytes(self.image))
        self.before = bytes(self.view)
        self.saved_regs = bytes(self.core.ffi.buffer(self.core.ffi.addressof(self.fake.Vcpu[0], "Regs")))
        assert self.core.run(self.exit) == self.core.lib.HvFakeDone
        self.after = bytes(self.view)

    def raised(self) -> tuple[int, int | None] | None:
        event = self.own.Event
        if event.Type == self.core.lib.HvEventNone:
            return None
        assert event.Type == self.core.lib.HvEventException
        return int(event.Vector), int(event.ErrorCode) if event.HasErrorCode else None

    def rights(self, selector: int) -> int:
        return self.after[GDT_AT + selector + 5]


@pytest.mark.parametrize("source", [CALL, IRET, JMP, GATE])
@pytest.mark.parametrize("old", [TSS32, TSS16])
@pytest.mark.parametrize("new", [TSS32, TSS16])
def test_a_switch(core: Core, source: int, old: Layout, new: Layout) -> None:
    machine = Machine(core, old, new)
    registers = [int(getattr(machine.regs, name)) for name in REGISTERS]
    machine.run(source)
    assert machine.raised() is None
    assert [name for name, _ in core.log()] == []
    regs, state = machine.regs, machine.state
    nests = source in (CALL, GATE)

    # The old task: where it goes on, and no byte of its TSS besides.
    mask = (1 << 8 * struct.calcsize(old.width)) - 1
    image = machine.after[OLD_AT : OLD_AT + old.size]
    flags = OLD_FLAGS & ~(NT if source == IRET else 0)
    assert old.get(image, old.ip, 2) == [OLD_RIP + LENGTH, flags]
    assert old.get(image, old.registers, 8) == [value & mask for value in registers]
    assert old.get(image, old.selectors, old.count) == OLD_SELECTORS[: old.count]
    end = old.selectors + old.count * struct.calcsize(old.width)
    assert image[: old.ip] + image[end:] == machine.before[OLD_AT : OLD_AT + old.ip] + bytes(old.size - end)
    assert machine.rights(OLD) == old.kind | (2 if nests else 0)
    assert machine.rights(NEW) == new.kind | 2
    assert struct.unpack_from("<H", machine.after, NEW_AT)[0] == (OLD if nests else 0)

    # The new one.
    mask = (1 << 8 * struct.calcsize(new.width)) - 1
    assert [int(getattr(regs, name)) for name in REGISTERS] == [value & mask for value in machine.values]
    assert (regs.Rip, regs.Rflags) == (NEW_RIP, NEW_FLAGS | (NT if nests else 0))
    task = state.Segment[TR]
    assert (task.Selector, task.Attributes) == (NEW, new.kind | 2)
    assert (task.Base, task.Limit) == (machine.ram + NEW_AT, new.size - 1)
    local = state.Segment[core.lib.HvSegmentLdtr]
    assert (local.Selector, local.Attributes, local.Base, local.Limit) == (LDT, 0x82, machine.ram + LDT_AT, 0x1F)
    for index in range(6):
        segment = state.Segment[index]
        if index >= new.count:
            assert (segment.Selector, segment.Attributes) == (0, 0), "a 16-bit TSS has no FS and GS"
            continue
        rights = 0xC9B if index == 1 else 0xC93
        assert (segment.Selector, segment.Attributes, segment.Limit) == (SELECTORS[index], rights, 0xFFFFFFFF)
    assert (machine.rights(CODE), machine.rights(DATA)) == (0x9B, 0x93), "accessed"
    assert state.Cr0 & TASK_SWITCHED and state.Dr7 == 0x4FF & ~0x155 and state.Cpl == 0


# What is wrong with the new task, and what the check raises (table 8-1): the exception is the new task's.
Broken = Callable[[Machine], None]


def selectors(**changes: int) -> Broken:
    def broken(machine: Machine) -> None:
        names = ["ES", "CS", "SS", "DS", "FS", "GS"]
        changed = [changes.get(name, value) for name, value in zip(names, SELECTORS, strict=True)]
        machine.image = machine.new.image(
            machine.values, changes.get("EIP", NEW_RIP), NEW_FLAGS, changed, changes.get("LDT", LDT)
        )

    return broken


def changed(selector: int, rights: int, limit: int = 0xFFFFF, flags: int = 0xC) -> Broken:
    def broken(machine: Machine) -> None:
        machine.descriptors[selector] = descriptor(0, limit, rights, flags)

    return broken


FAULTS: dict[str, tuple[Broken, int, int]] = {
    "LDT in an LDT": (selectors(LDT=LDT | 4), TS, LDT | 4),
    "LDT of another type": (selectors(LDT=DATA), TS, DATA),
    "LDT beyond the GDT": (selectors(LDT=0x40), TS, 0x40),
    "LDT not present": (changed(LDT, 0x02), TS, LDT),
    "CS null": (selectors(CS=3), TS, 0),
    "CS beyond the GDT": (selectors(CS=0x40), TS, 0x40),
    "CS beyond the LDT": (selectors(CS=0x24), TS, 0x24),
    "CS is data": (selectors(CS=DATA), TS, DATA),
    "CS is a gate": (changed(CODE, 0x8C), TS, CODE),
    "CS with another privilege": (selectors(CS=CODE | 3), TS, CODE),
    "CS conforming, less privileged": (changed(CODE, 0xFE), TS, CODE),
    "CS not present": (changed(CODE, 0x1A), NP, CODE),
    "SS null": (selectors(SS=0), TS, 0),
    "SS is code": (selectors(SS=CODE), TS, CODE),
    "SS is read-only": (selectors(SS=DATA3, CS=CODE3 | 3), TS, DATA3),
    "SS with another RPL": (selectors(SS=DATA | 1), TS, DATA),
    "SS with another DPL": (selectors(SS=DATA3), TS, DATA3),
    "SS not present": (changed(DATA, 0x12), SS, DATA),
    "DS is the TSS": (selectors(DS=NEW), TS, NEW),
    "ES is not readable": (lambda m: (selectors(ES=CODE3)(m), changed(CODE3, 0x98)(m))[0], TS, CODE3),
    "FS not present": (lambda m: (selectors(FS=DATA3)(m), changed(DATA3, 0x72)(m))[0], NP, DATA3),
    "GS with a lower privilege": (
        selectors(CS=CODE3 | 3, SS=DATA3 | 3, DS=DATA3, ES=DATA3, FS=DATA3, GS=DATA),
        TS,
        DATA,
    ),
    "EIP beyond CS": (changed(CODE, 0x9A, 0x100, 4), GP, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_the_new_task_is_its_own_exception(core: Core, name: str) -> None:
    broken, vector, code = FAULTS[name]
    machine = Machine(core)
    broken(machine)
    machine.run()
    assert machine.raised() == (vector, code)
    # The switch has taken place.
    assert machine.state.Segment[TR].Selector == NEW and machine.rights(NEW) == 0x8B
    assert machine.regs.Rip == NEW_RIP and machine.regs.Rax == machine.values[0]
    # The entry needs a code segment, and a stack segment of the same privilege (SDM 27.3.1.2).
    code_segment, stack = machine.state.Segment[1], machine.state.Segment[2]
    assert code_segment.Attributes & 0x98 == 0x98 and stack.Attributes & 0x90 == 0x90
    if not code_segment.Attributes & 4:
        assert code_segment.Attributes & 0x60 == stack.Attributes & 0x60


@pytest.mark.parametrize(
    ("name", "rights", "limit", "source"),
    [
        ("too short", 0x89, 102, CALL),
        ("busy", 0x8B, 103, JMP),
        ("not busy", 0x89, 103, IRET),
        ("no TSS", 0x92, 103, CALL),
        ("an LDT", 0x82, 103, CALL),
        ("not present", 0x09, 103, CALL),
    ],
)
def test_a_tss_that_has_changed_since_the_processor_looked(
    core: Core, name: str, rights: int, limit: int, source: int
) -> None:
    machine = Machine(core)
    machine.exit.TaskSource = CALL  # run() would make it busy
    machine.descriptors[NEW] = descriptor(machine.ram + NEW_AT, limit, rights)
    if source == IRET:
        machine.write(NEW_AT, bytes(machine.image))
        for selector, value in machine.descriptors.items():
            machine.write(GDT_AT + selector, value)
        machine.exit.TaskSource = IRET
        core.run(machine.exit)
    else:
        machine.run(source)
        assert machine.after == machine.before
    assert machine.raised() == (TS, NEW)
    assert (machine.regs.Rip, machine.state.Segment[TR].Selector) == (OLD_RIP, OLD)


def test_an_exception_with_an_error_code(core: Core) -> None:
    machine = Machine(core)
    machine.event("Exception", GP, 0x1234)
    machine.run()
    assert machine.raised() is None, "the switch has delivered it"
    top = machine.values[4] - 4
    assert machine.regs.Rsp == top
    assert struct.unpack_from("<I", machine.after, top - machine.ram)[0] == 0x1234
    image = machine.after[OLD_AT : OLD_AT + 104]
    assert TSS32.get(image, 0x20, 1) == [OLD_RIP], "a fault: the instruction is executed again"


@pytest.mark.parametrize(("first", "expected"), [(GP, (DF, 0)), (3, (TS, 1)), (DF, None)])
def test_a_fault_of_the_new_task_on_top_of_an_exception(
    core: Core, first: int, expected: tuple[int, int] | None
) -> None:
    machine = Machine(core)
    machine.event("Exception", first, 0 if first != 3 else None)
    selectors(SS=0)(machine)
    for selector, value in machine.descriptors.items():
        machine.write(GDT_AT + selector, value)
    machine.write(NEW_AT, bytes(machine.image))
    end = core.run(machine.exit)
    if expected is None:
        assert end == core.lib.HvFakeShutdown
    else:
        assert machine.raised() == expected


def test_an_nmi_by_a_task_gate_blocks_the_next_and_iret_unblocks(core: Core) -> None:
    machine = Machine(core)
    machine.event("Nmi", 2)
    machine.run()
    assert machine.raised() is None and machine.state.NmiBlocked
    machine = Machine(core)
    machine.state.NmiBlocked = True
    machine.run(IRET)
    assert not machine.state.NmiBlocked


def test_no_room_for_the_error_code_is_a_stack_fault(core: Core) -> None:
    machine = Machine(core)
    machine.event("Exception", PF, 2)
    machine.descriptors[DATA] = descriptor(0, machine.values[4] & 0xFFFFF, 0x92, 4)
    machine.values[4] = 0xFFFF0002
    selectors()(machine)
    machine.run()
    assert machine.raised() == (DF, 0), "#SS during the delivery of #PF"


def test_virtual_8086_mode(core: Core) -> None:
    machine = Machine(core)
    bases = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]
    machine.image = TSS32.image(machine.values, 0x100, NEW_FLAGS | VM, bases, 0)
    machine.run(JMP)
    assert machine.raised() is None and machine.regs.Rflags & VM and machine.state.Cpl == 3
    for index in range(6):
        segment = machine.state.Segment[index]
        assert segment.Base == segment.Selector << 4
        assert (segment.Limit, segment.Attributes) == (0xFFFF, 0xF3)


def test_a_fault_on_the_way_to_virtual_8086_mode(core: Core) -> None:
    machine = Machine(core)
    bases = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]
    machine.image = TSS32.image(machine.values, 0x100, NEW_FLAGS | VM, bases, DATA)
    machine.run(JMP)
    assert machine.raised() == (TS, DATA) and machine.regs.Rflags & VM and machine.state.Cpl == 3
    for index in range(6):
        segment = machine.state.Segment[index]
        assert (segment.Base, segment.Attributes) == (segment.Selector << 4, 0xF3), "no entry takes another one"


def test_a_fault_on_the_way_from_virtual_8086_mode(core: Core) -> None:
    machine = Machine(core)
    machine.regs.Rflags |= VM
    machine.state.Cpl = 3
    for index in range(6):
        machine.state.Segment[index].Attributes = 0xF3
    machine.image = TSS32.image(machine.values, NEW_RIP, NEW_FLAGS, SELECTORS, DATA)
    machine.run(JMP)
    assert machine.raised() == (TS, DATA) and not machine.regs.Rflags & VM
    assert machine.state.Segment[1].Attributes & 0x98 == 0x98, "a code segment, or no entry takes it"


def test_the_trap_flag_of_the_tss(core: Core) -> None:
    machine = Machine(core)
    machine.image[0x64] = 1
    machine.run()
    assert machine.raised() == (DB, None) and machine.state.Dr6 & 1 << 15
    assert machine.regs.Rip == NEW_RIP


def test_paging_changes_with_the_task(core: Core) -> None:
    machine = Machine(core, paging=True)
    other = machine.ram + 0x2800 & ~0xFFF
    machine.run()
    assert machine.raised() is None and machine.state.Cr3 == machine.cr3 == other
    assert machine.after[OLD_AT + 0x1C : OLD_AT + 0x20] == bytes(4), "CR3 is not saved"


@given(page=st.sampled_from([0, 1]), present=st.booleans())
def test_a_page_fault_leaves_the_old_task_as_it_was(core: Core, page: int, present: bool) -> None:
    machine = Machine(core, paging=True)
    machine.state.Cr0 |= 1 << 16
    # The old TSS lies over two pages, and one of them is gone, or read-only.
    machine.state.Segment[TR].Base = 0x1000 - 0x30
    machine.descriptors[OLD] = descriptor(0x1000 - 0x30, 103, 0x8B)
    if page == 0:
        machine.state.Segment[TR].Base = 0x1000 + 8
    machine.write(TABLE_AT + 4, struct.pack("<I", machine.ram + 0x1000 | (5 if present else 0)))
    machine.run()
    assert machine.raised() == (PF, 2 | present)
    assert machine.state.Cr2 == (0x1028 if page == 0 else 0x1000)
    assert machine.after == machine.before
    assert (machine.regs.Rip, machine.state.Segment[TR].Selector) == (OLD_RIP, OLD)
    regs = core.ffi.buffer(core.ffi.addressof(machine.fake.Vcpu[0], "Regs"))
    assert bytes(regs)[:128] == machine.saved_regs[:128]


def test_the_hosts_memory_is_not_written(core: Core) -> None:
    machine = Machine(core)
    machine.fake.Host.Base, machine.fake.Host.Bytes = machine.ram + STACK_AT, 0x1000
    machine.event("Exception", GP, 0x1234)
    machine.run()
    assert machine.raised() is None
    assert machine.after[STACK_AT : STACK_AT + 0x1000] == bytes(0x1000)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The trap of the xAPIC page: when it is lifted, and INIT and SIPI that come by the wire from then on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import CData, Core

APIC = 0xFEE00000
READ, WRITE, EXECUTE = 1, 2, 4
BOOT_DONE, FIRMWARE_DONE, OK, DENIED = 0x48760001, 0x48760004, 0, 0xFFFFFFFFFFFFFFFE
X2APIC_ICR, INIT, SIPI = 0x830, 0x4500, 0x4600
FLUSH = 0x10000


def machine(core: Core, cpus: int, lift: bool = True, x2apic: bool = False) -> CData:
    """Processors in the firmware, with the page trapped."""
    fake = core.reset(cpus, x2apic)
    fake.Host.LiftApicTrap = lift
    pool = core.ffi.addressof(fake.Host, "Pool")
    nested = core.ffi.addressof(fake.Host.Root, "Nested")
    assert core.lib.HvPagePoolInit(pool, core.lib.HvFakeRam(8 << 12), 8) == 0
    assert core.lib.HvPagingInit(nested, core.lib.HvPagingEpt4, pool, 1, 40) == 0
    assert core.lib.HvPagingMap(nested, APIC, APIC, 4096, READ | EXECUTE) == 0
    return fake


def trapped(core: Core) -> bool:
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    assert core.lib.HvPagingQuery(nested, APIC, leaf) == 0
    assert leaf.Present and leaf.Attributes & ~WRITE == READ | EXECUTE
    return not leaf.Attributes & WRITE


def call(core: Core, number: int, cpu: int = 0) -> int:
    regs = core.lib.gFake.Vcpu[cpu].Regs
    regs.Rax = number
    core.run(core.exit("Hypercall", NextRip=regs.Rip + 3), cpu=cpu)
    return int(regs.Rax)


def mailbox(core: Core, cpu: int) -> CData:
    return core.ffi.addressof(core.lib.gFake.Cpu[cpu], "Mailbox")


def start(core: Core, cpu: int, vector: int = 0x9A) -> None:
    """INIT and SIPI by mailbox, as while the page is trapped."""
    core.lib.HvMailboxPostInit(mailbox(core, cpu))
    core.lib.HvMailboxPostSipi(mailbox(core, cpu), vector)
    kick(core, cpu)


def kick(core: Core, cpu: int) -> int:
    core.lib.gFake.Cpu[cpu].KickPending = 1
    core.lib.gFake.Fake[cpu].PendingNmis = 1
    return core.run(core.exit("Nmi"), cpu=cpu)


@given(cpus=st.integers(2, 8), data=st.data())
def test_it_is_lifted_when_the_last_processor_starts(core: Core, cpus: int, data: st.DataObject) -> None:
    machine(core, cpus)
    assert call(core, BOOT_DONE) == OK
    for cpu in range(1, cpus):
        start(core, cpu)
    assert trapped(core), "what the firmware starts does not count"
    assert call(core, FIRMWARE_DONE) == OK
    order = data.draw(st.permutations(range(1, cpus)))
    for cpu in order:
        assert trapped(core)
        start(core, cpu)
        start(core, order[0])
    assert not trapped(core)
    assert [event for event, _ in core.log()].count("ApicLifted") == 1
    assert core.lib.gFake.Host.Root.Lock == 0


@pytest.mark.parametrize("reason", ["no exits on INIT and SIPI", "x2apic", "x2apic on one", "one is missing"])
def test_it_stays_where_it_is_needed_or_costs_nothing(core: Core, reason: str) -> None:
    fake = machine(core, 3, lift=reason != "no exits on INIT and SIPI", x2apic=reason == "x2apic")
    fake.Cpu[2].X2Apic |= reason == "x2apic on one"
    assert (call(core, BOOT_DONE), call(core, FIRMWARE_DONE)) == (OK, OK)
    for cpu in (1, 2)[: 1 if reason == "one is missing" else 2]:
        start(core, cpu)
    assert trapped(core)
    # A processor that waits does so in the host, where mail wakes it.
    core.lib.HvMailboxPostInit(mailbox(core, 1))
    assert kick(core, 1) == core.lib.HvFakeWaiting
    assert (fake.Cpu[1].SipiWait, fake.Fake[1].State.Activity) == (0, core.lib.HvActivityRunning)


def test_the_firmware_is_not_done_before_the_boot_services_are(core: Core) -> None:
    machine(core, 2)
    assert call(core, FIRMWARE_DONE) == DENIED
    start(core, 1)
    assert trapped(core) and not core.lib.gFake.Cpu[1].OsStarted


def lifted(core: Core, cpus: int = 2) -> CData:
    fake = machine(core, cpus)
    assert (call(core, BOOT_DONE), call(core, FIRMWARE_DONE)) == (OK, OK)
    for cpu in range(1, cpus):
        start(core, cpu)
    assert not trapped(core)
    fake.Nmis = fake.Icrs = fake.Lines = 0
    return fake


def waits(core: Core, cpu: int = 1) -> bool:
    """In the guest, ready for the wire; the two ways to tell must agree."""
    fake = core.lib.gFake
    waiting = fake.Fake[cpu].State.Activity == core.lib.HvActivityWaitForSipi
    assert bool(fake.Cpu[cpu].SipiWait) == waiting
    assert (fake.Cpu[cpu].State == core.lib.HvMpWaitForSipi) == waiting
    return bool(waiting)


def test_init_and_sipi_by_the_wire(core: Core) -> None:
    fake = lifted(core)
    own, regs = fake.Fake[1], fake.Vcpu[1].Regs
    regs.Rip, own.State.Cr3, own.ApicResets = 0x1234, 0x5000, 0
    own.Event.Type = core.lib.HvEventException
    assert core.run(core.exit("Init"), cpu=1) == core.lib.HvFakeDone, "it waits in its guest, not in the host"
    assert waits(core) and own.Waits == 0
    # An entry into this state must not deliver an event, nor find a shadow (SDM 27.3.1.5).
    assert own.Event.Type == core.lib.HvEventNone and not own.State.InterruptShadow
    assert (own.State.Cr3, own.ApicResets) == (0, 1)
    assert core.run(core.exit("Sipi", Info1=0x9A), cpu=1) == core.lib.HvFakeDone
    assert not waits(core)
    assert (own.State.Segment[core.lib.HvSegmentCs].Base, regs.Rip) == (0x9A000, 0)
    assert core.run(core.exit("Sipi", Info1=0x55), cpu=1) == core.lib.HvFakeDone
    assert own.State.Segment[core.lib.HvSegmentCs].Base == 0x9A000, "a SIPI to a processor that runs is nothing"


def test_what_comes_before_it_is_in_its_guest_is_taken_at_once(core: Core) -> None:
    fake = lifted(core)
    core.lib.HvMailboxPost(mailbox(core, 1), FLUSH)
    core.run(core.exit("Init"), cpu=1)
    assert waits(core) and fake.Fake[1].Flushes == 1
    # An NMI that finds it between two entries; one of its own is lost, as in every processor that waits.
    core.lib.HvMailboxPost(mailbox(core, 1), FLUSH)
    fake.Vcpu[1].NmiPending = 1
    kick(core, 1)
    assert waits(core) and fake.Fake[1].Flushes == 2 and not fake.Vcpu[1].NmiPending
    assert fake.Fake[1].Event.Type == core.lib.HvEventNone
    core.lib.HvMailboxPostSipi(mailbox(core, 1), 0x12)
    kick(core, 1)
    assert not waits(core) and fake.Fake[1].State.Segment[core.lib.HvSegmentCs].Base == 0x12000


def test_a_sipi_that_is_posted_before_others_see_that_it_waits(core: Core) -> None:
    fake = lifted(core)
    fake.MailAtSipiWait = 0x34
    assert core.run(core.exit("Init"), cpu=1) == core.lib.HvFakeDone
    assert not waits(core) and fake.Fake[1].State.Segment[core.lib.HvSegmentCs].Base == 0x34000


def test_an_init_while_it_waits_leaves_it_waiting(core: Core) -> None:
    fake = lifted(core)
    core.run(core.exit("Init"), cpu=1)
    core.lib.HvMailboxPostInit(mailbox(core, 1))
    kick(core, 1)
    assert waits(core) and fake.Vcpu[1].Regs.Rip == 0xFFF0


def test_the_boot_processor_runs_from_the_reset_vector(core: Core) -> None:
    fake = lifted(core)
    fake.Vcpu[0].Regs.Rip = 0x1234
    assert core.run(core.exit("Init")) == core.lib.HvFakeDone
    assert not waits(core, 0) and fake.Vcpu[0].Regs.Rip == 0xFFF0


class Wire:
    """A target whose exits come as the processor makes them, and what the architecture says of its state.

    Attributes:
        waiting: it has to be in the wait-for-SIPI state.
        nmi: one is pending in the processor, which takes it where it is not blocked.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.fake = lifted(core)
        self.fake.Cpu[0].X2Apic = 1  # its interrupt commands still exit
        self.waiting = False
        self.nmi = False

    def run(self, kind: str, **fields: int) -> None:
        assert self.core.run(self.core.exit(kind, **fields), cpu=1) == self.core.lib.HvFakeDone
        if self.nmi and not waits(self.core):
            self.nmi = False
            self.fake.Fake[1].PendingNmis = 1
            self.run("Nmi")

    def init(self) -> None:
        """By the wire. It is blocked in the wait-for-SIPI state (SDM 26.2)."""
        if not waits(self.core):
            self.run("Init")
        self.waiting = True

    def sipi(self, vector: int) -> None:
        if waits(self.core):
            self.run("Sipi", Info1=vector)
        self.waiting = False

    def post(self, command: int) -> None:
        """By a sender whose command exits: an NMI, and what it puts on the wire."""
        regs = self.fake.Vcpu[0].Regs
        regs.Rcx, regs.Rax, regs.Rdx = X2APIC_ICR, command, 1
        self.fake.Nmis = self.fake.Icrs = 0
        self.core.run(self.core.exit("Wrmsr", NextRip=regs.Rip + 2))
        self.nmi |= self.fake.Nmis > 0
        if self.nmi and not waits(self.core):
            self.run("Hypercall", NextRip=1)  # any exit: the processor takes the NMI behind it
        for _, wired in self.core.writes("Icr"):
            assert wired == command | 1 << 32, "the same command, for that processor alone"
            if waits(self.core):
                self.run("Sipi", Info1=command & 0xFF)

    def post_init(self) -> None:
        self.post(INIT)
        self.waiting = True

    def post_sipi(self, vector: int) -> None:
        self.post(SIPI | vector)
        self.waiting = False

    def flush(self) -> None:
        """A request of the host: it wakes nobody that waits."""
        cpu = self.fake.Cpu[1]
        if self.core.lib.HvMailboxPost(mailbox(self.core, 1), FLUSH) and not cpu.KickPending:
            cpu.KickPending = 1
            self.nmi = True
        if self.nmi and not waits(self.core):
            self.run("Hypercall", NextRip=1)


@given(
    st.lists(
        st.one_of(
            st.sampled_from([(Wire.init,), (Wire.post_init,), (Wire.flush,)]),
            st.tuples(st.sampled_from([Wire.sipi, Wire.post_sipi]), st.integers(0, 255)),
        ),
        max_size=12,
    )
)
def test_init_and_sipi_in_any_order_and_by_any_way(core: Core, steps: list[tuple[Any, ...]]) -> None:
    wire = Wire(core)
    for step, *vector in steps:
        before = wire.waiting
        step(wire, *vector)
        assert waits(core) == wire.waiting, steps
        if before and not wire.waiting:
            assert wire.fake.Fake[1].State.Segment[core.lib.HvSegmentCs].Base == vector[0] << 12

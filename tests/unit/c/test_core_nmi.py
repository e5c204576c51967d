# SPDX-License-Identifier: BSD-2-Clause-Patent
"""NMIs on a processor that keeps no account of them: a guest that executes, and the core between its instructions.

The guest of this model takes events, shadows and single steps as SDM volume 3, 6.7.1, 6.8.3 and 18.3.1.4 describe them:
an NMI is blocked from its delivery until an IRET, and by the shadow of STI or MOV SS for one instruction.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import CData, Core

TF, RF = 1 << 8, 1 << 16
BS = 1 << 14
NMI_HANDLER, DEBUG_HANDLER, FAULT_HANDLER = 0x100000, 0x200000, 0x300000
INSTRUCTION = 4


@dataclass
class Guest:
    """A guest processor between two boundaries.

    Attributes:
        blocked: it is in its NMI handler.
        owed: NMIs of its own have come since it last took one.
        delivered: NMIs that it took.
        debug: #DB exceptions that it took.
        stack: interrupted contexts, as RIP and flags.
        idle: boundaries at which it could have taken an owed NMI and did not.
        debugger: something in the guest single-steps.
    """

    core: Core
    blocked: bool = False
    owed: bool = False
    delivered: int = 0
    debug: int = 0
    stack: list[tuple[int, int]] = field(default_factory=list)
    idle: int = 0
    debugger: bool = False

    def __post_init__(self) -> None:
        fake = self.core.reset(2)
        self.cpu, self.vcpu, self.fake = fake.Cpu[1], fake.Vcpu[1], fake.Fake[1]
        self.regs, self.state = self.vcpu.Regs, self.fake.State
        self.regs.Rip = 0x1000

    def exit(self, kind: str, **fields: CData) -> None:
        """An exit, and the entry after it, which delivers what is queued."""
        assert self.core.run(self.core.exit(kind, **fields), cpu=1) == self.core.lib.HvFakeDone
        self.enter()

    def take(self, handler: int) -> None:
        """Delivery of an event: the context goes to the stack."""
        self.stack.append((self.regs.Rip, self.regs.Rflags))
        self.regs.Rip = handler + 0x1000 * len(self.stack)
        self.regs.Rflags &= ~(TF | RF)
        self.state.InterruptShadow = False

    def enter(self) -> None:
        """Entry: the queued event is delivered before the next instruction."""
        kind = self.fake.Event.Type
        self.fake.Event.Type = self.core.lib.HvEventNone
        if kind == self.core.lib.HvEventNmi:
            assert self.owed, "an NMI that is not the guest's, or the same one twice"
            assert not self.blocked, "an NMI inside the NMI handler"
            assert not self.state.InterruptShadow, "an NMI in an interrupt shadow"
            assert self.debugger or not self.regs.Rflags & TF, "the host's single step in the handler's frame"
            self.take(NMI_HANDLER)
            self.blocked, self.owed, self.idle = True, False, 0
            self.delivered += 1
        elif kind == self.core.lib.HvEventException:
            assert self.fake.Event.Vector == 1
            self.debug += 1
            self.take(DEBUG_HANDLER)

    def nmi(self, count: int = 1) -> None:
        """An NMI of the guest's arrives; one that finds another pending is lost, as in any processor."""
        self.owed = True
        self.fake.PendingNmis = count
        self.exit("Nmi")

    def kick(self) -> None:
        """Another processor kicks this one."""
        self.cpu.KickPending = 1
        self.fake.PendingNmis = 1
        self.exit("Nmi")

    def kick_and_nmi(self) -> None:
        """Both arrive, one after the other, before the host looks."""
        self.cpu.KickPending = 1
        self.nmi(2)

    def cpuid(self) -> None:
        """An instruction that the core carries out: the host's single step goes on to the next one."""
        self.exit("Cpuid", NextRip=self.regs.Rip + 2)

    def count_idle(self) -> None:
        """The guest goes on with an NMI owed that it could take: that may last a step, not longer."""
        # A fault during the host's single step takes TF to the stack: the NMI then waits for the handler's IRET.
        stepped_away = any(flags & TF for _, flags in self.stack)
        if self.owed and not self.blocked and not self.state.InterruptShadow and not stepped_away:
            self.idle += 1
            assert self.idle <= 2, "an NMI that does not come"

    def trap(self, stepped: bool) -> None:
        """The single step after an instruction that began with TF set."""
        if not stepped:
            return
        self.state.Dr6 |= BS
        if self.fake.DebugIntercept:
            self.exit("Db")
        else:
            self.debug += 1
            self.take(DEBUG_HANDLER)

    def step(self, shadow: bool = False) -> None:
        """An instruction that does nothing, or STI or MOV SS."""
        self.count_idle()
        stepped = bool(self.regs.Rflags & TF)
        self.regs.Rip += INSTRUCTION
        self.state.InterruptShadow = shadow
        # MOV SS also holds the single step back by an instruction; STI does not.
        self.trap(stepped)

    def fault(self) -> None:
        """An instruction that faults: the guest handles it and executes it again."""
        self.count_idle()
        self.take(FAULT_HANDLER)

    def iret(self) -> None:
        """IRET: from the handler, or from anywhere else to the next instruction."""
        self.count_idle()
        if self.fake.IretIntercept:
            self.exit("Iret")
            if self.fake.IretIntercept:
                return
        stepped = bool(self.regs.Rflags & TF)
        if self.stack:
            self.regs.Rip, flags = self.stack.pop()
            self.regs.Rflags = flags
        else:
            self.regs.Rip += INSTRUCTION
        self.blocked = False
        self.state.InterruptShadow = False
        self.trap(stepped)

    def drain(self) -> None:
        """Lets it come to rest."""
        for _ in range(45):
            self.step()
            self.step()
            if self.stack:
                self.iret()


ACTIONS = ("nmi", "kick", "kick_and_nmi", "cpuid", "step", "shadow", "fault", "iret")


def act(guest: Guest, action: str) -> None:
    if action == "shadow":
        guest.step(shadow=True)
    else:
        getattr(guest, action)()


@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=40))
def test_nmis_come_once_and_are_not_lost(core: Core, actions: list[str]) -> None:
    guest = Guest(core)
    for action in actions:
        act(guest, action)
    guest.drain()
    assert not guest.owed, "an NMI that was lost"
    assert guest.delivered <= sum(action in ("nmi", "kick_and_nmi") for action in actions)
    assert (guest.delivered > 0) == any(action in ("nmi", "kick_and_nmi") for action in actions)
    # Nothing of the host's single steps is left, and the guest saw none of them.
    assert guest.debug == 0
    assert guest.regs.Rflags == 2
    assert guest.state.Dr6 == 0xFFFF0FF0
    assert not (guest.fake.DebugIntercept or guest.vcpu.NmiStepping)
    assert guest.cpu.Exits[core.lib.HvExitKick] == sum(action.startswith("kick") for action in actions)


@given(actions=st.lists(st.sampled_from(("kick", "cpuid", "step", "shadow", "fault", "iret")), max_size=30))
def test_kicks_never_reach_the_guest(core: Core, actions: list[str]) -> None:
    guest = Guest(core)
    for action in actions:
        act(guest, action)
        assert guest.delivered == 0
        assert guest.fake.Injections == 0
    assert not guest.vcpu.NmiPending


def test_an_nmi_is_delivered_at_once(core: Core) -> None:
    guest = Guest(core)
    guest.nmi()
    assert (guest.delivered, guest.fake.IretIntercept) == (1, 1)


def test_the_second_waits_for_the_iret_of_the_first(core: Core) -> None:
    guest = Guest(core)
    guest.nmi()
    guest.nmi()
    guest.step()
    assert guest.delivered == 1
    guest.iret()
    assert (guest.delivered, guest.stack) == (2, [(0x1000, 2)])


def test_one_in_a_shadow_waits_for_one_instruction(core: Core) -> None:
    guest = Guest(core)
    guest.step(shadow=True)
    guest.nmi()
    assert guest.delivered == 0
    guest.step()
    assert guest.delivered == 1


def test_a_step_that_is_no_longer_needed_leaves_no_trace(core: Core) -> None:
    """The shadow ends by an instruction that the core carries out; the next exit finds the NMI deliverable."""
    guest = Guest(core)
    guest.step(shadow=True)
    guest.nmi()
    assert guest.regs.Rflags & TF
    guest.cpuid()
    guest.nmi()
    assert (guest.delivered, guest.stack) == (1, [(0x1006, 2)])
    assert not (guest.fake.DebugIntercept or guest.vcpu.NmiStepping)


def test_one_waits_for_another_event(core: Core) -> None:
    """An exception that an exit cut off is queued again; the NMI comes after it."""
    guest = Guest(core)
    guest.fake.Event.Type, guest.fake.Event.Vector = core.lib.HvEventException, 1
    guest.owed, guest.fake.PendingNmis = True, 1
    core.run(core.exit("Nmi"), cpu=1)
    assert (guest.fake.Event.Type, guest.fake.Event.Vector) == (core.lib.HvEventException, 1)
    guest.enter()
    assert guest.debug == 1
    assert guest.owed


def test_a_debugger_in_the_guest_keeps_its_single_step(core: Core) -> None:
    """A context that is being single-stepped is interrupted by two NMIs, and goes on being single-stepped."""
    guest = Guest(core)
    guest.debugger = True
    guest.regs.Rflags |= TF
    guest.nmi()
    guest.nmi()
    guest.iret()
    assert guest.delivered == 2
    assert guest.stack == [(0x1000, 2 | TF)]
    guest.iret()
    assert guest.regs.Rflags & TF
    guest.step()
    assert guest.debug == 1


def test_virtual_nmis_wait_for_their_window(core: Core) -> None:
    """A processor that keeps account itself is only asked to say when it can take the next."""
    fake = core.reset(1, virtual_nmis=True)
    own, vcpu = fake.Fake[0], fake.Vcpu[0]
    own.PendingNmis = 1
    core.run(core.exit("Nmi"))
    assert (own.NmiWindow, own.Event.Type) == (1, core.lib.HvEventNone)
    core.run(core.exit("Window"))
    assert (own.NmiWindow, own.Event.Type, vcpu.NmiPending) == (0, core.lib.HvEventNmi, 0)
    own.Event.Type = core.lib.HvEventNone
    core.run(core.exit("Window"))
    assert own.Event.Type == core.lib.HvEventNone


@pytest.mark.parametrize("kind", ["Nmi", "Cpuid"])
def test_a_first_exit_by_an_nmi_is_not_an_entry(core: Core, kind: str) -> None:
    """The launch can still fail after it: the guest executed nothing."""
    fake = core.reset(1)
    fake.Cpu[0].Entered = 0
    fake.Fake[0].PendingNmis = 1
    core.run(core.exit(kind, NextRip=2))
    assert bool(fake.Cpu[0].Entered) == (kind != "Nmi")

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvMailboxLib against a processor that gets every event at once, as the architecture has it."""

import itertools
from dataclasses import dataclass, replace

import pytest

from tests.unit.c.host import HostLibrary

NATIVE, RUNNING, WAIT, HALTED, SHUTDOWN = range(5)
STATES = ("HvMpNative", "HvMpRunning", "HvMpWaitForSipi", "HvMpHalted", "HvMpShutdown")
RESET, BOOT, START = 1, 2, 4


@dataclass(frozen=True)
class Cpu:
    """What can be seen of a processor from outside."""

    state: int
    origin: str = "old"
    """Where it has come from: its old context, or what it was started with last."""

    def init(self, boot: bool) -> "Cpu":
        """INIT (SDM Volume 3, "MP Initialization Protocol Requirements and Restrictions")."""
        if self.state == NATIVE:
            return self
        return Cpu(RUNNING, "reset vector") if boot else Cpu(WAIT, "reset")

    def sipi(self, vector: int) -> "Cpu":
        """A SIPI: it counts only while it is waited for."""
        return Cpu(RUNNING, f"sipi {vector}") if self.state == WAIT else self


class Box:
    """A mailbox and the processor that owns it."""

    def __init__(self, hv: HostLibrary) -> None:
        """Starts empty."""
        self.hv = hv
        self.box = hv.ffi.new("HV_MAILBOX *")
        self.mail = hv.ffi.new("HV_MAIL *")
        self.action = hv.ffi.new("HV_MP_ACTION *")

    def take(self, cpu: Cpu, boot: bool) -> tuple[Cpu, int, bool]:
        """Takes the mail and does what it asks for: the processor after it, the flags, and whether there was mail."""
        found = self.hv.lib.HvMailboxTake(self.box, self.mail)
        state = self.hv.lib.HvMpStateNext(cpu.state, boot, self.mail, self.action)
        actions = self.action.Actions
        cpu = replace(cpu, state=state)
        if actions & RESET:
            cpu = replace(cpu, origin="reset")
        if actions & BOOT:
            assert actions & RESET
            cpu = replace(cpu, origin="reset vector")
        if actions & START:
            cpu = replace(cpu, origin=f"sipi {self.action.Vector}")
        else:
            assert self.action.Vector == 0
        assert actions & ~(RESET | BOOT | START) == 0
        return cpu, self.mail.Flags, bool(found)


def test_states_have_these_numbers(hv: HostLibrary) -> None:
    assert [getattr(hv.lib, name) for name in STATES] == list(range(5)) and hv.lib.HvMpStateMax == 5
    names = ("HV_MP_ACTION_RESET", "HV_MP_ACTION_BOOT", "HV_MP_ACTION_START")
    assert [hv.constants[name] for name in names] == [RESET, BOOT, START]


@pytest.mark.parametrize("state", range(5), ids=STATES)
@pytest.mark.parametrize("boot", [False, True], ids=["ap", "bsp"])
def test_every_order_of_posts_and_takes(hv: HostLibrary, state: int, boot: bool) -> None:
    """All sequences of up to 6 events; posts of several senders are atomic, so each interleaving is a sequence."""
    lib = hv.lib
    flush = hv.constants["HV_MAIL_FLUSH"]
    box = Box(hv)
    count = 0
    for length in range(1, 7):
        for events in itertools.product(("init", "sipi 16", "sipi 255", "flush", "take"), repeat=length):
            real = model = Cpu(state)
            pending = flushes = 0
            for event in (*events, "take"):
                empty = pending == 0
                if event == "take":
                    real, flags, found = box.take(real, boot)
                    assert real == model, events
                    assert found == (not empty) and bool(flags) == bool(flushes), events
                    pending = flushes = 0
                    continue
                if event == "init":
                    kick = lib.HvMailboxPostInit(box.box)
                    model = model.init(boot)
                elif event == "flush":
                    kick = lib.HvMailboxPost(box.box, flush)
                    flushes += 1
                else:
                    vector = int(event.split()[1])
                    kick = lib.HvMailboxPostSipi(box.box, vector)
                    model = model.sipi(vector)
                assert bool(kick) == empty, events
                pending += 1
            assert box.box.Word == 0
            count += 1
    assert count == sum(5**n for n in range(1, 7))


def test_vector_zero_is_a_vector(hv: HostLibrary) -> None:
    box = Box(hv)
    assert hv.lib.HvMailboxPostInit(box.box) and not hv.lib.HvMailboxPostSipi(box.box, 0)
    assert not hv.lib.HvMailboxPostSipi(box.box, 9)
    assert box.take(Cpu(RUNNING), False)[0] == Cpu(RUNNING, "sipi 0")


def test_requests_gather(hv: HostLibrary) -> None:
    """All sequences of up to 4 requests: the set of flags, and the last one of PAUSE and RUN."""
    known = ("FLUSH", "PAUSE", "RUN", "STOP", "PARK", "NMI", "PORTS")
    flags = {name: hv.constants[f"HV_MAIL_{name}"] for name in known}
    assert hv.constants["HV_MAIL_FLAGS"] == sum(flags.values())
    box = Box(hv)
    for length in range(1, 5):
        for names in itertools.product(flags, repeat=length):
            wanted: set[str] = set()
            for number, name in enumerate(names):
                wanted -= {"PAUSE": {"RUN"}, "RUN": {"PAUSE"}}.get(name, set())
                assert bool(hv.lib.HvMailboxPost(box.box, flags[name])) == (number == 0)
                wanted.add(name)
            assert hv.lib.HvMailboxPeek(box.box, box.mail)
            assert hv.lib.HvMailboxPeek(box.box, hv.ffi.NULL)
            assert (box.mail.Flags, box.mail.Init, box.mail.Sipi) == (sum(flags[n] for n in wanted), 0, 0)
            assert box.take(Cpu(RUNNING), False) == (Cpu(RUNNING), sum(flags[n] for n in wanted), True)
            assert not hv.lib.HvMailboxPeek(box.box, box.mail) and box.mail.Flags == 0


def test_what_is_no_request_is_ignored(hv: HostLibrary) -> None:
    box = Box(hv)
    everything = 0xFFFF_FFFF
    assert not hv.lib.HvMailboxPost(box.box, everything & ~hv.constants["HV_MAIL_FLAGS"]) and box.box.Word == 0
    assert hv.lib.HvMailboxPost(box.box, everything)
    assert box.take(Cpu(RUNNING), False) == (
        Cpu(RUNNING),
        hv.constants["HV_MAIL_FLAGS"] & ~hv.constants["HV_MAIL_RUN"],
        True,
    )


def test_requests_do_not_disturb_init_and_sipi(hv: HostLibrary) -> None:
    box = Box(hv)
    lib = hv.lib
    lib.HvMailboxPostInit(box.box)
    lib.HvMailboxPost(box.box, hv.constants["HV_MAIL_PAUSE"])
    lib.HvMailboxPostSipi(box.box, 0xAB)
    lib.HvMailboxPost(box.box, hv.constants["HV_MAIL_RUN"])
    assert box.take(Cpu(HALTED), False) == (Cpu(RUNNING, "sipi 171"), hv.constants["HV_MAIL_RUN"], True)


def test_unknown_state_stays(hv: HostLibrary) -> None:
    box = Box(hv)
    box.mail.Init = box.mail.Sipi = 1
    for state in (5, 1000):
        assert hv.lib.HvMpStateNext(state, False, box.mail, box.action) == state and box.action.Actions == 0


@pytest.mark.parametrize("fail_every", [0, 3], ids=["plain", "with failing exchanges"])
def test_threads(hv: HostLibrary, fail_every: int) -> None:
    rounds = 20_000
    result = hv.ffi.new("HV_STRESS *")
    hv.lib.gHvTestFailEvery = fail_every
    try:
        hv.lib.HvStressMailbox(rounds, result)
    finally:
        hv.lib.gHvTestFailEvery = 0
    assert (result.Lost, result.BadVectors) == (0, 0)
    assert result.Starts == result.Resets == rounds
    assert result.Kicks == result.Takes >= rounds
    bits = [hv.constants[f"HV_MAIL_{name}"].bit_length() - 1 for name in ("FLUSH", "PAUSE", "STOP", "PARK")]
    assert list(result.Seen) == [rounds if bit in bits else 0 for bit in range(32)]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The states of a boot, with a machine whose console a test plays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hvtools.boot import runner
from hvtools.boot.request import BootRequest
from hvtools.boot.strategy import BootStrategy, State, StrategyError
from hvtools.errors import HvError, UsageError
from hvtools.machines.protocols import Cause, ConsoleClosedError, ConsoleTimeoutError, Ending, MachineError
from hvtools.machines.spec import MachineSpec


class PlayedMachine:
    """Power, console and monitor in one; the console has all its output from the start."""

    def __init__(self, output: str, ending: Ending | None = None, log: str = "") -> None:
        self.spec = MachineSpec(1, 512, Path(), Path())
        self.power = self.console = self.monitor = self
        self.output = output
        self.log = log
        self.ending = ending
        self.read = 0
        self.calls: list[str] = []

    def on(self) -> None:
        self.calls.append("on")

    def off(self) -> None:
        self.calls.append("off")

    def resume(self) -> None:
        self.calls.append("resume")

    def wait(self, timeout: float) -> Ending:
        if self.ending is None:
            raise MachineError(f"the machine did not end within {timeout:.0f} s")
        return self.ending

    def expect(self, patterns: Sequence[re.Pattern[str]], timeout: float) -> tuple[int, re.Match[str]]:
        found = [
            (match.start(), at, match) for at, p in enumerate(patterns) if (match := p.search(self.output, self.read))
        ]
        if not found:
            raise ConsoleClosedError("the end") if self.ending else ConsoleTimeoutError("nothing more")
        _, at, match = min(found)
        self.read = match.end()
        return at, match

    def drain(self, timeout: float) -> bool:
        raise AssertionError("a boot does not throw output away")

    def send(self, text: str) -> None:
        self.calls.append(f"send {text!r}")

    def tail(self, lines: int) -> list[str]:
        return self.output.splitlines()[-lines:]

    def text(self) -> str:
        return self.output

    def hypervisor_log(self) -> str:
        return self.log


FIRMWARE = "BdsDxe: starting\nPress ESC in 5 seconds to skip startup.nsh or any other key to continue.\n"
SHELL = FIRMWARE + "hvboot: shell\n"
LOADED = SHELL + "hvboot: load 0x0\n"
ROOT = LOADED + "hvcheck: init version=1 kernel=6 online=1\n"


def test_a_machine_that_stays_on_does_not_cost_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(PlayedMachine):
        def off(self) -> None:
            raise MachineError("box1: switching it off failed")

    @contextlib.contextmanager
    def booting(*arguments: object, **named: object) -> Iterator[BootStrategy]:
        with BootStrategy(Stuck(ROOT, Ending(Cause.POWEROFF, "powered off")), True, 60) as strategy:
            yield strategy

    monkeypatch.setattr(runner, "booting", booting)
    result = runner.run(BootRequest(cpus=1), Path())
    assert result.record.ending is not None and State.ROOT in result.record.seconds
    assert result.failures[-1] == "box1: switching it off failed"


def test_the_way_to_the_root_goes_through_all_states() -> None:
    machine = PlayedMachine(ROOT, Ending(Cause.POWEROFF, "powered off"))
    seen: list[State] = []
    with BootStrategy(machine, True, 60, lambda state, seconds: seen.append(state)) as strategy:
        strategy.transition("root")
        assert strategy.finish().cause is Cause.POWEROFF
    assert seen == list(State)
    assert machine.calls == ["on", "resume", "send '\\r'", "off"]
    assert list(strategy.seconds) == seen[1:]


def test_without_hurry_no_key_is_pressed() -> None:
    machine = PlayedMachine(ROOT)
    BootStrategy(machine, True, 60, hurry=False).transition("root")
    assert machine.calls == ["on", "resume"]


def test_states_can_be_asked_for_one_by_one_and_twice() -> None:
    machine = PlayedMachine(ROOT)
    strategy = BootStrategy(machine, True, 60)
    for state in ("shell", "shell", "hypervisor", "root"):
        strategy.transition(state)
        assert strategy.state.value == state
    with pytest.raises(UsageError, match="cannot go back"):
        strategy.transition("shell")
    with pytest.raises(UsageError, match="no state 'guests'"):
        strategy.transition("guests")
    assert machine.calls.count("on") == 1


def test_without_hypervisor_its_state_is_left_out_and_cannot_be_asked_for() -> None:
    strategy = BootStrategy(PlayedMachine(SHELL + "hvcheck: init x\n"), False, 60)
    with pytest.raises(UsageError, match="without a hypervisor"):
        strategy.transition("hypervisor")
    strategy.transition("root")
    assert State.HYPERVISOR not in strategy.seconds


def test_a_failed_machine_stays_failed_and_repeats_its_first_error() -> None:
    machine = PlayedMachine(SHELL + "something hangs\n", log="hv: info cpu0 start\n")
    strategy = BootStrategy(machine, True, 60)
    with pytest.raises(StrategyError, match="did not reach 'hypervisor': nothing more") as first:
        strategy.transition("root")
    machine.output = ROOT
    with pytest.raises(StrategyError) as second:
        strategy.transition("root")
    with pytest.raises(StrategyError) as third:
        strategy.finish()
    assert first.value is second.value is third.value
    assert first.value.console[-1] == "something hangs" and first.value.log == ["hv: info cpu0 start"]
    assert "  | something hangs" in first.value.report()


def test_a_refusal_of_the_hypervisor_fails_its_state_but_not_the_way_to_the_root() -> None:
    text = ROOT.replace("load 0x0", "load 0x3")
    log = "hv: error cpu0 requirement-unmet name=svm\n"
    strategy = BootStrategy(PlayedMachine(text), True, 60)
    strategy.transition("root")
    assert strategy.load_status == 3
    with pytest.raises(StrategyError, match="HvDxe returned 0x3: requirement-unmet name=svm"):
        BootStrategy(PlayedMachine(text, log=log), True, 60).transition("hypervisor")


@pytest.mark.parametrize(
    ("text", "ending", "said"),
    [
        (LOADED + "hvboot: kernel 0x8\n", None, "the kernel returned 0x8 to the shell"),
        (LOADED + "Kernel panic - not syncing: VFS\r\n", None, "the kernel panicked: VFS"),
        (LOADED, Ending(Cause.TRIPLE_FAULT, "a processor had a triple fault"), "a processor had a triple fault"),
        (LOADED, Ending(Cause.CRASHED, "the emulator died of SIGSEGV"), "the emulator died of SIGSEGV"),
    ],
)
def test_the_reason_is_in_the_error(text: str, ending: Ending | None, said: str) -> None:
    with pytest.raises(StrategyError, match=said):
        BootStrategy(PlayedMachine(text, ending), True, 60).transition("root")


def test_the_limit_is_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("hvtools.boot.strategy.time.monotonic", lambda: now[0])
    strategy = BootStrategy(PlayedMachine(ROOT), True, 60)
    strategy.transition("shell")
    now[0] += 45
    assert strategy.remaining == 15
    now[0] += 45
    assert strategy.remaining == 0
    with pytest.raises(StrategyError, match="the limit of 60 s is over"):
        strategy.finish()


def test_the_power_goes_off_whatever_happens() -> None:
    machine = PlayedMachine(ROOT)
    with pytest.raises(KeyboardInterrupt), BootStrategy(machine, True, 60) as strategy:
        strategy.transition("shell")
        raise KeyboardInterrupt
    assert machine.calls[-1] == "off"


def test_a_machine_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = PlayedMachine("")

    def on() -> None:
        raise MachineError("the emulator does not connect its console")

    def tail(lines: int) -> list[str]:
        raise MachineError("the machine is off")

    monkeypatch.setattr(machine, "on", on)
    monkeypatch.setattr(machine, "tail", tail)
    with pytest.raises(HvError, match="the emulator does not connect its console"):
        BootStrategy(machine, True, 60).transition("shell")

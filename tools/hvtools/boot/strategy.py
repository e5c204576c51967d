# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The way of a machine from off to a running root guest, as states that one asks for.

A test says `strategy.transition("root")`, and gets there or the reason why not.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar

from hvtools.boot import startup
from hvtools.boot.hvlog import parse_log, reasons
from hvtools.errors import HvError, UsageError
from hvtools.machines.console import last_lines
from hvtools.machines.protocols import ConsoleClosedError, Ending, Machine, MachineError

T = TypeVar("T")

CONSOLE_TAIL = 15
LOG_TAIL = 10

_FIRMWARE = re.compile(r"BdsDxe: |UEFI Interactive Shell")
_KEY = re.compile(r"any other key to continue")
_ROOT = re.compile(r"hvcheck: init [^\n]*\n")
_PANIC = re.compile(r"Kernel panic - not syncing: ([^\r\n]*)")


class State(enum.Enum):
    """Where a machine is, in the order of a boot. Root: Linux, or an EFI program, runs as the root guest."""

    OFF = "off"
    FIRMWARE = "firmware"
    SHELL = "shell"
    HYPERVISOR = "hypervisor"
    ROOT = "root"


_ORDER = list(State)


class StrategyError(HvError):
    """A machine did not get to a state. It stays where it is, and says this again whenever it is asked."""

    def __init__(self, message: str, console: Sequence[str], log: Sequence[str]) -> None:
        """Keep what explains it.

        Args:
            message: one line.
            console: last lines of the machine's console.
            log: last lines of the hypervisor's log.
        """
        super().__init__(message)
        self.console = list(console)
        self.log = list(log)

    def report(self) -> str:
        """Give the message and the last lines of console and log."""
        return f"{self}\n{tails(self.console, self.log)}"


def tails(console: Sequence[str], log: Sequence[str]) -> str:
    """Give last lines of console and hypervisor log for people."""
    parts = []
    for title, lines in (("console", console), ("hypervisor log", log)):
        parts += [f"last lines of the {title}:", *(f"  | {line}" for line in lines or ["(empty)"])]
    return "\n".join(parts)


class BootStrategy:
    """One boot of one machine."""

    def __init__(
        self,
        machine: Machine,
        hypervisor: bool,
        seconds: float,
        observer: Callable[[State, float], None] | None = None,
        hurry: bool = True,
        shell: bool = True,
    ) -> None:
        """Take a machine that is off.

        Args:
            machine: the machine.
            hypervisor: its startup script loads HvDxe.
            seconds: limit of time for all that is asked of it, from the first transition on.
            observer: called with "off" just before power-on, then with each state, and the seconds since.
            hurry: press a key where the firmware waits for one. When it comes differs from run to run.
            shell: the UEFI shell comes on the way.
        """
        self.machine = machine
        self.state = State.OFF
        self.seconds: dict[State, float] = {}
        self.load_status: int | None = None
        self._hypervisor = hypervisor
        self._limit = seconds
        self._hurry = hurry
        self._shell = shell
        self._observer = observer
        self._start: float | None = None
        self._failure: StrategyError | None = None

    def __enter__(self) -> BootStrategy:
        """Nothing runs before the first transition."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the power away, whatever happened."""
        self.machine.power.off()

    @property
    def elapsed(self) -> float:
        """Seconds since power-on."""
        return 0.0 if self._start is None else time.monotonic() - self._start

    @property
    def remaining(self) -> float:
        """Seconds until the limit."""
        return max(self._limit - self.elapsed, 0.0)

    def transition(self, target: State | str) -> None:
        """Go to `target` through all states before it.

        Raises:
            StrategyError: the machine did not get there, now or at an earlier call.
            UsageError: there is no such state, or it lies behind.
        """
        try:
            target = State(target)
        except ValueError:
            raise UsageError(f"no state {target!r}: there is {', '.join(state.value for state in State)}") from None
        if self._failure is not None:
            raise self._failure
        if _ORDER.index(target) < _ORDER.index(self.state):
            raise UsageError(f"the machine is at {self.state.value!r} and cannot go back to {target.value!r}")
        if target is State.HYPERVISOR and not self._hypervisor:
            raise UsageError("this machine boots without a hypervisor")
        if target is State.SHELL and not self._shell:
            raise UsageError("this machine boots without the shell")
        for state in _ORDER[_ORDER.index(self.state) + 1 : _ORDER.index(target) + 1]:
            if (state is State.HYPERVISOR and not self._hypervisor) or (state is State.SHELL and not self._shell):
                continue
            self._guarded(f"{state.value!r}", partial(self._enter, state))
            self.state = state
            self.seconds[state] = self.elapsed
            if self._observer is not None:
                self._observer(state, self.elapsed)
        if target is State.HYPERVISOR and self.load_status:
            why = "; ".join(reasons(parse_log(self.machine.hypervisor_log()))) or "its log does not say why"
            raise self._failed(f"HvDxe returned {self.load_status:#x}: {why}")

    def expect(self, patterns: Sequence[re.Pattern[str]]) -> tuple[int, re.Match[str]]:
        """Wait for output of the console, within the limit.

        Raises:
            StrategyError: it did not come.
        """
        return self._guarded("what was awaited", lambda: self.machine.console.expect(patterns, self.remaining))

    def finish(self) -> Ending:
        """Wait for the machine's own end, within the limit.

        Raises:
            StrategyError: it did not end.
        """
        return self._guarded("its end", lambda: self.machine.power.wait(self.remaining))

    def _guarded(self, goal: str, action: Callable[[], T]) -> T:
        if self._failure is not None:
            raise self._failure
        try:
            return action()
        except ConsoleClosedError as error:
            ending = self.machine.power.wait(self.remaining)
            panic = _PANIC.search(self.machine.console.text())
            why = f"the kernel panicked: {panic[1]}" if panic else f"{ending.detail} ({error})"
            raise self._failed(f"the machine did not reach {goal}: {why}") from error
        except MachineError as error:
            why = f"the limit of {self._limit:.0f} s is over" if self.remaining == 0 else str(error)
            raise self._failed(f"the machine did not reach {goal}: {why}") from error

    def _switch_on(self) -> None:
        try:
            self.machine.power.on()
        except MachineError as error:
            raise HvError(str(error)) from error  # there is no console whose last lines could explain it

    def _failed(self, message: str) -> StrategyError:
        log = last_lines(self.machine.hypervisor_log(), LOG_TAIL)
        self._failure = StrategyError(message, self.machine.console.tail(CONSOLE_TAIL), log)
        return self._failure

    def _enter(self, state: State) -> None:
        machine = self.machine
        if state is State.FIRMWARE:
            self._start = time.monotonic()
            if self._observer is not None:
                self._observer(State.OFF, 0.0)
            self._switch_on()
            machine.monitor.resume()
            machine.console.expect([_FIRMWARE], self.remaining)
        elif state is State.SHELL:
            if self._hurry:
                machine.console.expect([_KEY], self.remaining)
                machine.console.send("\r")
            machine.console.expect([startup.AT_SHELL], self.remaining)
        elif state is State.HYPERVISOR:
            _, match = machine.console.expect([startup.LOADED], self.remaining)
            self.load_status = int(match[1], 16)
        elif state is State.ROOT:
            awaited = [_ROOT, startup.APPLICATION_BEGUN, startup.KERNEL_RETURNED, _PANIC]
            index, match = machine.console.expect(awaited, self.remaining)
            if index == 2:
                raise MachineError(f"the kernel returned {match[1]} to the shell")
            if index == 3:
                raise MachineError(f"the kernel panicked: {match[1]}")

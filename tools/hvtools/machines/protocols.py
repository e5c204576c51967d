# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The three protocols that every platform speaks: Power, Console, Monitor."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hvtools.errors import HvError
from hvtools.machines.spec import MachineSpec


class Cause(enum.Enum):
    """Why a machine stopped."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    TRIPLE_FAULT = "triple-fault"
    KILLED = "killed"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Ending:
    """How a machine ended.

    Attributes:
        cause: why.
        detail: one line for people.
        ticks: instructions until then, of all processors together, where the platform counts them exactly.
    """

    cause: Cause
    detail: str
    ticks: int | None = None


class MachineError(HvError):
    """The machine did something else than it was asked for."""

    step = "`hv decode` explains what is in the run's folder"


class ConsoleTimeoutError(MachineError):
    """What was waited for did not appear on the console in time."""


class ConsoleClosedError(MachineError):
    """The machine ended while something was waited for."""


class Power(Protocol):
    """The switch."""

    def on(self) -> None:
        """Build the machine with its console attached; where the platform can, no processor runs before `resume`."""

    def off(self) -> None:
        """Take the power away. May be called at any time, and twice.

        Raises:
            MachineError: the switch of a real machine did not do it.
        """

    def wait(self, timeout: float) -> Ending:
        """Wait at most `timeout` seconds until the machine ends by itself."""


class Console(Protocol):
    """The first serial port."""

    def expect(self, patterns: Sequence[re.Pattern[str]], timeout: float) -> tuple[int, re.Match[str]]:
        """Wait at most `timeout` seconds for one of `patterns`; says which, and the match."""

    def drain(self, timeout: float) -> bool:
        """Read until the machine ends; False when it does not within `timeout` seconds."""

    def send(self, text: str) -> None:
        """Type `text`."""

    def tail(self, lines: int) -> list[str]:
        """Give the last `lines` lines, without terminal control sequences."""

    def text(self) -> str:
        """Give everything since power-on, without terminal control sequences."""


class Monitor(Protocol):
    """The view from outside."""

    def resume(self) -> None:
        """Let the processors run."""


class Machine(Protocol):
    """One machine: a specification and the three protocols."""

    @property
    def spec(self) -> MachineSpec:
        """What it is made of."""

    @property
    def power(self) -> Power:
        """Its switch."""

    @property
    def console(self) -> Console:
        """Its first serial port."""

    @property
    def monitor(self) -> Monitor:
        """The view from outside."""

    def hypervisor_log(self) -> str:
        """Give the hypervisor's log so far."""


@runtime_checkable
class Debuggable(Protocol):
    """A machine that GDB can be attached to."""

    def open_debugger(self, path: Path) -> None:
        """Let GDB connect to a socket at `path`; the processors stop when it does."""

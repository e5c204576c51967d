# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A box in a lab as a machine: its switch, serial ports and boot medium are drivers of labgrid."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect

from hvtools.boot import startup
from hvtools.machines.console import SerialConsole
from hvtools.machines.protocols import (
    Cause,
    ConsoleClosedError,
    ConsoleTimeoutError,
    Ending,
    MachineError,
)
from hvtools.machines.spec import MachineSpec

if TYPE_CHECKING:
    from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin

    from hvtools.lab.strategy import HvStrategy

MEDIUM = "hv.img"
"""Name under which the boot medium is given to a server of files."""

_READ_SECONDS = 0.2  # after so much silence a port has nothing more to say at the moment
_SETTLE_SECONDS = 5.0

# A box does not tell when it is off: the last words on its console do.
_ENDINGS = (
    (re.compile(r"reboot: Power down"), Ending(Cause.POWEROFF, "powered off by the guest")),
    (re.compile(r"reboot: Restarting system"), Ending(Cause.REBOOT, "reset by the guest")),
    (startup.ENDED, Ending(Cause.POWEROFF, "powered off by the startup script")),
    (re.compile(r"BdsDxe: |UEFI Interactive Shell"), Ending(Cause.REBOOT, "the firmware started again")),
)


@contextlib.contextmanager
def doing(box: HvStrategy, what: str) -> Iterator[None]:
    """Make one kind of error of the many that labgrid, and the libraries below it, have.

    Raises:
        MachineError: with the box's name and what was tried.
    """
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise MachineError(f"{box.label}: {what} failed: {said}") from error


class _Wire(threading.Thread):
    """Carries what a serial port says into a descriptor, from before power-on to the end."""

    def __init__(self, port: ConsoleExpectMixin, out: int) -> None:
        super().__init__(daemon=True)
        self.last = time.monotonic()
        self.settled = threading.Event()
        self._port = port
        self._out = out
        self._cut = threading.Event()
        self.start()

    def run(self) -> None:
        """Read until the other side closes or we do."""
        with contextlib.suppress(Exception), os.fdopen(self._out, "wb", buffering=0) as out:
            while not self._cut.is_set():
                try:
                    # Not `read`: labgrid's steps are for one thread. One byte: it would wait until there are more.
                    data = self._port._read(size=1, timeout=_READ_SECONDS)
                except pexpect.TIMEOUT:
                    data = b""
                if data:
                    self.last = time.monotonic()
                    out.write(data)
                else:
                    self.settled.set()
        self.settled.set()

    def settle(self) -> None:
        """Wait until nothing more comes at the moment."""
        self.settled.clear()
        if self.is_alive():
            self.settled.wait(_SETTLE_SECONDS)

    def cut(self) -> None:
        """End it."""
        self._cut.set()
        self.join()


class LabConsole(SerialConsole):
    """The serial port of a box. One that says nothing for too long hangs."""

    def __init__(self, box: HvStrategy, log: Path, listener: Callable[[str], None] | None) -> None:
        """Attach to the box's port, which is active."""
        heard, out = os.pipe()
        super().__init__(heard, os.open(os.devnull, os.O_WRONLY), log, listener)
        self._box = box
        self.wire = _Wire(box.console, out)

    def expect(self, patterns: Sequence[re.Pattern[str]], timeout: float) -> tuple[int, re.Match[str]]:
        """Wait for one of `patterns`, at most `timeout` seconds, and while the box says anything at all.

        Raises:
            ConsoleTimeoutError: none came.
            ConsoleClosedError: the connection is gone.
        """
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            patience = self.wire.last + self._box.silence - time.monotonic()
            try:
                return super().expect(patterns, max(min(left, patience), 0))
            except ConsoleTimeoutError as error:
                silent = time.monotonic() - self.wire.last
                if silent >= self._box.silence:
                    self._box.hang = f"nothing came from its serial port for {silent:.0f} s"
                    raise ConsoleTimeoutError(f"{self._box.label} hangs: {self._box.hang}") from error
                if end <= time.monotonic():
                    raise  # of a test that gives less time than that, nothing is concluded

    def send(self, text: str) -> None:
        """Type `text`."""
        with doing(self._box, "typing"):
            self._box.console.write(text.encode())

    def close(self) -> None:
        """Let go of the port."""
        super().close()
        self.wire.cut()


class LabPower:
    """The switch."""

    def __init__(self, machine: LabMachine) -> None:
        """Belong to `machine`."""
        self._machine = machine

    def on(self) -> None:
        """Bring the medium to the box, attach to its ports, switch it on."""
        self._machine.start()

    def off(self) -> None:
        """Take the power away."""
        self._machine.stop()

    def wait(self, timeout: float) -> Ending:
        """Wait at most `timeout` seconds for the box's last words.

        Raises:
            MachineError: they did not come.
        """
        return self._machine.wait(timeout)


class LabMachine:
    """One boot of a box."""

    def __init__(self, box: HvStrategy, spec: MachineSpec, listener: Callable[[str], None] | None) -> None:
        """Nothing is touched yet.

        Args:
            box: the drivers.
            spec: its disk is the boot medium; the rest is what the box is anyway.
            listener: called with each piece of console output.
        """
        self.spec = spec
        self.power = LabPower(self)
        self.monitor = self
        self._box = box
        self._listener = listener
        self._console: LabConsole | None = None
        self._log: _Wire | None = None
        self._on = False

    @property
    def console(self) -> LabConsole:
        """Its first serial port.

        Raises:
            MachineError: it was never switched on.
        """
        if self._console is None:
            raise MachineError("the machine is off")
        return self._console

    def resume(self) -> None:
        """Do nothing: a box that is on runs."""

    def hypervisor_log(self) -> str:
        """Give what came from the second serial port so far, empty where none is wired."""
        path = self.spec.hypervisor_log
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def start(self) -> None:
        """Switch the box on with our medium in it and our ears on its ports.

        Raises:
            MachineError: a driver of labgrid failed, or the box hung before.
        """
        box = self._box
        if box.hang is not None:
            raise MachineError(f"{box.label} hung before ({box.hang}), and is left alone")
        with doing(box, "switching it off"):
            box.target.activate(box.power)
            box.power.off()
        with doing(box, "bringing the boot medium to it"):
            box.deploy(self.spec.disk, self.spec.firmware)
        self._on = True
        with doing(box, "attaching to its serial port"):
            box.target.activate(box.console)
            self._console = LabConsole(box, self.spec.console_log, self._listener)
            if box.log_port is not None:
                box.target.activate(box.log_port)
                mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                self._log = _Wire(box.log_port, os.open(self.spec.hypervisor_log, mode, 0o644))
        with doing(box, "switching it on"):
            box.power.on()
        self.console.wire.last = time.monotonic()

    def wait(self, timeout: float) -> Ending:
        """Wait for the last words of the console."""
        try:
            which, _ = self.console.expect([pattern for pattern, _ in _ENDINGS], timeout)
            ending = _ENDINGS[which][1]
        except ConsoleClosedError:
            ending = Ending(Cause.CRASHED, "the connection to its serial port ended")
        self._settle()
        return ending

    def _settle(self) -> None:
        for wire in (self.console.wire, self._log):
            if wire is not None:
                wire.settle()
        self.console.drain(_READ_SECONDS)

    def let_go(self) -> None:
        """Leave the box as it is, and its ports to others."""
        self._on = False
        if self._console is not None:
            self._console.close()
        if self._log is not None:
            self._log.cut()
        for port in (self._box.console, self._box.log_port):
            if port is not None:
                self._box.target.deactivate(port)

    def stop(self) -> None:
        """Switch the box off, if we switched it on.

        Raises:
            MachineError: it cannot be switched off.
        """
        if not self._on:
            return
        try:
            with doing(self._box, "switching it off"):
                self._box.power.off()
        finally:
            self.let_go()

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What machines that are a process of an emulator have in common."""

from __future__ import annotations

import abc
import subprocess
import time
from collections.abc import Callable

from hvtools.machines.console import SerialConsole
from hvtools.machines.protocols import Cause, Ending, MachineError
from hvtools.machines.spec import MachineSpec

END_SECONDS = 10.0  # from the end of the console to the end of the process


class EmulatorPower:
    """The switch of an emulated machine."""

    def __init__(self, machine: Emulator) -> None:
        """Belong to `machine`."""
        self._machine = machine

    def on(self) -> None:
        """Start the emulator with its console connected, processors stopped if it can hold them."""
        self._machine.start()

    def off(self) -> None:
        """Kill the emulator, if it runs."""
        self._machine.kill()

    def wait(self, timeout: float) -> Ending:
        """Wait at most `timeout` seconds for the end.

        Raises:
            MachineError: it still runs.
        """
        return self._machine.wait(timeout)


class Emulator(abc.ABC):
    """One process of an emulator and the ends of its wires."""

    def __init__(self, spec: MachineSpec, listener: Callable[[str], None] | None) -> None:
        """Describe the machine; nothing runs yet.

        Args:
            spec: what it is made of.
            listener: called with each piece of console output.
        """
        self._spec = spec
        self._listener = listener
        self._power = EmulatorPower(self)
        self._process: subprocess.Popen[bytes] | None = None
        self._console: SerialConsole | None = None
        self._ending: Ending | None = None

    @property
    def spec(self) -> MachineSpec:
        """What it is made of."""
        return self._spec

    @property
    def power(self) -> EmulatorPower:
        """Its switch."""
        return self._power

    @property
    def console(self) -> SerialConsole:
        """Its first serial port.

        Raises:
            MachineError: it was never switched on.
        """
        if self._console is None:
            raise MachineError("the machine is off")
        return self._console

    @property
    def pid(self) -> int | None:
        """Number of the emulator's process while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the emulator.

        Raises:
            HvError: the emulator or its firmware is not to be had.
            UsageError: the emulator refuses the machine (an unknown processor model, too many processors).
        """
        if self._process is not None:
            raise MachineError("the machine was already switched on once")
        self._start()

    def wait(self, timeout: float) -> Ending:
        """Wait at most `timeout` seconds for the machine's own end.

        Raises:
            MachineError: it still runs.
        """
        if self._ending is None:
            end = time.monotonic() + timeout
            # The console is read meanwhile: an emulator whose console nobody reads stands still.
            if not self.console.drain(timeout) or not self._process_ends(end - time.monotonic() + END_SECONDS):
                raise MachineError(f"the machine did not end within {timeout:.0f} s")
            self._ending = self._conclude()
        return self._ending

    def kill(self) -> None:
        """End the emulator now."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._ending = self._ending or Ending(Cause.KILLED, "switched off")
        self._close()
        if self._console is not None:
            self._console.close()

    def _process_ends(self, timeout: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(max(timeout, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    @abc.abstractmethod
    def _start(self) -> None:
        """Make the process, the console and what else it has."""

    @abc.abstractmethod
    def _conclude(self) -> Ending:
        """Read what the emulator left, after its end."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Let go of what the process had besides the console; it may never have been started."""

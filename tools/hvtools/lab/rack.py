# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Emulated boxes that stand for real ones: serial ports over TCP, power by a command, a medium that a server stages."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from hvtools import toolchain
from hvtools.lab.machine import MEDIUM
from hvtools.machines.process import die_with
from hvtools.machines.qemu import EMULATOR, Firmware, hardware_arguments
from hvtools.machines.qmp import listening
from hvtools.machines.spec import MachineSpec

CPUS = 4
MEMORY_MIB = 512
PORTS = ("console", "log")

_BUFFER = 1 << 20  # bytes that a port holds while nobody reads


def _port() -> socket.socket:
    """Take a free port of the loopback interface; it stays taken while the box is off, like that of a serial server."""
    endpoint = socket.create_server(("127.0.0.1", 0))
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return endpoint


@dataclass
class StandIn:
    """One box.

    Attributes:
        name: as the coordinator knows it.
        folder: its medium and what its emulator says.
        hangs: its processors never start, however often it is switched on.
        usb: its medium is a USB stick, and not a disk.
        inside: what is in the box besides, as arguments of its emulator; comes first on its buses.
    """

    name: str
    folder: Path
    hangs: bool = False
    usb: bool = True
    inside: list[str] = field(default_factory=list)
    ports: dict[str, socket.socket] = field(default_factory=lambda: {name: _port() for name in PORTS})
    process: subprocess.Popen[bytes] | None = None

    @property
    def medium(self) -> Path:
        """The folder into which its boot medium is staged."""
        return self.folder / "medium"

    @property
    def chip(self) -> Path:
        """The content of its flash chip; the emulator's own firmware until something was written."""
        return self.folder / "chip"

    @property
    def is_on(self) -> bool:
        """Its power is on."""
        return self.process is not None and self.process.poll() is None

    def numbers(self) -> dict[str, int]:
        """Give the TCP ports of its serial ports."""
        return {name: endpoint.getsockname()[1] for name, endpoint in self.ports.items()}

    def on(self) -> None:
        """Switch it on, if it is off."""
        if self.is_on:
            return
        disk = self.medium / MEDIUM
        if not disk.is_file():  # nothing was staged, or what was staged is gone
            disk = self.folder / "empty"
            disk.write_bytes(bytes(1 << 20))
        firmware = self.chip if self.chip.exists() else None
        spec = MachineSpec(CPUS, MEMORY_MIB, self.folder, disk, usb=self.usb, restart=True, firmware=firmware)
        arguments = [*self.inside, *hardware_arguments(spec, Firmware())]
        for name, endpoint in self.ports.items():
            arguments += ["-chardev", f"socket,id={name},fd={endpoint.fileno()},server=on,wait=off"]
            arguments += ["-serial", f"chardev:{name}"]
        if self.hangs:
            arguments.append("-S")
        with (self.folder / "emulator.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [EMULATOR, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[endpoint.fileno() for endpoint in self.ports.values()],
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )

    def off(self) -> None:
        """Switch it off, if it is on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Take it away."""
        self.off()
        for endpoint in self.ports.values():
            endpoint.close()


class Rack:
    """Boxes, and the switchboard that the power command talks to."""

    def __init__(self, folder: Path, names: list[str], hanging: frozenset[str] = frozenset()) -> None:
        """Describe the boxes.

        Args:
            folder: for all that they need.
            names: of the boxes.
            hanging: those that hang.
        """
        self.switchboard = folder / "power"
        self.switched: list[str] = []
        self.boxes = {name: StandIn(name, folder / name, name in hanging) for name in names}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Rack:
        """Listen; all boxes are off."""
        toolchain.require("boot")
        for box in self.boxes.values():
            box.medium.mkdir(parents=True)
        self._endpoint = listening(self.switchboard)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take all boxes away."""
        with contextlib.suppress(OSError):
            self._endpoint.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._endpoint.close()
        for box in self.boxes.values():
            box.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._endpoint.accept()
            except OSError:
                return
            with caller, contextlib.suppress(OSError):
                caller.sendall(f"{self._switch(caller.makefile().readline())}\n".encode())

    def _switch(self, line: str) -> str:
        """Do what a line says: a box's name, and on or off."""
        name, _, action = line.strip().partition(" ")
        if name not in self.boxes or action not in ("on", "off"):
            return f"not understood: {line.strip()!r}"
        self.switched.append(line.strip())
        try:
            (self.boxes[name].on if action == "on" else self.boxes[name].off)()
        except OSError as error:
            return str(error)
        return "ok"

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Between GDB and the stub of Bochs, which alone is no help.

Bochs' stub takes one connection, before the first instruction, and runs the machine only for it. It stops at every
exception and every VM exit, gives RIP one too high behind a breakpoint, and has a buffer of 254 bytes for a packet. It
knows virtual addresses only. (gdbstub.cc and cpu.cc of Bochs 3.0; the protocol is in an appendix of GDB's manual.)
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections.abc import Callable

from hvtools.machines.memory import Memory

_PACKET_BYTES = 0xF0
_INTERRUPT = b"\x03"
_RIP = slice(16 * 16, 17 * 16)  # hex digits of RIP in a reply to `g`
_NO_REASON = "S00"  # an exception, a VM exit, or what interrupts it
_STOP = re.compile(r"S[0-9a-f]{2}")
_PHYSICAL = "Qqemu.PhyMemMode:"
"""QEMU's packet, by which hv debug's commands read physical addresses."""


class _GoneError(Exception):
    """One of the two has closed its connection."""


def _framed(text: str) -> bytes:
    data = text.encode("ascii")
    return b"$%s#%02x" % (data, sum(data) & 0xFF)


class _Wire:
    """One of the two connections, in packets."""

    def __init__(self, endpoint: socket.socket) -> None:
        self._endpoint = endpoint
        self._heard = b""

    def fileno(self) -> int:
        return self._endpoint.fileno()

    def close(self) -> None:
        self._endpoint.close()

    def send(self, data: bytes) -> None:
        try:
            self._endpoint.sendall(data)
        except OSError:
            raise _GoneError from None

    def _hear(self) -> None:
        heard = b""
        with contextlib.suppress(OSError):
            heard = self._endpoint.recv(4096)
        if not heard:
            raise _GoneError
        self._heard += heard

    def begins(self, ready: bool) -> bool:
        """Say whether something was heard besides acknowledgements.

        Args:
            ready: there is something to hear.
        """
        if ready:
            self._hear()
        self._heard = self._heard.lstrip(b"+")
        return bool(self._heard)

    def _byte(self) -> bytes:
        if not self._heard:
            self._hear()
        first, self._heard = self._heard[:1], self._heard[1:]
        return first

    def take(self) -> str:
        """Take a packet, and acknowledge it; an interrupt is one, too."""
        while (byte := self._byte()) != b"$":
            if byte == _INTERRUPT:
                return _INTERRUPT.decode()
        text = b""
        while (byte := self._byte()) != b"#":
            text += byte
        self._byte()
        self._byte()
        self.send(b"+")
        return text.decode("ascii", "replace")


class BochsStub(threading.Thread):
    """Runs the machine from power-on, and stops it when GDB comes."""

    def __init__(self, stub: socket.socket, memory: Callable[[], Memory]) -> None:
        """Take over a connection to Bochs' stub.

        Args:
            stub: the connection.
            memory: gives the machine's physical memory.
        """
        super().__init__(name="bochs-gdb", daemon=True)
        self._stub = _Wire(stub)
        self._memory = memory
        self._gdb: _Wire | None = None
        self._listener: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._breakpoints: set[int] = set()
        self._running = False
        self._interrupted = False
        self._owed = False  # GDB waits for a stop
        self._ahead = 0  # bytes that the stub's RIP is ahead
        self._physical: Memory | None = None

    def listen(self, listener: socket.socket) -> None:
        """Let GDB come to a listening socket; the machine stops when it does."""
        self._listener = listener
        self._wake.send(b"!")

    def run(self) -> None:
        """See threading.Thread."""
        with contextlib.suppress(_GoneError):
            self._go("c")
            while True:
                if self._running:
                    self._while_running()
                else:
                    self._serve()
        for wire in (self._stub, self._gdb):
            if wire is not None:
                wire.close()

    def _go(self, how: str) -> None:
        self._running = True
        self._stub.send(_framed(how))

    def _ask(self, command: str) -> str:
        """Give the stub's answer to a command while the machine stands."""
        self._stub.send(_framed(command))
        while _STOP.fullmatch(answer := self._stub.take()):
            pass  # an interrupt that came when it was stopping anyway: it says so twice
        return answer

    def _while_running(self) -> None:
        # What GDB says once it has asked for a stop is for the machine that stands.
        wires = [self._stub] if self._gdb is None or self._interrupted else [self._stub, self._gdb]
        listeners = [self._woken] if self._gdb is not None or self._listener is None else [self._woken, self._listener]
        ready: list[socket.socket | _Wire] = [*wires, *listeners]
        ready = [] if any(wire.begins(False) for wire in wires) else select.select(ready, [], [])[0]
        if self._stub.begins(self._stub in ready):
            self._stopped(self._stub.take())
        elif self._gdb in wires and self._gdb is not None:
            if self._gdb.begins(self._gdb in ready) and self._gdb.take() == _INTERRUPT.decode():
                self._interrupt()
        elif self._listener in ready and self._listener is not None:
            self._gdb = _Wire(self._listener.accept()[0])
            self._interrupt()
        elif self._woken in ready:
            self._woken.recv(1)

    def _interrupt(self) -> None:
        self._interrupted = True
        self._stub.send(_INTERRUPT)

    def _stopped(self, reply: str) -> None:
        if reply == _NO_REASON and not self._interrupted:
            self._go("c")
            return
        self._running = False
        self._ahead = 0
        at = int.from_bytes(bytes.fromhex(self._ask("g")[_RIP]), "little")
        if reply != _NO_REASON and at - 1 in self._breakpoints:
            self._ahead = 1
        if self._owed and self._gdb is not None:
            stop = "T05swbreak:;" if self._ahead else "S02" if self._interrupted else "S05"
            self._gdb.send(_framed(stop))
        self._owed = self._interrupted = False

    def _serve(self) -> None:
        """Deal with one packet of GDB's while the machine stands."""
        assert self._gdb is not None
        packet = self._gdb.take()
        if packet == _INTERRUPT.decode():
            return
        if packet in ("c", "s"):
            self._owed = True
            self._go(packet)
        elif packet == "k":
            raise _GoneError
        else:
            self._gdb.send(_framed(self._answer(packet)))

    def _answer(self, packet: str) -> str:
        if packet.startswith("qSupported"):
            return f"PacketSize={_PACKET_BYTES:x};swbreak+"
        if packet == "?":
            return "S05"
        if packet.startswith(("q", "v")):
            return ""
        if packet.startswith(_PHYSICAL):
            self._physical = self._memory() if packet.endswith("1") else None
            return "OK"
        if packet.startswith("m") and self._physical is not None:
            address, size = (int(part, 16) for part in packet[1:].split(","))
            return self._physical.read(address, size).hex()
        if packet[:2] in ("Z0", "z0"):
            change = self._breakpoints.add if packet[0] == "Z" else self._breakpoints.discard
            change(int(packet.split(",")[1], 16))
        answer = self._ask(packet)
        if packet == "g" and self._ahead:
            rip = int.from_bytes(bytes.fromhex(answer[_RIP]), "little") - self._ahead
            answer = answer[: _RIP.start] + rip.to_bytes(8, "little").hex() + answer[_RIP.stop :]
        return answer

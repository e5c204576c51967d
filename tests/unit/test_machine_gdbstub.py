# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What stands between GDB and Bochs' stub. The test plays both of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools.machines.gdbstub import BochsStub
from hvtools.machines.qmp import listening

SECONDS = 20.0
RIP = 0x1DE1E74D


class End:
    """One end of a connection, in packets."""

    def __init__(self, endpoint: socket.socket) -> None:
        endpoint.settimeout(SECONDS)
        self.endpoint = endpoint

    def send(self, text: str) -> None:
        data = text.encode()
        self.endpoint.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))

    def byte(self) -> bytes:
        return self.endpoint.recv(1)

    def take(self) -> str:
        while self.byte() != b"$":
            pass
        data = b""
        while (byte := self.byte()) != b"#":
            data += byte
        assert int(self.endpoint.recv(2), 16) == sum(data) & 0xFF
        self.endpoint.sendall(b"+")
        return data.decode()

    def wait_for(self, byte: bytes) -> None:
        while (heard := self.byte()) != byte:
            assert heard == b"+"

    def asked(self, command: str, answer: str) -> None:
        assert self.take() == command
        self.send(answer)


class Ram:
    def read(self, address: int, size: int) -> bytes:
        return bytes((address + n) & 0xFF for n in range(size))


def registers(rip: int) -> str:
    return (bytes(16 * 8) + rip.to_bytes(8, "little") + bytes(28)).hex()


def rip_of(answer: str) -> int:
    return int.from_bytes(bytes.fromhex(answer)[128:136], "little")


@pytest.fixture
def bochs() -> Iterator[tuple[End, BochsStub]]:
    ours, theirs = socket.socketpair()
    stub = BochsStub(theirs, Ram)
    stub.start()
    yield End(ours), stub
    ours.close()
    stub.join(SECONDS)
    assert not stub.is_alive()


def attached(bochs: tuple[End, BochsStub], tmp_path: Path) -> tuple[End, End]:
    """Let GDB come, whereupon the machine stops."""
    emulator, stub = bochs
    assert emulator.take() == "c", "it runs from power-on, without GDB"
    stub.listen(listening(tmp_path / "gdb"))
    endpoint = socket.socket(socket.AF_UNIX)
    endpoint.connect(str(tmp_path / "gdb"))
    gdb = End(endpoint)
    gdb.send("qSupported:swbreak+")
    emulator.wait_for(b"\x03")
    emulator.send("S00")
    emulator.asked("g", registers(RIP))
    assert gdb.take() == "PacketSize=f0;swbreak+"
    return emulator, gdb


def test_exceptions_and_exits_are_no_stops(bochs: tuple[End, BochsStub]) -> None:
    emulator, _ = bochs
    for _ in range(3):
        assert emulator.take() == "c"
        emulator.send("S00")
    assert emulator.take() == "c"


def test_behind_a_breakpoint_rip_is_right(bochs: tuple[End, BochsStub], tmp_path: Path) -> None:
    emulator, gdb = attached(bochs, tmp_path)
    gdb.send(f"Z0,{RIP:x},1")
    emulator.asked(f"Z0,{RIP:x},1", "OK")
    assert gdb.take() == "OK"
    gdb.send("c")
    assert emulator.take() == "c"
    emulator.send("S00")
    assert emulator.take() == "c", "a VM exit on the way"
    emulator.send("S05")
    emulator.asked("g", registers(RIP + 1))
    assert gdb.take() == "T05swbreak:;"
    gdb.send("g")
    emulator.asked("g", registers(RIP + 1))
    assert rip_of(gdb.take()) == RIP
    # A step is none: what the stub says then is so.
    gdb.send("s")
    assert emulator.take() == "s"
    emulator.send("S05")
    emulator.asked("g", registers(RIP + 4))
    assert gdb.take() == "S05"
    gdb.send("g")
    emulator.asked("g", registers(RIP + 4))
    assert rip_of(gdb.take()) == RIP + 4


def test_ctrl_c_stops_even_where_an_exception_stops_too(bochs: tuple[End, BochsStub], tmp_path: Path) -> None:
    emulator, gdb = attached(bochs, tmp_path)
    gdb.send("c")
    assert emulator.take() == "c"
    gdb.endpoint.sendall(b"\x03")
    emulator.wait_for(b"\x03")
    emulator.send("S00")
    emulator.asked("g", registers(RIP))
    assert gdb.take() == "S02"
    # The interrupt came while the stub said that it stops: it says so once more, which is the answer to nothing.
    gdb.send("m10,4")
    assert emulator.take() == "m10,4"
    emulator.send("S00")
    emulator.send("00112233")
    assert gdb.take() == "00112233"


def test_physical_memory_is_read_besides_the_stub(bochs: tuple[End, BochsStub], tmp_path: Path) -> None:
    _, gdb = attached(bochs, tmp_path)
    gdb.send("Qqemu.PhyMemMode:1")
    assert gdb.take() == "OK"
    gdb.send("m1000010,4")
    assert gdb.take() == "10111213"
    gdb.send("k")
    assert gdb.byte() in (b"", b"+")

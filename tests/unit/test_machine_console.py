# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The serial console, against a peer that a test plays."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools.machines.console import SerialConsole, clean, last_lines
from hvtools.machines.protocols import ConsoleClosedError, ConsoleTimeoutError


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_the_leftmost_pattern_is_found_and_named(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    console = SerialConsole(wire[0], tmp_path / "log")
    wire[1].sendall(b"noise\r\nload 0x1F\r\nload 0x2\r\n")
    index, match = console.expect([re.compile("panic"), re.compile(r"load (0x[0-9A-F]+)")], 5)
    assert (index, match[1]) == (1, "0x1F")
    _, match = console.expect([re.compile(r"load (0x[0-9A-F]+)")], 5)
    assert match[1] == "0x2"


def test_characters_that_are_cut_in_two_arrive_whole(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    heard: list[str] = []
    console = SerialConsole(wire[0], tmp_path / "log", heard.append)
    encoded = "µ\n".encode()
    wire[1].sendall(encoded[:1])
    with pytest.raises(ConsoleTimeoutError):
        console.expect([re.compile("µ")], 0)
    wire[1].sendall(encoded[1:] + b"\xff")
    console.expect([re.compile("µ\n")], 5)
    assert "".join(heard).startswith("µ\n")


def test_silence_ends_at_the_limit_and_says_what_was_awaited(
    wire: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    console = SerialConsole(wire[0], tmp_path / "log")
    start = time.monotonic()
    with pytest.raises(ConsoleTimeoutError, match="'root reached'"):
        console.expect([re.compile("root reached")], 0.2)
    assert 0.1 < time.monotonic() - start < 5


def test_a_closed_wire_is_told_from_silence(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    console = SerialConsole(wire[0], tmp_path / "log")
    wire[1].sendall(b"last words")
    wire[1].close()
    with pytest.raises(ConsoleClosedError, match="'never'"):
        console.expect([re.compile("never")], 5)
    assert console.drain(5)
    with pytest.raises(ConsoleClosedError):
        console.send("anybody?")


def test_draining_stops_at_its_limit(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    assert not SerialConsole(wire[0], tmp_path / "log").drain(0.1)


def test_what_is_typed_goes_out(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    SerialConsole(wire[0], tmp_path / "log").send("load x\r")
    assert wire[1].recv(100) == b"load x\r"


def test_terminal_control_is_taken_out() -> None:
    assert clean("\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: \x1b[1mstart\x1b[0m\r\n\x1b(x") == "BdsDxe: start\n\x1b(x"


def test_last_lines_are_those_with_something_in_them() -> None:
    assert last_lines("a\r\n\r\nb  \r\n\x1b[2J\r\nc\r\n", 2) == ["b", "c"]


def test_the_log_is_read_without_control_sequences(wire: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    log = tmp_path / "log"
    console = SerialConsole(wire[0], log)
    assert console.text() == ""
    log.write_bytes(b"one\r\n\x1b[1mtwo\r\n")
    assert console.text() == "one\ntwo\n"
    assert console.tail(1) == ["two"]

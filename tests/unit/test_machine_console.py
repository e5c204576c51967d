# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The serial console, against a peer that a test plays."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools.machines.console import SerialConsole, clean, last_lines
from hvtools.machines.protocols import ConsoleClosedError, ConsoleTimeoutError


class Peer:
    """A console, and the far ends of its pipes."""

    def __init__(self, log: Path) -> None:
        heard, self.says = os.pipe()
        self.hears, typed = os.pipe()
        self.log = log
        self.listened: list[str] = []
        self.console = SerialConsole(heard, typed, log, self.listened.append)
        self.is_open = True

    def say(self, data: bytes) -> None:
        os.write(self.says, data)

    def leave(self) -> None:
        if self.is_open:
            os.close(self.says)
            os.close(self.hears)
            self.is_open = False


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "log")
    yield peer
    peer.leave()
    peer.console.close()
    peer.console.close()


def test_the_leftmost_pattern_is_found_and_named(peer: Peer) -> None:
    console = peer.console
    peer.say(b"noise\r\nload 0x1F\r\nload 0x2\r\n")
    index, match = console.expect([re.compile("panic"), re.compile(r"load (0x[0-9A-F]+)")], 5)
    assert (index, match[1]) == (1, "0x1F")
    _, match = console.expect([re.compile(r"load (0x[0-9A-F]+)")], 5)
    assert match[1] == "0x2"


def test_characters_that_are_cut_in_two_arrive_whole(peer: Peer) -> None:
    console = peer.console
    encoded = "µ\n".encode()
    peer.say(encoded[:1])
    with pytest.raises(ConsoleTimeoutError):
        console.expect([re.compile("µ")], 0)
    peer.say(encoded[1:] + b"\xff")
    console.expect([re.compile("µ\n")], 5)
    assert "".join(peer.listened).startswith("µ\n")


def test_silence_ends_at_the_limit_and_says_what_was_awaited(peer: Peer) -> None:
    console = peer.console
    start = time.monotonic()
    with pytest.raises(ConsoleTimeoutError, match="'root reached'"):
        console.expect([re.compile("root reached")], 0.2)
    assert 0.1 < time.monotonic() - start < 5


def test_a_closed_wire_is_told_from_silence(peer: Peer) -> None:
    console = peer.console
    peer.say(b"last words")
    peer.leave()
    with pytest.raises(ConsoleClosedError, match="'never'"):
        console.expect([re.compile("never")], 5)
    assert console.drain(5)
    with pytest.raises(ConsoleClosedError):
        console.send("anybody?")


def test_draining_stops_at_its_limit(peer: Peer) -> None:
    assert not peer.console.drain(0.1)


def test_what_is_typed_goes_out(peer: Peer) -> None:
    peer.console.send("load x\r")
    assert os.read(peer.hears, 100) == b"load x\r"


def test_terminal_control_is_taken_out() -> None:
    assert clean("\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: \x1b[1mstart\x1b[0m\r\n\x1b(x") == "BdsDxe: start\n\x1b(x"


def test_last_lines_are_those_with_something_in_them() -> None:
    assert last_lines("a\r\n\r\nb  \r\n\x1b[2J\r\nc\r\n", 2) == ["b", "c"]


def test_what_was_read_is_recorded_and_given_without_control_sequences(peer: Peer) -> None:
    assert peer.console.text() == ""
    peer.say(b"one\r\n\x1b[1mtwo\r\n")
    peer.console.expect([re.compile("two\r\n")], 5)
    assert peer.log.read_bytes() == b"one\r\n\x1b[1mtwo\r\n"
    assert peer.console.text() == "one\ntwo\n"
    assert peer.console.tail(1) == ["two"]

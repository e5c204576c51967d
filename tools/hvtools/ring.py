# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's log ring (HV_LOG_RING in HvConsoleLib.h) in a machine's memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.errors import HvError
from hvtools.machines.memory import PAGE, Dump, Memory, NoMemoryError

SIGNATURE = b"HvLogRng"
HEAD = struct.Struct("<8sIIQ")
"""Signature, bytes of text, reserved, bytes ever written."""
MAX_BYTES = 16 << 20  # far more than any build has; a larger number is no ring's


@dataclass(frozen=True)
class Ring:
    """A ring at one moment.

    Attributes:
        address: where it is.
        written: bytes ever written.
        text: the last of them, as many as fit.
    """

    address: int
    written: int
    text: bytes

    def since(self, position: int) -> tuple[str, int]:
        """Give what was written after byte `position`, and how many bytes of that are lost."""
        wanted = self.written - position
        kept = self.text[max(len(self.text) - wanted, 0) :] if wanted > 0 else b""
        return kept.decode("ascii", "replace"), max(wanted - len(self.text), 0)


def read(memory: Memory, address: int) -> Ring:
    """Read the ring at an address.

    Raises:
        HvError: there is none.
    """
    signature, size, _, written = HEAD.unpack(memory.read(address, HEAD.size))
    if signature != SIGNATURE or not 0 < size <= MAX_BYTES or size & (size - 1):
        raise HvError(f"there is no log ring at {address:#x}")
    text = memory.read(address + HEAD.size, size)
    place = written % size
    return Ring(address, written, text[:written] if written < size else text[place:] + text[:place])


def whole_lines(ring: Ring) -> str:
    """Give the text without a first line whose beginning is overwritten."""
    text, lost = ring.since(0)
    return text.partition("\n")[2] if lost else text


def by_log(memory: Memory, lines: list[LogLine]) -> Ring | None:
    """Find the ring by the log line `memory`: it is one of the pages that the root may read.

    Args:
        memory: of the machine that logged.
        lines: its log as the ports have it.

    Returns:
        the ring; None as long as there is no such line, or no ring yet.
    """
    place = next((line for line in reversed(lines) if line.event == "memory"), None)
    if place is None:
        return None
    base = int(place.fields["status"], 16)
    pages = memory.read(base, int(place.fields["status-bytes"], 16))
    for offset in range(0, len(pages), PAGE):
        if pages.startswith(SIGNATURE, offset):
            return read(memory, base + offset)
    return None


def in_dump(dump: Dump) -> list[Ring]:
    """Find every ring in a dump: one, or more if the memory of an earlier boot was not used again.

    Raises:
        HvError: there is none.
    """
    rings = []
    for address in dump.find(SIGNATURE):
        try:
            ring = read(dump, address)
        except (HvError, NoMemoryError):
            continue
        if parse_log(whole_lines(ring)):
            rings.append(ring)
    if not rings:
        raise HvError("the dump has no log of the hypervisor: HvDxe was not loaded, or the dump ends before it")
    return rings


class Follower:
    """Gives each line of a ring once, while it grows.

    A line's place is taken before its text is there. So only what was already taken at the last look is believed.
    """

    def __init__(self) -> None:
        """Begin with the oldest line that is still there."""
        self._last: Ring | None = None
        self._given = 0
        self._open = ""

    def take(self, ring: Ring) -> list[LogLine]:
        """Give the lines that were complete at the last look.

        Args:
            ring: how the ring is now.
        """
        if self._last is not None and ring.written < self._last.written:
            self._given, self._open, self._last = 0, "", None  # started anew: the machine was reset
        settled = self._last.written if self._last else 0
        self._last = ring
        return self._until(settled)

    def rest(self) -> list[LogLine]:
        """Give what is left after the last look, once nobody writes any more."""
        return self._until(self._last.written) if self._last else []

    def _until(self, end: int) -> list[LogLine]:
        assert self._last is not None
        text, lost = self._last.since(self._given)
        keep = len(text) - (self._last.written - end)
        text = text[: max(keep, 0)]
        if lost:
            self._open, text = "", text.partition("\n")[2]
        self._given = max(self._given, end)
        whole, newline, self._open = (self._open + text).rpartition("\n")
        return parse_log(whole + newline)

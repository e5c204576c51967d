# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Symbols of the root's kernel: System.map, or /proc/kallsyms."""

from __future__ import annotations

import bisect
import re
from pathlib import Path

from hvtools.errors import UsageError

_LINE = re.compile(r"^([0-9a-fA-F]{8,16}) ([a-zA-Z]) (\S+)")
_LINE_MAX = 4096  # characters
_CODE = "tTwW"
_FAR = 1 << 20  # bytes behind the last symbol where an address is none of the kernel's any more


class Symbols:
    """Functions by address."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            UsageError: it has no symbols of code; says why.
        """
        found: dict[int, str] = {}
        try:
            with path.open("r", encoding="ascii", errors="replace") as file:
                # A file of something else may be one line of a gigabyte.
                for line in iter(lambda: file.readline(_LINE_MAX), ""):
                    match = _LINE.match(line)
                    if match and match[2] in _CODE:
                        found.setdefault(int(match[1], 16), match[3])
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        if not found:
            hint = (
                "Debian ships a stub: take System.map of the -dbg package, or /proc/kallsyms as root of the same kernel"
            )
            raise UsageError(f"{path} has no symbols of code ({hint})")
        if set(found) == {0}:
            raise UsageError(f"{path}: all addresses are 0, as /proc/kallsyms shows them to others than root")
        self._addresses = sorted(found)
        self._names = [found[address] for address in self._addresses]

    def name(self, address: int) -> str | None:
        """Give the function that an address is in; None for an address of something else."""
        place = bisect.bisect_right(self._addresses, address) - 1
        if place < 0 or address - self._addresses[place] > _FAR:
            return None
        return self._names[place]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Physical memory of a machine, and dumps of it. Standard library only: GDB's Python loads it, too."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hvtools.errors import HvError, UsageError

PAGE = 4096

_ELF = struct.Struct("<4sBBB9xHHIQQQIHHHHHH")  # ELF-64 file header (System V ABI, chapter 4)
_SEGMENT = struct.Struct("<IIQQQQQQ")  # ELF-64 program header
_PT_LOAD = 1
_EM_X86_64 = 62


class NoMemoryError(HvError):
    """There is no memory at an address, or it is not in the dump."""


class Memory(Protocol):
    """What can be read by physical address."""

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes at `address`.

        Raises:
            NoMemoryError: not all of it is there.
        """


@dataclass(frozen=True)
class Piece:
    """Memory that stands in a dump in one piece.

    Attributes:
        base: physical address.
        size: bytes.
        offset: where it stands in the file.
    """

    base: int
    size: int
    offset: int


def _pieces(data: mmap.mmap) -> list[Piece]:
    """Read what is where: an ELF core of the emulator's, else memory byte for byte from address 0.

    Raises:
        UsageError: it is an ELF file, and not such a core.
    """
    if data[:4] != b"\x7fELF":
        return [Piece(0, len(data), 0)]
    if len(data) < _ELF.size:
        raise UsageError("the ELF header is cut off")
    fields = _ELF.unpack_from(data)
    wide, little, machine, first, size, count = fields[1], fields[2], fields[5], fields[8], fields[12], fields[13]
    if (wide, little, machine) != (2, 1, _EM_X86_64) or size != _SEGMENT.size:
        raise UsageError("it is an ELF file, but no memory of an x86-64 machine")
    if first + count * size > len(data):
        raise UsageError("the ELF program headers are cut off")
    pieces = []
    for number in range(count):
        kind, _, offset, _, base, stored, _, _ = _SEGMENT.unpack_from(data, first + number * size)
        if kind == _PT_LOAD and offset < len(data):
            # What a full disk cut off is missing, the rest is there.
            pieces.append(Piece(base, min(stored, len(data) - offset), offset))
    if not pieces:
        raise UsageError("the ELF file has no memory in it")
    return pieces


class Dump:
    """A file with a machine's memory: `dump-guest-memory` of QEMU (ELF), or plain bytes from address 0 (`pmemsave`)."""

    def __init__(self, path: Path) -> None:
        """Open a dump; nothing of it is copied into memory.

        Raises:
            UsageError: it is none; says why.
        """
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise UsageError(f"{path} is empty")
                self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path} cannot be read as a memory dump: {reason}") from error
        try:
            self._pieces = _pieces(self._data)
        except UsageError as error:
            self._data.close()
            raise UsageError(f"{path}: {error}") from None

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes at `address`.

        Raises:
            NoMemoryError: they are not in the dump in one piece.
        """
        for piece in self._pieces:
            if piece.base <= address and address + size <= piece.base + piece.size:
                start = piece.offset + address - piece.base
                return self._data[start : start + size]
        raise NoMemoryError(f"the dump has no {size} bytes at {address:#x}")

    def find(self, pattern: bytes) -> Iterator[int]:
        """Give the addresses of the pages that begin with `pattern`."""
        for piece in self._pieces:
            end = piece.offset + piece.size
            at = self._data.find(pattern, piece.offset, end)
            while at >= 0:
                address = piece.base + at - piece.offset
                if address % PAGE == 0:
                    yield address
                at = self._data.find(pattern, at + 1, end)

    def close(self) -> None:
        """Let go of the file."""
        self._data.close()

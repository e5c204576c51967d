# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Reads a file, of whatever size, once, and gives each line to all decoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hvtools.decode.hypervisor import HypervisorLog
from hvtools.decode.report import Decoder, Report
from hvtools.errors import UsageError

_LINE_MAX = 4096
_CHUNK = 1 << 20

RUN_FILES = ("hypervisor.log", "emulator.log", "emulator.err", "console.log")
"""What a run's folder has (`hv boot --keep`), the most telling first."""


def lines(file: BinaryIO) -> Iterator[str]:
    """Give the lines of a file in pieces of bounded length; bytes that are no text become question marks."""
    rest = b""
    while chunk := file.read(_CHUNK):
        *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            if line:
                yield line[:_LINE_MAX].decode("ascii", "replace")
        # No format has such a line: its beginning is enough.
        rest = rest[:_LINE_MAX]
    if rest:
        yield rest.decode("ascii", "replace")


def decoders(symbols: Path | None) -> list[Decoder]:
    """Make a decoder for each format."""
    return [HypervisorLog(symbols)]


def read(file: BinaryIO, symbols: Path | None = None) -> list[Report]:
    """Explain what is in a file.

    Args:
        file: Any bytes.
        symbols: The .debug file of HvDxe, if not that of the build.
    """
    found = decoders(symbols)
    for line in lines(file):
        for decoder in found:
            decoder.feed(line)
    return [report for decoder in found for report in decoder.reports()]


def read_path(path: Path, symbols: Path | None = None) -> dict[str, list[Report]]:
    """Explain a file, or the logs in a run's folder.

    Returns:
        What was found, by the file's name.

    Raises:
        UsageError: it cannot be read.
    """
    files = [path / name for name in RUN_FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path} has none of the logs of a run ({', '.join(RUN_FILES)})")
    found = {}
    for name in files:
        try:
            with name.open("rb") as file:
                found[str(name)] = read(file, symbols)
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    return found

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Reads a file, of whatever size, once, and gives each line to all decoders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hvtools import ui
from hvtools.decode.bochs import BochsLog
from hvtools.decode.hypervisor import HypervisorLog
from hvtools.decode.kvmtrace import KvmTrace
from hvtools.decode.pagewalk import Physical
from hvtools.decode.qemu import QemuDump
from hvtools.decode.report import Decoder, Report
from hvtools.errors import UsageError

_LINE_MAX = 4096
_CHUNK = 1 << 20
_BYTES_MAX = 4 << 30
_BIG = 64 << 20  # takes more than two seconds
# A piece of a file that has none of these, and is not the one behind a piece that does, is passed over: with every line
# looked at, a file of 1 GB would take minutes.
_MARKS = (
    *(b"hv: ", b"RAX=", b"EAX=", b": v=", b"Triple fault"),
    *(b"KVM: ", b"KVM internal", b"kvm_", b"kvm [", b"kvm run", b"mmio", b"MMU-present", b"rsvd bits"),
    b"  ] ",  # Bochs: the processors' lines
)

RUN_FILES = ("hypervisor.log", "emulator.log", "emulator.err", "console.log")
"""What a run's folder has (`hv boot --keep`), the most telling first."""


def lines(file: BinaryIO) -> Iterator[str]:
    """Give the lines of a file in pieces of bounded length; bytes that are no text become question marks."""
    rest = b""
    done = 0
    marked = False
    while chunk := file.read(_CHUNK):
        done += len(chunk)
        if done > _BYTES_MAX:
            ui.warn(f"only the first {_BYTES_MAX >> 30} GiB are read")
            return
        data = rest + chunk
        before, marked = marked, any(mark in data for mark in _MARKS)
        if not marked and not before:
            rest = data[data.rfind(b"\n") + 1 :][:_LINE_MAX]
            continue
        *whole, rest = data.replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            if line:
                yield line[:_LINE_MAX].decode("ascii", "replace")
        # No format has such a line: its beginning is enough.
        rest = rest[:_LINE_MAX]
    if rest:
        yield rest.decode("ascii", "replace")


def decoders(symbols: Path | None, memory: Physical | None) -> list[Decoder]:
    """Make a decoder for each format."""
    return [HypervisorLog(symbols), QemuDump(memory), BochsLog(memory), KvmTrace()]


def read(file: BinaryIO, symbols: Path | None = None, memory: Physical | None = None) -> list[Report]:
    """Explain what is in a file.

    Args:
        file: Any bytes.
        symbols: The .debug file of HvDxe, if not that of the build.
        memory: The machine's memory, for page walks.
    """
    found = decoders(symbols, memory)
    for line in lines(file):
        for decoder in found:
            decoder.feed(line)
    return [report for decoder in found for report in decoder.reports()]


def read_path(path: Path, symbols: Path | None = None, memory: Physical | None = None) -> dict[str, list[Report]]:
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
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(name.open("rb"))
                if name.stat().st_size > _BIG:
                    stack.enter_context(ui.step(f"reading {name}"))
                found[str(name)] = read(file, symbols, memory)
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    return found

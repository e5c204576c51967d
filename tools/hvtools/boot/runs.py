# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The folders that boots leave, and the machines that still run in them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from hvtools import build
from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.errors import UsageError
from hvtools.lock import SharedLock
from hvtools.machines.console import clean
from hvtools.machines.live import LiveMemory, live_memory
from hvtools.machines.spec import CONSOLE_LOG, HYPERVISOR_LOG, SECOND_SERIAL_LOG

_LINES_MAX = 100_000
_LINE_MAX = 4096  # characters; a line of the log has at most 320


def runs_folder(workspace: Path = build.ROOT) -> Path:
    """Where the folders are that nobody asked to keep elsewhere."""
    return workspace / "Build" / "Boot"


def in_use(workspace: Path) -> SharedLock:
    """Say that something of this clone's Build is in use, until the lock is closed; `hv clean` takes it alone."""
    return SharedLock(workspace / ".hv" / "runs.lock")


def _last_lines(path: Path) -> list[LogLine]:
    """Read a log of any size."""
    lines: deque[LogLine] = deque(maxlen=_LINES_MAX)
    with path.open("r", encoding="utf-8", errors="replace") as file:
        for text in iter(lambda: file.readline(_LINE_MAX), ""):
            lines.extend(parse_log(clean(text)))
    return list(lines)


@dataclass(frozen=True)
class Run:
    """The folder of one boot."""

    folder: Path

    def port_log(self) -> list[LogLine]:
        """The hypervisor's log as the ports have it, its last lines: without what is written to the ring only."""
        for name in (HYPERVISOR_LOG, SECOND_SERIAL_LOG):
            path = self.folder / name
            if path.is_file() and (lines := _last_lines(path)):
                return lines
        return []

    def memory(self) -> LiveMemory | None:
        """The memory of its machine; None if that has ended, or cannot be looked into."""
        return live_memory(self.folder)


def run_at(folder: Path | None) -> Run:
    """Find a boot's folder.

    Args:
        folder: the folder, None for that of the newest boot of this clone.

    Raises:
        UsageError: it is none, or there is none.
    """
    if folder is None:
        # Others have folders there too, and a boot that was refused leaves an empty one.
        runs = sorted(path.parent for path in runs_folder().glob(f"20*-*/{CONSOLE_LOG}"))
        if not runs:
            raise UsageError(f"no boot has left its logs in {runs_folder()} yet: run `hv boot`, or name a folder")
        return Run(runs[-1])
    if not (folder / CONSOLE_LOG).is_file():
        raise UsageError(f"{folder} is not the folder of a boot: it has no {CONSOLE_LOG}")
    return Run(folder)

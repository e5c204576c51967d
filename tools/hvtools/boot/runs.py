# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The folders that boots leave, and the machines that still run in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hvtools import build
from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.errors import UsageError
from hvtools.machines.console import clean
from hvtools.machines.live import LiveMemory
from hvtools.machines.protocols import MachineError
from hvtools.machines.qmp import attached
from hvtools.machines.spec import CONSOLE_LOG, HYPERVISOR_LOG, MONITOR_SOCKET, SECOND_SERIAL_LOG


def runs_folder(workspace: Path = build.ROOT) -> Path:
    """Where the folders are that nobody asked to keep elsewhere."""
    return workspace / "Build" / "Boot"


@dataclass(frozen=True)
class Run:
    """The folder of one boot."""

    folder: Path

    def port_log(self) -> list[LogLine]:
        """The hypervisor's log as the ports have it: without what is written to the ring only."""
        for name in (HYPERVISOR_LOG, SECOND_SERIAL_LOG):
            path = self.folder / name
            if path.is_file() and (lines := parse_log(clean(path.read_text("utf-8", "replace")))):
                return lines
        return []

    def memory(self) -> LiveMemory | None:
        """The memory of its machine; None if that has ended, or cannot be looked into."""
        path = self.folder / MONITOR_SOCKET
        try:
            with attached(path):
                return LiveMemory(path)
        except MachineError:
            return None


def run_at(folder: Path | None) -> Run:
    """Find a boot's folder.

    Args:
        folder: the folder, None for that of the newest boot of this clone.

    Raises:
        UsageError: it is none, or there is none.
    """
    if folder is None:
        runs = sorted(runs_folder().glob("20*-*"))
        if not runs:
            raise UsageError(f"no boot has left its logs in {runs_folder()} yet: run `hv boot`, or name a folder")
        return Run(runs[-1])
    if not (folder / CONSOLE_LOG).is_file():
        raise UsageError(f"{folder} is not the folder of a boot: it has no {CONSOLE_LOG}")
    return Run(folder)

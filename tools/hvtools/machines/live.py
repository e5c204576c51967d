# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Physical memory of a machine that runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hvtools.machines.qmp import attached


class LiveMemory:
    """The memory of a machine that runs; it may change between two reads."""

    def __init__(self, path: Path) -> None:
        """Read through the monitor's socket at `path`, which is free for others between two reads."""
        self._path = path

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes at `address`; zeros where there is no memory.

        Raises:
            MachineError: the machine is gone.
        """
        with tempfile.TemporaryDirectory(prefix="hv-memory-") as folder, attached(self._path) as monitor:
            path = Path(folder) / "bytes"
            monitor.execute("pmemsave", {"val": address, "size": size, "filename": str(path)})
            return path.read_bytes()

    def status(self) -> str:
        """Say what the machine does, in QEMU's words: running, paused, shutdown.

        Raises:
            MachineError: the machine is gone.
        """
        with attached(self._path) as monitor:
            answer = monitor.execute("query-status")
        return str(answer["status"]) if isinstance(answer, dict) else ""

    def save(self, path: Path) -> None:
        """Write all of it into an ELF file; the machine stands still meanwhile.

        Raises:
            MachineError: the machine is gone, or cannot write there.
        """
        with attached(self._path) as monitor:
            monitor.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path.absolute()}"})

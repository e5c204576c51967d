# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Physical memory of a machine that runs: QEMU's through its monitor, Bochs' out of its process."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from hvtools.machines.protocols import MachineError
from hvtools.machines.qmp import attached
from hvtools.machines.spec import EMULATOR_LOG, EMULATOR_PID, MONITOR_SOCKET

_PIECE = 16 << 20  # bytes in one go
_LINE_MAX = 4096

# Of the module `memory` in Bochs' log; its blocks have their places in the order of their first use.
_VECTOR = re.compile(rb"\[MEM0 *\] allocated memory at .* vector=(0x[0-9a-f]+), block_size = (\d+)K")
_USED = re.compile(rb"\[MEM0 *\] allocate_block: block=(0x[0-9a-f]+) used (0x[0-9a-f]+) of")
_REPLACED = re.compile(rb"\[MEM0 *\] allocate_block: block=(0x[0-9a-f]+), replaced (0x[0-9a-f]+)")
_PANIC = re.compile(rb"\d+p\[")  # how the line about one begins; power-off is one


class LiveMemory(Protocol):
    """The memory of a machine that runs; it may change between two reads."""

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes at `address`; zeros where there is no memory.

        Raises:
            MachineError: the machine is gone.
        """

    def held(self) -> bool:
        """Say whether the machine has ended and is held with its memory.

        Raises:
            MachineError: the machine is gone.
        """

    def save(self, path: Path) -> None:
        """Write all of it into a file that `Dump` reads; the machine stands still meanwhile.

        Raises:
            MachineError: the machine is gone, or cannot write there.
        """


class QemuMemory:
    """Through the monitor, which is free for others between two reads."""

    def __init__(self, path: Path) -> None:
        """Read through the monitor's socket at `path`."""
        self._path = path

    def read(self, address: int, size: int) -> bytes:
        """See LiveMemory."""
        with tempfile.TemporaryDirectory(prefix="hv-memory-") as folder, attached(self._path) as monitor:
            path = Path(folder) / "bytes"
            monitor.execute("pmemsave", {"val": address, "size": size, "filename": str(path)})
            return path.read_bytes()

    def held(self) -> bool:
        """See LiveMemory."""
        with attached(self._path) as monitor:
            answer = monitor.execute("query-status")
        return isinstance(answer, dict) and answer["status"] == "shutdown"

    def save(self, path: Path) -> None:
        """See LiveMemory. The file is ELF."""
        with attached(self._path) as monitor:
            monitor.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path.absolute()}"})


class BochsMemory:
    """Bochs has no monitor, but it logs where in its own memory each block of the guest's is."""

    def __init__(self, folder: Path) -> None:
        """Read the memory of the machine whose folder this is.

        Raises:
            MachineError: none runs there.
        """
        self._folder = folder
        self._log = folder / EMULATOR_LOG
        self._position = 0
        self._blocks: dict[int, int] = {}
        self._swapped: set[int] = set()
        self._block_bytes = 0
        self._vector = 0
        self._panic = False
        try:
            self._pid = int((folder / EMULATOR_PID).read_text())
        except (OSError, ValueError):
            raise MachineError(f"no machine runs in {folder}") from None
        self._state()

    def read(self, address: int, size: int) -> bytes:
        """See LiveMemory."""
        self._look()
        with self._open() as memory:
            return b"".join(self._pieces(memory, address, size))

    def held(self) -> bool:
        """See LiveMemory."""
        stopped = self._state() == "T"
        self._look()
        return stopped or self._panic

    def save(self, path: Path) -> None:
        """See LiveMemory. The file has the bytes from address 0, with holes for what was never used."""
        was_stopped = self._state() == "T"
        os.kill(self._pid, signal.SIGSTOP)
        try:
            self._look()
            with self._open() as memory, path.open("wb") as file:
                for block in sorted(self._blocks):
                    file.seek(block * self._block_bytes)
                    file.writelines(self._pieces(memory, block * self._block_bytes, self._block_bytes))
        except OSError as error:
            raise MachineError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            if not was_stopped:
                os.kill(self._pid, signal.SIGCONT)

    def _state(self) -> str:
        """Give the state of the process in the letters of proc(5), if it is the machine's own."""
        process = Path("/proc") / str(self._pid)
        try:
            configuration = (process / "cmdline").read_bytes().split(b"\0")[-2]
            if Path(os.fsdecode(configuration)).parent.samefile(self._folder):
                return (process / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            pass
        raise MachineError(f"no machine runs in {self._folder}")

    def _open(self) -> BinaryIO:
        try:
            return (Path("/proc") / str(self._pid) / "mem").open("rb", buffering=0)
        except PermissionError:
            raise MachineError(
                "the memory of Bochs' process may not be read: be root, or set kernel.yama.ptrace_scope=0"
            ) from None
        except OSError:
            raise MachineError(f"no machine runs in {self._folder}") from None

    def _look(self) -> None:
        """Read on in the log."""
        with self._log.open("rb") as file:
            file.seek(self._position)
            while line := file.readline(_LINE_MAX):
                self._panic |= _PANIC.match(line) is not None
                if len(line) < _LINE_MAX and not line.endswith(b"\n"):
                    return  # it is being written
                self._position = file.tell()
                self._take(line)

    def _take(self, line: bytes) -> None:
        if b"[MEM0" not in line:
            return
        if match := _VECTOR.search(line):
            self._vector, self._block_bytes = int(match[1], 16), int(match[2]) << 10
        elif match := _USED.search(line):
            self._blocks[int(match[1], 16)] = self._vector + (int(match[2], 16) - 1) * self._block_bytes
        elif match := _REPLACED.search(line):
            new, old = int(match[1], 16), int(match[2], 16)
            self._blocks[new] = self._blocks.pop(old)
            self._swapped.add(old)
            self._swapped.discard(new)

    def _pieces(self, memory: BinaryIO, address: int, size: int) -> Iterator[bytes]:
        end = address + size
        while address < end:
            block, inside = divmod(address, self._block_bytes or _PIECE)
            count = min(end - address, (self._block_bytes or _PIECE) - inside)
            place = self._blocks.get(block)
            if place is not None:
                memory.seek(place + inside)
                yield memory.read(count)
            elif block in self._swapped:
                raise MachineError(f"Bochs has the memory at {address:#x} on disk: give the machine at most 2048 MiB")
            else:
                yield bytes(count)
            address += count


def live_memory(folder: Path) -> LiveMemory | None:
    """Give the memory of the machine whose folder this is; None if it has ended."""
    path = folder / MONITOR_SOCKET
    try:
        if path.exists():
            with attached(path):
                return QemuMemory(path)
        return BochsMemory(folder)
    except MachineError:
        return None

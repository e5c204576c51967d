# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The memory of a Bochs that runs, and how it is held at its end. A child process plays the emulator."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvtools.machines.bochs import CONFIGURATION, _HoldingLog
from hvtools.machines.live import BochsMemory, live_memory
from hvtools.machines.memory import Dump
from hvtools.machines.protocols import MachineError
from hvtools.machines.spec import EMULATOR_LOG, EMULATOR_PID

BLOCK = 128 << 10
PROGRAM = f"""
import ctypes, sys
memory = ctypes.create_string_buffer(b"".join(bytes([0x41 + n]) * {BLOCK} for n in range(3)))
print(ctypes.addressof(memory), flush=True)
sys.stdin.read()
"""
LOG = """\
00000000000i[MEM0  ] allocated memory at 0x7f000000. after alignment, vector={vector:#x}, block_size = 128K
00000000000i[MEM0  ] 512.00MB
00000000001d[MEM0  ] allocate_block: block=0x0 used 0x1 of 0x1000
00000000002d[MEM0  ] allocate_block: block=0x2 used 0x2 of 0x1000
00000000002e[CPU0  ] something else
00000000003d[MEM0  ] allocate_block: block=0x7 used 0x3 of 0x1000
"""
SECONDS = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; it takes milliseconds."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / CONFIGURATION).touch()
    command = [sys.executable, "-c", PROGRAM, "-f", str(tmp_path / CONFIGURATION)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        (tmp_path / EMULATOR_LOG).write_text(LOG.format(vector=int(process.stdout.readline())))
        (tmp_path / EMULATOR_PID).write_text(f"{process.pid}\n")
        yield tmp_path
        process.kill()


def append(folder: Path, text: str) -> None:
    with (folder / EMULATOR_LOG).open("a") as file:
        file.write(text)


def test_blocks_are_where_the_log_says(folder: Path) -> None:
    memory = BochsMemory(folder)
    assert memory.read(0, 4) == b"AAAA" and memory.read(2 * BLOCK, 1) == b"B" and memory.read(8 * BLOCK - 1, 1) == b"C"
    assert memory.read(BLOCK - 2, 4) == b"AA\0\0", "the next block was never used"
    assert memory.read(1 << 40, 8) == bytes(8)
    append(folder, "00000000009d[MEM0  ] allocate_block: block=0x5, replaced 0x2\n")
    assert memory.read(5 * BLOCK, 1) == b"B", "the log is read on"
    with pytest.raises(MachineError, match="2048 MiB"):
        memory.read(2 * BLOCK, 1)


def test_what_is_saved_is_a_dump(folder: Path) -> None:
    memory = live_memory(folder)
    assert memory is not None
    path = folder / "memory"
    memory.save(path)
    dump = Dump(path)
    assert dump.read(2 * BLOCK, 2) == b"BB" and dump.read(BLOCK, 1) == b"\0" and path.stat().st_size == 8 * BLOCK
    dump.close()
    assert not memory.held(), "it goes on afterwards"


def test_a_machine_is_held_by_a_panic_or_stopped(folder: Path) -> None:
    memory = BochsMemory(folder)
    assert not memory.held()
    append(folder, "00000000009p[ACPI  ] ")
    assert memory.held(), "the line is not complete as long as it is held"
    process = int((folder / EMULATOR_PID).read_text())
    (folder / EMULATOR_LOG).write_text("")
    other = BochsMemory(folder)
    assert not other.held()
    os.kill(process, signal.SIGSTOP)
    until(other.held)


def test_a_number_that_another_process_has_by_now_is_no_machine(folder: Path) -> None:
    (folder / EMULATOR_PID).write_text(f"{os.getpid()}\n")
    with pytest.raises(MachineError, match="no machine runs"):
        BochsMemory(folder)
    assert live_memory(folder) is None
    (folder / EMULATOR_PID).unlink()
    assert live_memory(folder) is None


def test_an_emulator_is_held_in_the_line_about_its_end(tmp_path: Path) -> None:
    log, done = tmp_path / "log", tmp_path / "done"
    pieces = ["00000000001i[MEM0  ] ", "512.00MB\n", "00000000009p[ACPI  ] ", ">>PANIC<< ", "soft power off\n"]
    program = f"""
import os, pathlib
for piece in {pieces!r}:
    os.write(2, piece.encode())
pathlib.Path({str(done)!r}).touch()
"""
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_DIRECT)
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs) as process:
        os.close(theirs)
        thread = _HoldingLog(process, os.fdopen(ours, "rb"), log)
        thread.start()
        until(lambda: log.exists() and log.read_text().endswith("p[ACPI  ] "))
        state = Path("/proc") / str(process.pid) / "stat"
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "S")
        assert not done.exists()
        thread.let_go()
        process.wait(SECONDS)
        thread.join(SECONDS)
    assert done.exists() and log.read_text() == "".join(pieces)

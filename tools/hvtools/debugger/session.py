# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Starts a machine that waits for a debugger, and GDB on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from hvtools import ui
from hvtools.boot import startup
from hvtools.boot.hvlog import LogLine, parse_log, reasons
from hvtools.boot.strategy import BootStrategy, State
from hvtools.errors import HvError, UsageError
from hvtools.machines.protocols import Debuggable
from hvtools.machines.registry import DEFAULT_PLATFORM, platform_named

SETTING = {"wait": "debugger"}
"""The option of the hypervisor by which it waits."""

COMMANDS = Path(__file__).with_name("commands.py")

_WAITS = re.compile(r"cpu0 wait gate=(0x[0-9a-f]+)\s")
_FOREVER = 1e6  # seconds; poll(2) takes no more than 2e9 ms
_NAME = re.compile(r"[A-Za-z_][\w.]*|[\w./-]+:\d+|\*?0x[0-9A-Fa-f]+")


def check(platform: str, cpus: int, breaks: Sequence[str], cpu: int | None) -> None:
    """Refuse what cannot be debugged, before anything starts.

    Raises:
        UsageError: says why.
    """
    found = platform_named(platform)
    if "debugger" not in found.capabilities:
        raise UsageError(f"{platform} has no GDB stub: use --on {DEFAULT_PLATFORM}")
    most = found.debugger_cpus
    if most is not None and cpus > most:
        raise UsageError(f"--cpus {cpus}: {platform} with a GDB stub has {most} at most: say --cpus {most}")
    if cpu is not None and not 0 <= cpu < cpus:
        raise UsageError(f"--cpu {cpu}: the machine has processors 0 to {cpus - 1}")
    for place in breaks:
        if not _NAME.fullmatch(place):
            raise UsageError(f"--break {place}: must be a function, FILE:LINE, or *0xADDRESS")


@dataclass(frozen=True)
class Waiting:
    """A machine that waits for its debugger.

    Attributes:
        gate: where a 1 lets it go on.
        memory: the log line `memory`.
        image: the log line `image`.
    """

    gate: int
    memory: LogLine
    image: LogLine


def wait(strategy: BootStrategy) -> Waiting:
    """Go to where the hypervisor is built and not yet launched.

    Raises:
        HvError: it does not get there.
    """
    strategy.transition(State.SHELL)
    index, match = strategy.expect([_WAITS, startup.LOADED])
    lines = parse_log(strategy.machine.hypervisor_log())
    if index == 1:
        raise HvError(f"HvDxe does not start: {'; '.join(reasons(lines)) or 'its log does not say why'}")
    found = {line.event: line for line in lines}
    return Waiting(int(match[1], 16), found["memory"], found["image"])


def offset_of(symbols: Path, image: LogLine) -> int:
    """Tell how far the symbols of a build are from where it runs.

    Args:
        symbols: HvDxe.debug.
        image: the log line `image`.

    Raises:
        UsageError: the file has no code.
    """
    try:
        with symbols.open("rb") as file:
            section = ELFFile(file).get_section_by_name(".text")
    except (OSError, ELFError) as error:
        raise UsageError(f"{symbols} cannot be read: {error}") from error
    if section is None:
        raise UsageError(f"{symbols} has no code in it")
    return int(image.fields["text"], 16) - int(section["sh_addr"])


def arguments(
    symbols: Path, socket: Path, waiting: Waiting, breaks: Sequence[str], cpu: int | None, script: Path | None
) -> list[str]:
    """Give GDB's command line.

    Args:
        symbols: HvDxe.debug.
        socket: of the machine's GDB stub.
        waiting: the machine.
        breaks: where to stop.
        cpu: the processor that is looked at, and alone stops at `breaks`; None for all.
        script: commands that GDB runs instead of asking for them.
    """
    thread = "" if cpu is None else f" thread {cpu + 1}"
    commands = [
        "set confirm off",
        "set architecture i386:x86-64",
        # Behind the launch comes the firmware, whose frames lead nowhere.
        "set backtrace limit 16",
        f"add-symbol-file {symbols} -o {offset_of(symbols, waiting.image):#x}",
        f"target remote {socket}",
        f"set {{unsigned char}} {waiting.gate:#x} = 1",
        f"source {COMMANDS}",
        *(f"break {place}{thread}" for place in breaks),
    ]
    if cpu is not None:
        commands.append(f"thread {cpu + 1}")
    line = ["gdb", "-nx", "-q"]
    if script is not None:
        line += ["-batch", "-iex", "set pagination off"]
    for command in commands:
        line += ["-ex", command]
    return [*line, "-x", str(script)] if script is not None else line


def debug(strategy: BootStrategy, symbols: Path, breaks: Sequence[str], cpu: int | None, script: Path | None) -> int:
    """Run GDB on a machine until the person, or the script, is done.

    Args:
        strategy: the machine, off.
        symbols: HvDxe.debug of the build that it loads.
        breaks: where to stop.
        cpu: the processor that is meant, None for all.
        script: commands instead of a person's.

    Returns:
        GDB's exit code.
    """
    with ui.step("booting to where HvDxe is built and not launched"):
        waiting = wait(strategy)
    with tempfile.TemporaryDirectory(prefix="hv-gdb-") as folder:
        socket = Path(folder) / "gdb"
        machine = strategy.machine
        assert isinstance(machine, Debuggable), "the capability says so"
        machine.open_debugger(socket)
        # An emulator whose console nobody reads stands still.
        threading.Thread(target=strategy.machine.console.drain, args=(_FOREVER,), daemon=True).start()
        known = {name: int(value, 16) for name, value in waiting.memory.fields.items()}
        command = arguments(symbols, socket, waiting, breaks, cpu, script)
        return _gdb(command, {**os.environ, "HV_DEBUG_MACHINE": json.dumps(known)})


def _gdb(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run GDB in the foreground: Ctrl-C is for it, and not for us."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        return subprocess.run(command, env=environment, preexec_fn=default).returncode
    finally:
        signal.signal(signal.SIGINT, before)

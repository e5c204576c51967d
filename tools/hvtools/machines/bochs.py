# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Bochs: machine specifications to a configuration, and machines that run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hvtools import bochs, cache
from hvtools.errors import HvError, UsageError
from hvtools.machines.console import SerialConsole, clean
from hvtools.machines.emulator import Emulator
from hvtools.machines.gdbstub import BochsStub
from hvtools.machines.live import BochsMemory
from hvtools.machines.process import die_with
from hvtools.machines.protocols import Cause, Ending, MachineError
from hvtools.machines.qmp import listening
from hvtools.machines.spec import MachineSpec

ACCELERATOR = "interpreter"
# With MONITOR/MWAIT the processors that the firmware parks in MWAIT take ten times the time of all the rest.
WITHOUT_MWAIT = "-mwait,-mwaitx"
VMX_CPU = f"{bochs.VMX_MODEL},{WITHOUT_MWAIT}"
SVM_CPU = f"{bochs.SVM_MODEL},{WITHOUT_MWAIT}"

VGA_BIOS = Path("/usr/share/vgabios/vgabios.bin")
CONFIGURATION = "bochsrc"

_IPS = 100_000_000  # instructions per virtual second
_HOST_MIB = 2048  # the most that Bochs keeps in memory; the rest is in an unlinked file
_TIME = 1_700_000_000  # the clock at power-on: always the same, so that runs are the same
_START_SECONDS = 30.0  # from the start of the process to its console; it takes 0.1 s on an idle host
_RETRY_SECONDS = 0.05
_LOG_END_SECONDS = 5.0  # from the end of the process to the end of its log

_NAME = re.compile(r"[a-z0-9_.]+")
_PANIC_BEGINS = re.compile(rb"\d+p\[")
_RESET = "bx_pc_system_c::Reset("
_PANIC = re.compile(r"^(\d+)p\[[^\]]*\] >>PANIC<< (.*)$", re.MULTILINE)
_POWERED_OFF = ("ACPI control: soft power off", "Shutdown port: shutdown requested")
_TRIPLE_FAULT = re.compile(r"exception\(\): 3rd \(\d+\) exception with no resolution")
_COMPLAINT = re.compile(r"exiting with the following message:\s*\n(?:\[[^\]]*\] *)?(.*)")


@dataclass(frozen=True)
class Firmware:
    """OVMF in the two parts that the distribution has, variables first in the flash."""

    variables: Path
    code: Path


FIRMWARE = (
    Firmware(Path("/usr/share/OVMF/OVMF_VARS.fd"), Path("/usr/share/OVMF/OVMF_CODE.fd")),
    Firmware(Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), Path("/usr/share/OVMF/OVMF_CODE_4M.fd")),
)
"""By preference: Bochs has room for 4 MiB too, but the image of 2 MiB starts faster. Newer releases lack that one."""


def firmware_image(firmware: Sequence[Firmware] = FIRMWARE) -> Path:
    """Join the parts of the first OVMF that is installed, in the cache.

    Raises:
        HvError: none is installed.
    """
    for parts in firmware:
        if parts.variables.is_file() and parts.code.is_file():
            key = cache.key_of("ovmf", cache.sha256(parts.variables), cache.sha256(parts.code))
            found = parts

            def join(tree: Path, found: Firmware = found) -> None:
                (tree / "OVMF.fd").write_bytes(found.variables.read_bytes() + found.code.read_bytes())

            return cache.default().tree(key, "OVMF for Bochs", join, check=("OVMF.fd",)) / "OVMF.fd"
    raise HvError(f"the firmware {firmware[0].code} is not there: run `hv setup`")


@dataclass(frozen=True)
class Processor:
    """A model, and features that it is to have or to lack, in Bochs' words."""

    model: str
    excluded: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def parse_processor(text: str) -> Processor:
    """Read `MODEL,-FEATURE,+FEATURE`.

    Raises:
        UsageError: it is not of this form.
    """
    model, *flags = text.split(",")
    features: dict[str, list[str]] = {"-": [], "+": []}
    for flag in flags:
        if flag[:1] not in features or not _NAME.fullmatch(flag[1:]):
            raise UsageError(f"--cpu {text}: must be MODEL,-FEATURE,+FEATURE,... as in {SVM_CPU}")
        features[flag[0]].append(flag[1:])
    if not _NAME.fullmatch(model):
        raise UsageError(f"--cpu {text}: {model!r} is no name of a model")
    return Processor(model, tuple(features["-"]), tuple(features["+"]))


def _quoted(path: Path) -> str:
    text = str(path)
    # A configuration has no escapes, and it replaces environment variables.
    if set('"$') & set(text) or not text.isprintable():
        raise UsageError(f"{text!r} is no path that Bochs' configuration can hold")
    return f'"{text}"'


def configuration(spec: MachineSpec, default_cpu: str, image: Path, port: int, debug_port: int | None = None) -> str:
    """Turn a specification into Bochs' configuration.

    The disk is written to an unlinked file of its own, so that the image stays as it is. The second serial port goes to
    a file. The log goes to standard error: panics, errors, and resets.

    Args:
        spec: the machine.
        default_cpu: the processor, if the specification names none.
        image: the firmware.
        port: TCP port of this host where the console is awaited.
        debug_port: the one where the stub for GDB is to be, None for none.

    Raises:
        UsageError: a part cannot be expressed.
    """
    if spec.accelerator not in (None, ACCELERATOR):
        raise UsageError(f"--accel {spec.accelerator}: Bochs has one way to execute code only, {ACCELERATOR}")
    processor = parse_processor(spec.cpu_model or default_cpu)
    cpu = [
        f"model={processor.model}",
        f"count={spec.cpus}",
        f"ips={_IPS}",
        f"reset_on_triple_fault={int(spec.restart)}",
        "ignore_bad_msrs=1",  # OVMF reads MSRs that the models do not have
    ]
    for name, features in (("exclude_features", processor.excluded), ("add_features", processor.added)):
        if features:
            cpu.append(f'{name}="{" ".join(features)}"')
    return "".join(
        line + "\n"
        for line in (
            "display_library: nogui",
            f"cpu: {', '.join(cpu)}",
            f"memory: guest={spec.memory_mib}, host={min(spec.memory_mib, _HOST_MIB)}",
            f"romimage: file={_quoted(image)}",
            f"vgaromimage: file={_quoted(VGA_BIOS)}",
            "pci: enabled=1, chipset=i440fx",
            f"clock: sync=none, time0={_TIME}",
            f"ata0-master: type=disk, path={_quoted(spec.disk)}, mode=volatile, cylinders=0",
            "boot: disk",
            f"com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}",
            f"com2: enabled=1, mode=file, dev={_quoted(spec.second_serial_log)}",
            "log: -",
            "panic: action=fatal",
            "error: action=report",
            # By what the module memory says, the guest's memory is found in that of the process.
            "info: action=ignore, pc_system=report, memory=report",
            "debug: action=ignore, memory=report",
            *([] if debug_port is None else [f"gdbstub: enabled=1, port={debug_port}"]),
        )
    )


def _free_port() -> int:
    """Find a port for the emulator, which takes a number only."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ending_of(log: str, status: int, reset: bool) -> Ending:
    """Conclude from what an emulator left how its machine ended.

    Args:
        log: its log.
        status: return code of the process, negative for a signal.
        reset: the process was ended because the machine was reset.
    """
    if reset:
        return Ending(Cause.REBOOT, "reset")
    panics = _PANIC.findall(log)
    ticks, message = (int(panics[-1][0]), panics[-1][1].strip()) if panics else (None, "no message")
    if message in _POWERED_OFF:
        return Ending(Cause.POWEROFF, "powered off", ticks)
    if _TRIPLE_FAULT.match(message):
        return Ending(Cause.TRIPLE_FAULT, "a processor had a triple fault", ticks)
    if status < 0:
        return Ending(Cause.CRASHED, f"the emulator died of {signal.Signals(-status).name}: {message}", ticks)
    return Ending(Cause.CRASHED, f"the emulator ended with status {status}: {message}", ticks)


class _Log(threading.Thread):
    """Writes the emulator's log to a file, and ends the emulator at a reset if a reset is to end the machine.

    Bochs itself has no such option. A thread, because meanwhile somebody waits for the console.
    """

    def __init__(self, process: subprocess.Popen[bytes], source: IO[bytes], path: Path, ends_at_reset: bool) -> None:
        super().__init__(name="bochs-log", daemon=True)
        self._process = process
        self._source = source
        self._path = path
        self._ends_at_reset = ends_at_reset
        self._resets = 0

    @property
    def reset_ended_it(self) -> bool:
        """The machine was reset, and therefore its emulator was ended."""
        return self._ends_at_reset and self._resets > 1  # power-on is the first

    def run(self) -> None:
        with self._source, self._path.open("wb") as file:
            for line in self._source:
                file.write(line)
                file.flush()
                if _RESET.encode() in line:
                    self._resets += 1
                    if self.reset_ended_it:
                        self._process.kill()


class _HoldingLog(_Log):
    """Holds an emulator in the first words that it says of its end, while it still has the machine's memory.

    The pipe has room for one write, and each piece of a line is one. That one line more is not read keeps the emulator
    in the next write but one, which is of the same line.
    """

    def __init__(self, process: subprocess.Popen[bytes], source: IO[bytes], path: Path) -> None:
        super().__init__(process, source, path, False)
        self._over = threading.Event()

    def let_go(self) -> None:
        """Read the rest: the emulator was ended."""
        self._over.set()

    def run(self) -> None:
        with self._source, self._path.open("wb", buffering=0) as file:
            while said := os.read(self._source.fileno(), select.PIPE_BUF):
                file.write(said)
                if _RESET.encode() in said:
                    self._resets += 1
                    if self._resets > 1:
                        self._process.send_signal(signal.SIGSTOP)
                if _PANIC_BEGINS.match(said):
                    self._over.wait()


class BochsMonitor:
    """The view from outside: Bochs has none."""

    def resume(self) -> None:
        """Do nothing: the processors run since power-on, and what they wrote is kept for the console."""


class BochsMachine(Emulator):
    """One Bochs process and the ends of its wires."""

    def __init__(
        self, spec: MachineSpec, listener: Callable[[str], None] | None = None, default_cpu: str = SVM_CPU
    ) -> None:
        """Describe the machine; nothing runs yet.

        Args:
            spec: what it is made of.
            listener: called with each piece of console output.
            default_cpu: the processor, if the specification names none.
        """
        super().__init__(spec, listener)
        self._default_cpu = default_cpu
        self._monitor = BochsMonitor()
        self._log: _Log | None = None
        self._stub: BochsStub | None = None

    @property
    def monitor(self) -> BochsMonitor:
        """The view from outside."""
        return self._monitor

    def open_debugger(self, path: Path) -> None:
        """Let GDB connect to a socket at `path`; the processor stops when it does.

        Raises:
            MachineError: the machine was not made for it.
        """
        if self._stub is None:
            raise MachineError("this Bochs was started without its GDB stub")
        self._stub.listen(listening(path))

    def hypervisor_log(self) -> str:
        """Give the hypervisor's log so far: its lines on the second serial port, among those of the firmware."""
        path = self._spec.second_serial_log
        if not path.exists():
            return ""
        lines = clean(path.read_text("utf-8", "replace")).splitlines()
        return "".join(line[line.index("hv: ") :] + "\n" for line in lines if "hv: " in line)

    def _start(self) -> None:
        program = bochs.provide(self._spec.debugger).program
        debug_port = _free_port() if self._spec.debugger else None
        image = self._spec.firmware or firmware_image()
        if not VGA_BIOS.is_file():
            raise HvError(f"{VGA_BIOS} is not there: run `hv setup`")
        with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
            path = self._spec.folder / CONFIGURATION
            path.write_text(configuration(self._spec, self._default_cpu, image, server.getsockname()[1], debug_port))
            heard_log, said_log = os.pipe2(os.O_CLOEXEC | (os.O_DIRECT if self._spec.hold else 0))
            if self._spec.hold:
                fcntl.fcntl(said_log, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
            source = os.fdopen(heard_log, "rb")
            with self._spec.emulator_errors.open("wb") as errors, os.fdopen(said_log, "wb") as log:
                self._process = subprocess.Popen(
                    [str(program), "-q", "-f", str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we end the emulator in our own order
                    preexec_fn=die_with(os.getpid()),
                )
            self._spec.emulator_pid.write_text(f"{self._process.pid}\n")
            if self._spec.hold:
                self._log = _HoldingLog(self._process, source, self._spec.emulator_log)
            else:
                self._log = _Log(self._process, source, self._spec.emulator_log, not self._spec.restart)
            self._log.start()
            heard = self._connected(server, self._process).detach()
            self._console = SerialConsole(heard, os.dup(heard), self._spec.console_log, self._listener)
        if debug_port is not None:
            self._stub = BochsStub(self._reached(debug_port), lambda: BochsMemory(self._spec.folder))
            self._stub.start()

    def _connected(self, server: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
        """Wait until the emulator connects its console, or ends."""
        ended = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(server, select.POLLIN)
            poll.register(ended, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(_START_SECONDS * 1000)}
        finally:
            os.close(ended)
        if server.fileno() in ready:
            return server.accept()[0]
        self.kill()
        if not ready:
            raise MachineError("the emulator does not connect its console")
        raise UsageError(f"the emulator refuses this machine: {self._complaint()}")

    def _reached(self, port: int) -> socket.socket:
        """Connect to the stub: the emulator opens it soon after it has connected its console, and tells nobody."""
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                endpoint = socket.create_connection(("127.0.0.1", port))
                endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return endpoint
            if self.pid is None or time.monotonic() > end:
                raise MachineError("the emulator opens no GDB stub")
            time.sleep(_RETRY_SECONDS)

    def _complaint(self) -> str:
        found = _COMPLAINT.search(self._emulator_log())
        return found[1].strip() if found else "it says nothing"

    def _emulator_log(self) -> str:
        path = self._spec.emulator_log
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def _conclude(self) -> Ending:
        assert self._process is not None and self._log is not None
        self._log.join(_LOG_END_SECONDS)
        self._spec.hypervisor_log.write_text(self.hypervisor_log(), "utf-8")
        return ending_of(self._emulator_log(), self._process.returncode, self._log.reset_ended_it)

    def _close(self) -> None:
        self._spec.emulator_pid.unlink(missing_ok=True)
        if self._process is not None:
            if isinstance(self._log, _HoldingLog):
                self._log.let_go()
            with contextlib.suppress(OSError):  # a full disk is no reason to fail here
                self._conclude()

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""QEMU: machine specifications to arguments, and machines that run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools.errors import HvError, UsageError
from hvtools.machines.console import SerialConsole
from hvtools.machines.emulator import END_SECONDS, Emulator
from hvtools.machines.process import die_with
from hvtools.machines.protocols import Cause, Ending, MachineError
from hvtools.machines.qmp import QmpMonitor, listening
from hvtools.machines.spec import MachineSpec
from hvtools.machines.tpm import SoftwareTpm

EMULATOR = "qemu-system-x86_64"
DEFAULT_ACCELERATOR = "tcg,thread=single"
# An EPYC with what this project needs. Without MONITOR/MWAIT, because the firmware parks its processors in MWAIT
# from ExitBootServices on, and an emulated MWAIT burns a whole host processor for each.
DEFAULT_CPU = "EPYC,+svm,+npt,+vgif,-monitor"

_DEBUG_PORT = 0x402
_PIPE_BYTES = 1 << 20  # Linux gives this to everybody (pipe-max-size)


@dataclass(frozen=True)
class Firmware:
    """An OVMF image in two parts, each a flash device."""

    code: Path = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
    variables: Path = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    secure_code: Path = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
    """What checks signatures, with system management mode."""

    def parts(self, spec: MachineSpec) -> tuple[Path, ...]:
        """The files that a machine's flash is made from."""
        if spec.firmware is not None:
            return (spec.firmware,)
        return (self.code, self.variables) if spec.variables is None else (self.secure_code, spec.variables)


def _option(*fields: str, **values: object) -> str:
    """Join an option's fields; a comma inside a value is doubled, as QEMU wants it."""
    parts = list(fields)
    parts += [f"{name}={str(value).replace(',', ',,')}" for name, value in values.items()]
    return ",".join(parts)


def split_accelerator(text: str) -> tuple[str, str]:
    """Take `tcg,icount:shift=3,sleep=off` apart: counting instructions is an option of its own in QEMU.

    Returns:
        what -accel gets, and what -icount gets.
    """
    accelerator, _, counting = text.partition(",icount:")
    return accelerator, counting


def qemu_arguments(
    spec: MachineSpec, firmware: Firmware, monitor: int, attach: int, tpm: int | None = None
) -> list[str]:
    """Turn a specification into QEMU's arguments, without the program's name.

    The processors are stopped at first (-S). Disk and variables are written to snapshots, so that their files stay as
    they are. The second serial port and the debug port go to files, resets and triple faults to the emulator's log.

    The console is a pair of pipes and not a socket: a socket holds a few hundred characters that come one by one. When
    it is full the emulated port stands still and then drops characters, and the firmware takes it for broken.

    Args:
        spec: the machine.
        firmware: its OVMF image, if the specification names none.
        monitor: descriptor of a connected stream socket that the emulator inherits.
        attach: descriptor of a listening one, for a second monitor.
        tpm: descriptor of a connected one, the control channel of an emulated TPM.
    """
    arguments = [*hardware_arguments(spec, firmware), "-S"]
    if tpm is not None:
        arguments += ["-chardev", _option("socket", id="tpm", fd=tpm)]
        arguments += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    arguments += ["-chardev", _option("pipe", id="console", path=spec.console_pipe)]
    arguments += ["-serial", "chardev:console"]
    arguments += ["-chardev", _option("file", id="second", path=spec.second_serial_log)]
    arguments += ["-serial", "chardev:second"]
    arguments += ["-chardev", _option("file", id="debug", path=spec.hypervisor_log)]
    arguments += ["-device", f"isa-debugcon,iobase={_DEBUG_PORT:#x},chardev=debug"]
    arguments += ["-chardev", _option("socket", id="monitor", fd=monitor)]
    arguments += ["-mon", "chardev=monitor,mode=control"]
    arguments += ["-chardev", _option("socket", id="attach", fd=attach, server="on", wait="off")]
    arguments += ["-mon", "chardev=attach,mode=control"]
    arguments += ["-d", "cpu_reset", "-D", str(spec.emulator_log)]
    return arguments


def hardware_arguments(spec: MachineSpec, firmware: Firmware) -> list[str]:
    """Give QEMU's arguments for all of a machine but its wires to the outside."""
    arguments = ["-nodefaults", "-no-user-config", "-display", "none"]
    arguments += ["-machine", "q35" if spec.variables is None else "q35,smm=on"]
    accelerator, counting = split_accelerator(spec.accelerator or DEFAULT_ACCELERATOR)
    arguments += ["-accel", accelerator]
    if counting:
        arguments += ["-icount", counting]
    arguments += ["-cpu", spec.cpu_model or DEFAULT_CPU]
    arguments += ["-smp", str(spec.cpus)]
    arguments += ["-m", f"{spec.memory_mib}M"]
    at_reset, at_end = "reset" if spec.restart else "shutdown", "pause" if spec.hold else "poweroff"
    arguments += ["-action", f"reboot={at_reset},shutdown={at_end}"]
    # An IOMMU has to come before the devices that are behind it.
    for device in spec.devices:
        arguments += ["-device", device]
    flash = {"if": "pflash", "format": "raw"}
    if spec.variables is not None:
        arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]  # only the SMI handler writes to it
    for unit, part in enumerate(firmware.parts(spec)):
        written = {"snapshot": "on"} if unit == 1 or spec.firmware is not None else {"readonly": "on"}
        arguments += ["-drive", _option(**flash, unit=unit, **written, file=part)]
    arguments += ["-drive", _option(**{"if": "none"}, id="esp", format="raw", snapshot="on", file=spec.disk)]
    if spec.usb:
        arguments += ["-device", "qemu-xhci", "-device", "usb-storage,drive=esp,removable=on,bootindex=0"]
    else:
        arguments += ["-device", "virtio-blk-pci,drive=esp"]
    if spec.installed is not None:
        arguments += ["-drive", _option(**{"if": "none"}, id="disk", format="raw", snapshot="on", file=spec.installed)]
        arguments += ["-device", "virtio-blk-pci,drive=disk,bootindex=1"]
    return arguments


def ending_of(events: Sequence[dict[str, object]], emulator_log: str, status: int, errors: str) -> Ending:
    """Conclude from what an emulator left how its machine ended.

    Args:
        events: QMP events in order.
        emulator_log: what `-d cpu_reset` recorded.
        status: return code of the process, negative for a signal.
        errors: its standard error.
    """
    reasons = []
    for event in events:
        data = event.get("data")
        if event.get("event") == "SHUTDOWN" and isinstance(data, dict):
            reasons.append(str(data.get("reason")))
    reason = reasons[-1] if reasons else ""
    if reason == "guest-shutdown":
        return Ending(Cause.POWEROFF, "powered off")
    if reason == "guest-reset":
        # The emulator reports a triple fault as any other reset; its log tells them apart.
        if "Triple fault" in emulator_log:
            return Ending(Cause.TRIPLE_FAULT, "a processor had a triple fault")
        return Ending(Cause.REBOOT, "reset")
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "no message")
    if status < 0:
        return Ending(Cause.CRASHED, f"the emulator died of {signal.Signals(-status).name}: {last}")
    return Ending(Cause.CRASHED, f"the emulator ended with status {status}: {last}")


@contextlib.contextmanager
def console_pipes(path: Path) -> Iterator[tuple[int, int]]:
    """Make the named pipes `path`.in and `path`.out; the names go away at the end, when the emulator has opened them.

    Yields:
        our ends: what the machine writes is read from the first, what is typed is written to the second.
    """
    names = [path.with_name(f"{path.name}{suffix}") for suffix in (".in", ".out")]
    try:
        for name in names:
            name.unlink(missing_ok=True)
            os.mkfifo(name, 0o600)
        # Without O_NONBLOCK, or reading as well as writing, a pipe opens only when its other end does.
        heard = os.open(names[1], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        typed = os.open(names[0], os.O_RDWR | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user's share of pipe memory may be used up
            fcntl.fcntl(heard, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield heard, typed
    finally:
        for name in names:
            name.unlink(missing_ok=True)


class QemuMachine(Emulator):
    """One QEMU process and the ends of its wires."""

    def __init__(
        self, spec: MachineSpec, listener: Callable[[str], None] | None = None, firmware: Firmware | None = None
    ) -> None:
        """Describe the machine; nothing runs yet.

        Args:
            spec: what it is made of.
            listener: called with each piece of console output.
            firmware: the OVMF image, the distribution's if none is given.
        """
        super().__init__(spec, listener)
        self._firmware = firmware or Firmware()
        self._monitor: QmpMonitor | None = None
        self._tpm: SoftwareTpm | None = None

    @property
    def monitor(self) -> QmpMonitor:
        """The view from outside.

        Raises:
            MachineError: it was never switched on.
        """
        if self._monitor is None:
            raise MachineError("the machine is off")
        return self._monitor

    def open_debugger(self, path: Path) -> None:
        """Let GDB connect to a socket at `path`; the processors stop when it does.

        Raises:
            MachineError: the emulator does not.
        """
        stub = f"gdbserver unix:{path},server=on,wait=off"
        said = self.monitor.execute("human-monitor-command", {"command-line": stub})
        if not path.exists():
            raise MachineError(f"the emulator opens no GDB stub: {said}")

    def hypervisor_log(self) -> str:
        """Give the hypervisor's log so far."""
        if not self._spec.hypervisor_log.exists():
            return ""
        return self._spec.hypervisor_log.read_text("utf-8", "replace")

    def _start(self) -> None:
        program = shutil.which(EMULATOR)
        if program is None:
            raise HvError(f"{EMULATOR} is not installed: run `hv setup`")
        for part in self._firmware.parts(self._spec):
            if not part.is_file():
                raise HvError(f"the firmware {part} is not there: run `hv setup`")
        monitor, monitor_far = socket.socketpair()
        with console_pipes(self._spec.console_pipe) as (heard, typed):
            self._console = SerialConsole(heard, typed, self._spec.console_log, self._listener)
            self._monitor = QmpMonitor(monitor)
            attach = listening(self._spec.monitor_socket)
            with contextlib.ExitStack() as far, self._spec.emulator_errors.open("wb") as errors:
                descriptors = [far.enter_context(endpoint).fileno() for endpoint in (monitor_far, attach)]
                if self._spec.tpm:
                    self._tpm = SoftwareTpm()
                    descriptors.append(far.enter_context(self._tpm.start()).fileno())
                self._process = subprocess.Popen(
                    [program, *qemu_arguments(self._spec, self._firmware, *descriptors)],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=descriptors,
                    start_new_session=True,  # Ctrl-C is for us; we end the emulator in our own order
                    preexec_fn=die_with(os.getpid()),
                )
            self._connect(self._monitor)

    def _connect(self, monitor: QmpMonitor) -> None:
        try:
            monitor.connect()
        except MachineError:
            if self._process_ends(END_SECONDS):
                raise UsageError(f"the emulator refuses this machine: {self._complaint()}") from None
            raise

    def _complaint(self) -> str:
        """Give the emulator's last line that is not a mere warning, without the program's name."""
        text = self._spec.emulator_errors.read_text("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and " warning: " not in line]
        return lines[-1].removeprefix(f"{EMULATOR}: ") if lines else "it says nothing"

    def _conclude(self) -> Ending:
        assert self._process is not None
        events = self.monitor.close()
        log = self._spec.emulator_log
        return ending_of(
            events,
            log.read_text("utf-8", "replace") if log.exists() else "",
            self._process.returncode,
            self._spec.emulator_errors.read_text("utf-8", "replace"),
        )

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._tpm is not None:
            self._tpm.close()
        self._spec.monitor_socket.unlink(missing_ok=True)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a machine is made of, without a word about which emulator or board provides it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_CPUS = 255  # xAPIC ids are 8 bits wide and 0xFF is the broadcast
MIN_MEMORY_MIB = 128  # OVMF with its reserved regions, one kernel and its initial RAM disk
MAX_MEMORY_MIB = 1 << 20  # 1 TiB: the 40 address bits that the emulated processors have

CONSOLE_LOG = "console.log"
HYPERVISOR_LOG = "hypervisor.log"
SECOND_SERIAL_LOG = "serial2.log"
MONITOR_SOCKET = "monitor"
EMULATOR_LOG = "emulator.log"
EMULATOR_PID = "emulator.pid"


@dataclass(frozen=True)
class MachineSpec:
    """One machine.

    Attributes:
        cpus: number of logical processors, 1 to MAX_CPUS.
        memory_mib: RAM in MiB.
        folder: the run's folder; the machine writes its logs there and nowhere else.
        disk: image of the disk that the firmware boots from; never modified.
        cpu_model: model and flags in the platform's own words, None for the platform's default.
        accelerator: how the platform executes code, in its own words, None for the platform's default.
        usb: the disk is a USB stick, where the platform can.
        installed: image of a further disk, which comes after the first in the boot order; never modified.
        devices: further devices in the emulator's words.
        hold: when the guest powers off, the machine stands still with its memory until it is switched off.
        restart: a guest's reset restarts the machine; otherwise it ends it.
        debugger: GDB is going to be attached.
        firmware: a whole flash image, never modified; None for the platform's own firmware.
        variables: for the platform's own firmware: its variable store with keys, never modified; it checks signatures,
            and system management mode protects the store. None for one without keys.
        tpm: there is a TPM 2.0, new at power-on.
    """

    cpus: int
    memory_mib: int
    folder: Path
    disk: Path
    cpu_model: str | None = None
    accelerator: str | None = None
    usb: bool = False
    installed: Path | None = None
    devices: tuple[str, ...] = ()
    restart: bool = False
    hold: bool = False
    debugger: bool = False
    firmware: Path | None = None
    variables: Path | None = None
    tpm: bool = False

    def __post_init__(self) -> None:
        """Refuse what no platform can build.

        Raises:
            ValueError: a number is out of range.
        """
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ValueError(f"{self.cpus} CPUs: must be 1 to {MAX_CPUS}")
        if not MIN_MEMORY_MIB <= self.memory_mib <= MAX_MEMORY_MIB:
            raise ValueError(f"{self.memory_mib} MiB of memory: must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")

    @property
    def console_log(self) -> Path:
        """Everything that came over the console, byte for byte."""
        return self.folder / CONSOLE_LOG

    @property
    def console_pipe(self) -> Path:
        """Two named pipes of the console while it is being connected, with `.in` and `.out` behind the name."""
        return self.folder / "console"

    @property
    def hypervisor_log(self) -> Path:
        """The hypervisor's own lines."""
        return self.folder / HYPERVISOR_LOG

    @property
    def second_serial_log(self) -> Path:
        """The second serial port: the hypervisor's lines among the firmware's copy of its console."""
        return self.folder / SECOND_SERIAL_LOG

    @property
    def monitor_socket(self) -> Path:
        """Where others can connect to the platform's monitor while the machine runs, if it has one."""
        return self.folder / MONITOR_SOCKET

    @property
    def emulator_log(self) -> Path:
        """What the platform itself recorded (processor resets, triple faults)."""
        return self.folder / EMULATOR_LOG

    @property
    def emulator_pid(self) -> Path:
        """The number of the platform's process while it runs, where others need it to look into the machine."""
        return self.folder / EMULATOR_PID

    @property
    def emulator_errors(self) -> Path:
        """What the platform's program wrote to its standard error."""
        return self.folder / "emulator.err"

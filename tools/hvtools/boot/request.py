# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What is to be booted: the request, checked before anything is built or started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hvtools.boot import options
from hvtools.boot.startup import quoted
from hvtools.errors import UsageError
from hvtools.images.fat import check_name
from hvtools.machines.registry import DEFAULT_PLATFORM, Box, Platform, platform_named
from hvtools.machines.spec import MachineSpec

DEFAULT_CPUS = 4
DEFAULT_MEMORY_MIB = 512
SECONDS_MAX = 7 * 24 * 3600.0  # poll(2) counts milliseconds in 31 bits, which are 24 days
_BASE_SECONDS = 120.0  # a boot takes 8 s on an idle host of two processors; this is for hosts that are not idle
_SECONDS_PER_CPU = 4.0


@dataclass(frozen=True)
class BootRequest:
    """One boot; the fields are the options of `hv boot`.

    Attributes:
        platform: name of the platform.
        cpus: number of processors.
        memory_mib: RAM in MiB.
        hypervisor: HvDxe is to run.
        firmware: a flash image instead of the platform's own firmware.
        built_in: the firmware has HvDxe inside, so it need not be loaded.
        secure_boot: the firmware starts only what is signed; what is booted is signed, a disk's files as they are.
        keys: folder of the keys for that, made if it is not there; None for keys of this boot alone.
        tpm: there is a TPM, and it is checked that HvDxe was measured into it.
        disk: a whole disk image to boot as it is, as a USB stick where the platform can.
        installed: a second disk, as if an operating system were installed on it.
        kernel: EFI-stub kernel, None for the pinned one.
        initrd: initial RAM disk over which the self-check is laid, None for nothing below it.
        append: further words of the kernel's command line, or the program's.
        script: shell script to run as root.
        application: EFI program to run instead of Linux.
        added: files for /add, by the path below it.
        cpu_model: processor in the platform's words.
        accelerator: accelerator in the platform's words.
        devices: further devices in the emulator's words.
        settings: options of the hypervisor.
        timeout: seconds for everything, None for the default.
        target: which build of HvDxe.
        exact: touch nothing from outside, so that two runs are the same to the tick.
    """

    platform: str = DEFAULT_PLATFORM
    cpus: int = DEFAULT_CPUS
    memory_mib: int = DEFAULT_MEMORY_MIB
    hypervisor: bool = True
    firmware: Path | None = None
    built_in: bool = False
    secure_boot: bool = False
    keys: Path | None = None
    tpm: bool = False
    disk: Path | None = None
    installed: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    script: Path | None = None
    application: Path | None = None
    added: Mapping[PurePosixPath, Path] = field(default_factory=dict)
    cpu_model: str | None = None
    accelerator: str | None = None
    devices: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    target: str = "DEBUG"
    exact: bool = False

    @property
    def starter(self) -> bool:
        """HvStart, and not the shell, starts HvDxe: under Secure Boot there is no shell."""
        return self.secure_boot or self.disk is not None

    @property
    def processor(self) -> str | None:
        """The processor in the platform's words, None for the platform's default."""
        if self.cpu_model is None and self.exact:
            return platform_named(self.platform).exact_cpu
        return self.cpu_model

    @property
    def seconds(self) -> float:
        """The limit of time."""
        if self.timeout is not None:
            return self.timeout
        return (_BASE_SECONDS + _SECONDS_PER_CPU * self.cpus) * platform_named(self.platform).patience

    def checked(self) -> Platform:
        """Refuse what cannot be booted.

        Returns:
            the platform.

        Raises:
            UsageError: with one line that says what is wrong.
        """
        platform = platform_named(self.platform)
        try:
            MachineSpec(self.cpus, self.memory_mib, Path(), Path())
        except ValueError as error:
            raise UsageError(str(error)) from None
        if platform.box is not None:
            self._check_box(platform.box)
        if self.devices and "devices" not in platform.capabilities:
            raise UsageError(f"{platform.name} takes no further devices")
        if self.cpus > 1 and "smp" not in platform.capabilities:
            raise UsageError(f"{platform.name} has one processor only")
        for what, path in (
            ("firmware", self.firmware),
            ("disk image", self.disk),
            ("disk image", self.installed),
            ("kernel", self.kernel),
            ("initial RAM disk", self.initrd),
            ("script", self.script),
            ("application", self.application),
            *(("file to add", path) for path in self.added.values()),
        ):
            if path is not None:
                _check_readable(what, path)
        if self.application is not None:
            linux_only = {"script": self.script, "kernel": self.kernel, "initrd": self.initrd}
            clash = [name for name, value in linux_only.items() if value]
            if clash:
                raise UsageError(f"--run boots no Linux: it does not go with --{clash[0]}")
        self._check_security(platform)
        if self.installed is not None and "usb" not in platform.capabilities:
            raise UsageError(f"--installed: {platform.name} boots from one disk only")
        if self.disk is not None:
            own = {
                "run": self.application, "script": self.script, "kernel": self.kernel, "initrd": self.initrd,
                "append": self.append, "add": self.added, "set": self.settings,
            }  # fmt: skip
            clash = [name for name, value in own.items() if value]
            if clash:
                raise UsageError(f"--disk boots the image as it is: it does not go with --{clash[0]}")
        if self.settings and not self.hypervisor:
            raise UsageError("--set is for the hypervisor: it does not go with --no-hv")
        if self.built_in and not self.hypervisor:
            raise UsageError("--no-hv does not go with a firmware that has HvDxe inside")
        if self.timeout is not None and not 0 < self.timeout <= SECONDS_MAX:
            raise UsageError(f"--timeout must be more than 0 seconds, and at most {SECONDS_MAX:.0f}")
        if self.exact and "ticks" not in platform.capabilities:
            raise UsageError(f"--exact: {platform.name} does not count ticks")
        options.check(self.settings, self.target)
        if not self.starter:
            quoted(self.append)
        for destination in self.added:
            check_name(destination)
        return platform

    def _check_security(self, platform: Platform) -> None:
        for option, wanted in (("secure-boot", self.secure_boot), ("tpm", self.tpm)):
            if wanted and option not in platform.capabilities:
                raise UsageError(f"--{option}: {platform.name} cannot do that")
        if self.keys is not None and not self.secure_boot:
            raise UsageError("--keys is for --secure-boot")
        if self.secure_boot and self.application is not None:
            raise UsageError("--secure-boot boots Linux: it does not go with --run")
        if self.secure_boot and self.disk is not None and self.keys is None:
            raise UsageError("--secure-boot with --disk needs the --keys that its files are signed with")

    def _check_box(self, box: Box) -> None:
        """Refuse what a machine in a lab is not.

        Raises:
            BoxError: with one line.
        """
        for what, asked, there in (
            ("processors", self.cpus, box.cpus),
            ("MiB of memory", self.memory_mib, box.memory_mib),
        ):
            if asked != there:
                raise BoxError(f"{asked} {what} are asked for, and this box has {there}")
        chosen = {
            "cpu": self.cpu_model, "accel": self.accelerator, "installed": self.installed,
            "firmware": None if box.flash else self.firmware,
        }  # fmt: skip
        if clash := [name for name, value in chosen.items() if value is not None]:
            raise BoxError(f"--{clash[0]} cannot be chosen for a box in a lab")


def size_of(platform: Platform) -> tuple[int, int]:
    """The processors and the MiB of memory where nobody asks for any: a box has its own."""
    box = platform.box
    return (DEFAULT_CPUS, DEFAULT_MEMORY_MIB) if box is None else (box.cpus, box.memory_mib)


class BoxError(UsageError):
    """A machine in a lab is what it is, and something else was asked for."""


def _check_readable(what: str, path: Path) -> None:
    if not path.exists():
        raise UsageError(f"the {what} {path} does not exist")
    if not path.is_file():
        raise UsageError(f"the {what} {path} is no file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {error.strerror}") from error


def parse_added(texts: Iterable[str]) -> dict[PurePosixPath, Path]:
    """Read `FILE` and `FILE:DESTINATION`.

    Raises:
        UsageError: two files have one destination.
    """
    added: dict[PurePosixPath, Path] = {}
    for text in texts:
        source, colon, destination = text.rpartition(":")
        if not colon or Path(text).is_file():
            source, destination = text, Path(text).name
        if not source or not destination:
            raise UsageError(f"--add {text}: must be FILE or FILE:DESTINATION")
        path = PurePosixPath(destination)
        if path in added:
            raise UsageError(f"--add: both {added[path]} and {source} would be {path}")
        added[path] = Path(source)
    return added


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """Read `OPTION=VALUE`; the last of a name wins.

    Raises:
        UsageError: there is no value.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text}: must be OPTION=VALUE")
        settings[name] = value
    return settings

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What each verb needs from the machine's own packages."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from hvtools import apt


@dataclass(frozen=True)
class Need:
    """A Debian package, and how to see that what it brings is there, from wherever it came."""

    package: str
    probe: str
    """A command to be found in PATH, or the absolute path of a file."""

    def is_met(self) -> bool:
        """Tells whether it is there."""
        return Path(self.probe).exists() if self.probe.startswith("/") else shutil.which(self.probe) is not None


_FETCH = (
    Need("git", "git"),  # stuart asks it about the work tree
    Need("xz-utils", "xz"),
)
_BUILD = (
    *_FETCH,
    Need("gcc", "gcc"),
    Need("g++", "g++"),
    Need("make", "make"),
    Need("nasm", "nasm"),
    Need("acpica-tools", "iasl"),
    Need("uuid-dev", "/usr/include/uuid/uuid.h"),
)
_BOOT = (
    *_BUILD,
    Need("qemu-system-x86", "qemu-system-x86_64"),
    Need("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd"),
    Need("mtools", "mcopy"),
    Need("dosfstools", "mkfs.fat"),
    Need("fdisk", "sfdisk"),
    Need("cpio", "cpio"),
)
_BOCHS = (
    Need("xz-utils", "xz"),
    Need("gcc", "gcc"),
    Need("g++", "g++"),
    Need("make", "make"),
    Need("vgabios", "/usr/share/vgabios/vgabios.bin"),
)
_DEBUG = (Need("gdb", "gdb"),)
_FLASH = (Need("flashrom", "flashrom"),)
_SECURE_BOOT = (
    Need("openssl", "openssl"),
    Need("sbsigntool", "sbsign"),
)
_TPM = (
    Need("swtpm", "swtpm"),
    Need("tpm2-tools", "tpm2_eventlog"),
)
_TEST = (*_BOOT, *_BOCHS, *_FLASH, *_DEBUG, *_SECURE_BOOT, *_TPM)

NEEDS: dict[str, tuple[Need, ...]] = {
    "build": _BUILD,
    "boot": _BOOT,
    "bochs": _BOCHS,
    "debug": _DEBUG,
    "flash": _FLASH,
    "secure-boot": _SECURE_BOOT,
    "tpm": _TPM,
    "test": _TEST,
    "setup": _TEST,
}
"""The needs of each verb that has any, and what a platform, `debug` or an option adds to those of `boot`."""


def missing(verb: str) -> list[str]:
    """The packages that a verb needs and the machine lacks."""
    return list(dict.fromkeys(need.package for need in NEEDS[verb] if not need.is_met()))


def require(verb: str) -> list[str]:
    """Installs what a verb needs and the machine lacks.

    Returns:
        The packages that were installed.

    Raises:
        HvError: they cannot be installed; the message has the command that would do it.
    """
    packages = missing(verb)
    if packages:
        apt.install(packages)
    return packages

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The emulators and tools of this machine: what is there, which version, and whether each platform is ready.

Nothing is installed, fetched or built here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools import bochs, build, cache, edk2, linux
from hvtools.doctor.check import Check, Mark, passed
from hvtools.errors import HvError
from hvtools.machines import bochs as bochs_machine
from hvtools.machines import qemu
from hvtools.toolchain import NEEDS, Need

SETUP = "./hv setup"
CACHE_MIB = 1500  # EDK2, Bochs while it is compiled, kernel and headers: 600 MiB stay
CLONE_MIB = 500  # Python environment and both builds

_ANSWER_SECONDS = 20.0
_VERSION = re.compile(r"\d+(?:\.\d+)+\S*|\b\d{8}\b")
# By probe of the need: how to ask for its version, where there is a way.
_VERSION_OPTION = {"nasm": "-v", "iasl": "-v", "cpio": "--version", "mcopy": "--version"}
# Every processor feature that HvDxe needs of this emulator; `enforce` makes it refuse what it cannot emulate.
_SVM_PROBE = "qemu64,+svm,+npt,enforce"


@dataclass(frozen=True)
class Run:
    """What a program did."""

    status: int | None
    output: str


def run(command: Sequence[str], stdin: str = "") -> Run:
    """Run a program for its output; one that is not there or does not end has no status."""
    try:
        result = subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
        )
    except OSError as error:
        return Run(None, str(error.strerror))
    except subprocess.TimeoutExpired:
        return Run(None, f"it does not end within {_ANSWER_SECONDS:.0f} s")
    return Run(result.returncode, result.stdout)


def version_in(text: str) -> str:
    """The first thing in a program's output that looks like a version; empty when nothing does."""
    match = _VERSION.search(text)
    return match[0].rstrip(",;)") if match else ""


def _debian_version(path: str) -> str:
    """Version of the Debian package that a file is from, empty where dpkg does not know it."""
    owner = run(["dpkg-query", "-S", path])
    if owner.status != 0:
        return ""
    package = owner.output.partition(":")[0].split(",")[0]
    found = run(["dpkg-query", "-W", "-f", "${Version}", package])
    return found.output.strip() if found.status == 0 else ""


def need(wanted: Need) -> Check:
    """Look for what a verb needs, and its version."""
    if not wanted.is_met():
        return Check(wanted.package, Mark.BAD, "not installed", f"{SETUP} (package {wanted.package})")
    path = shutil.which(wanted.probe) or wanted.probe
    return Check(wanted.package, Mark.OK, _debian_version(path) or _own_version(wanted.probe) or path)


def _own_version(probe: str) -> str:
    """What a program that is not Debian's says, empty for a file that is no program."""
    if probe.startswith("/"):
        return ""
    return version_in(run([probe, _VERSION_OPTION.get(probe, "--version")]).output)


def needs() -> list[Check]:
    """Everything that set-up installs by the package manager."""
    unique = {wanted.package: wanted for wanted in NEEDS["setup"]}
    return [need(wanted) for wanted in unique.values()]


def qemu_svm() -> Check:
    """Whether QEMU starts a machine whose emulated processors have SVM with nested paging."""
    if shutil.which(qemu.EMULATOR) is None:
        return Check("qemu-svm", Mark.BAD, f"{qemu.EMULATOR} is not installed", SETUP)
    firmware = qemu.Firmware()
    for part in (firmware.code, firmware.variables):
        if not part.is_file():
            return Check("qemu-svm", Mark.BAD, f"the firmware {part} is not there", f"{SETUP} (package ovmf)")
    version = version_in(run([qemu.EMULATOR, "--version"]).output)
    start = [qemu.EMULATOR, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "q35"]
    probe = run(
        [*start, "-accel", "tcg", "-cpu", _SVM_PROBE, "-qmp", "stdio"],
        '{"execute":"qmp_capabilities"}{"execute":"quit"}',
    )
    if probe.status != 0:
        last = (probe.output.strip().splitlines() or ["it says nothing"])[-1]
        return Check(
            "qemu-svm",
            Mark.BAD,
            f"QEMU {version} has no TCG with SVM and NPT: {last}",
            "QEMU 7.2 or newer, built with TCG",
        )
    return Check("qemu-svm", Mark.OK, f"ready: QEMU {version}, SVM and NPT by TCG")


def bochs_platforms() -> list[Check]:
    """Whether Bochs runs both of its models, on the ROM that its build is tried out with."""
    names = {"bochs-vmx": f"VMX on {bochs.VMX_MODEL}", "bochs-svm": f"SVM on {bochs.SVM_MODEL}"}
    try:
        found = bochs.find()
        if found is None:
            return [Check(name, Mark.BAD, "Bochs is not built yet", f"{SETUP} (once, 2 minutes)") for name in names]
        version = bochs.check(found.program)
    except HvError as error:
        fix = "unset HV_BOCHS, or name a Bochs with VMX, SVM and SMP" if os.environ.get("HV_BOCHS") else SETUP
        return [Check(name, Mark.BAD, error.line, fix) for name in names]
    if not bochs_machine.VGA_BIOS.is_file():
        return [Check(name, Mark.BAD, f"{bochs_machine.VGA_BIOS} is not there", SETUP) for name in names]
    if not any(parts.code.is_file() and parts.variables.is_file() for parts in bochs_machine.FIRMWARE):
        return [Check(name, Mark.BAD, "no OVMF image is there", f"{SETUP} (package ovmf)") for name in names]
    return [Check(name, Mark.OK, f"ready: Bochs {version}, {what}") for name, what in names.items()]


def sources() -> list[Check]:
    """EDK2 and the Linux that is booted."""
    checks = []
    try:
        tree = edk2.find()
        fix = f"{SETUP} (30 MB), or HV_EDK2_DIR=DIR"
        checks.append(passed(tree is not None, "EDK2", tree or "not fetched yet", fix))
    except HvError as error:
        checks.append(Check("EDK2", Mark.BAD, error.line, "HV_EDK2_DIR must name a checkout of EDK2, or be unset"))
    kernel = linux.find()
    checks.append(passed(kernel is not None, "Linux", kernel or "not fetched yet", SETUP))
    return checks


def _existing(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disk() -> list[Check]:
    """Room where things are kept and built."""
    return [
        _room("disk: cache", cache.default_root(), CACHE_MIB, "HV_CACHE=DIR names a folder with more room"),
        _room("disk: clone", build.ROOT, CLONE_MIB, "make room, or clone where there is some; `hv clean` frees builds"),
    ]


def _room(name: str, folder: Path, wanted: int, fix: str) -> Check:
    folder = _existing(folder)
    free = shutil.disk_usage(folder).free >> 20
    if not os.access(folder, os.W_OK):
        return Check(name, Mark.BAD, f"{folder} is not writable for you", f'sudo chown -R "$USER" {folder}')
    return passed(free >= wanted, name, f"{free} MiB free in {folder}, {wanted} are enough", fix)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Builds HvPkg, and OVMF with it inside, with stuart when sources changed, and says where the images are."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvtools import edk2, toolchain, ui
from hvtools.errors import HvError, NoSpaceError
from hvtools.follow import follow
from hvtools.lock import locked

ROOT = Path(__file__).resolve().parents[2]
"""The work tree that this package is installed from."""

TARGETS = ("DEBUG", "RELEASE")
TOOL_CHAIN = "GCC5"
PACKAGES = ("HvPkg", "ovmf")
_STATE = "hv-built.json"
_PROGRESS = "PROGRESS - "
_REWRITTEN = b"# Updated \n"
_LEVEL = re.compile(r"^(ERROR|CRITICAL|WARNING|INFO|PROGRESS|DEBUG)\s*-\s*|^Compiler #\S+ from ")
_MESSAGE = re.compile(r"\.\w+\S*\(?[:(]\d+.*\b(error|warning)\b|undefined reference|^ld: |multiple definition")


@dataclass(frozen=True)
class Product:
    """Something that stuart builds.

    Attributes:
        name: the folder below Build, and the name for people.
        settings: the file for stuart's option -c.
        log: the name in stuart's log files.
        part: the folder of a target whose content is wanted.
        variables: what else its build is given, as NAME=VALUE.
    """

    name: str
    settings: str
    log: str
    part: str = "X64"
    variables: tuple[str, ...] = ()

    def folder(self, target: str, workspace: Path = ROOT) -> Path:
        """What a target's build leaves."""
        return workspace / "Build" / self.name / f"{target}_{TOOL_CHAIN}"


HVPKG = Product("HvPkg", "stuart_settings.py", "HvPkg")


def ovmf(size_mib: int = 4, secure_boot: bool = False) -> Product:
    """OVMF with HvDxe inside.

    Args:
        size_mib: of the flash image, 2 or 4.
        secure_boot: it checks signatures, once it has keys.
    """
    name = f"HvOvmf{size_mib}M{'Secure' if secure_boot else ''}"
    variables = [f"BLD_*_HV_OUTPUT={name}", f"BLD_*_FD_SIZE_{size_mib}MB=TRUE"]
    if secure_boot:
        variables.append("BLD_*_SECURE_BOOT_ENABLE=TRUE")
    return Product(name, "ovmf/PlatformBuild.py", "HvOvmf", "FV", tuple(variables))


@dataclass(frozen=True)
class Built:
    """A finished build."""

    target: str
    folder: Path
    rebuilt: bool


def image_dir(target: str = "DEBUG", workspace: Path = ROOT) -> Path:
    """The folder of the built images, HvDxe.efi and the applications, with their .debug files."""
    return HVPKG.folder(target, workspace) / "X64"


def ovmf_image(target: str = "DEBUG", size_mib: int = 4, secure_boot: bool = False) -> Path:
    """The flash image of OVMF with HvDxe inside, built if its sources changed."""
    return ensure_built(target, product=ovmf(size_mib, secure_boot)).folder / "OVMF.fd"


def log_path(workspace: Path = ROOT, product: Product = HVPKG) -> Path:
    """The log that stuart leaves."""
    return workspace / "Build" / f"BUILDLOG_{product.log}.txt"


def fingerprint(workspace: Path, identity: str, product: Product = HVPKG) -> dict[str, str]:
    """What an image is made from: a checksum for each source file, and the EDK2 and compiler it is built with.

    Args:
        workspace: the clone.
        identity: the identity of its EDK2.
        product: what is made.
    """
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    made = {"": " ".join([identity, compiler, os.environ.get("GCC5_BIN", ""), *product.variables])}
    sources = (path for package in PACKAGES for path in (workspace / package).rglob("*"))
    for path in [workspace / HVPKG.settings, *sorted(sources)]:
        # Documents and the Linux driver are no part of the image.
        if path.is_file() and not {"Docs", "Linux"} & set(path.relative_to(workspace).parts):
            made[str(path.relative_to(workspace))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


def _state(folder: Path) -> dict[str, str] | None:
    """The fingerprint of what is built in a folder; None when there is none, or it was cut off."""
    try:
        state = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


@contextlib.contextmanager
def lock(workspace: Path) -> Iterator[None]:
    """Holds the clone's build folders: two runs in one clone build one after the other."""
    with locked(workspace / ".hv" / "build.lock", lambda: ui.info("waiting for another hv that builds in this clone")):
        yield


def ensure_built(target: str = "DEBUG", workspace: Path = ROOT, force: bool = False, product: Product = HVPKG) -> Built:
    """Builds a target if its sources changed since it was built; installs and fetches what that takes.

    Args:
        target: DEBUG or RELEASE.
        workspace: the clone.
        force: run stuart even when nothing changed.
        product: what is built.

    Raises:
        HvError: it does not build; the compiler's messages were printed.
    """
    toolchain.require("build")
    tree = edk2.ready(workspace)
    folder = product.folder(target, workspace) / product.part
    # What is there needs no lock: somebody who builds it anew has removed the note first.
    if not force and _state(folder) == fingerprint(workspace, tree.identity, product):
        return Built(target, folder, False)
    with lock(workspace):
        wanted = fingerprint(workspace, tree.identity, product)
        built = _state(folder)
        if built == wanted and not force:
            return Built(target, folder, False)
        if built is not None and _make_would_miss(workspace, folder, built, wanted):
            ui.info("a source is older than what was built from it, or EDK2 or the compiler changed: building anew")
            clean(workspace, product)
        (folder / _STATE).unlink(missing_ok=True)
        _drop_unfinished(product.folder(target, workspace))
        _stuart(target, workspace, product)
        # What was read before the build: an edit meanwhile makes the next run build again.
        (folder / _STATE).write_text(json.dumps(wanted, indent=1) + "\n")
    return Built(target, folder, True)


def _make_would_miss(workspace: Path, folder: Path, built: dict[str, str], wanted: dict[str, str]) -> bool:
    """Tells whether a change is one that make, which goes by times, cannot see."""
    if built.get("") != wanted[""]:
        return True
    then = (folder / _STATE).stat().st_mtime_ns
    changed = [name for name in wanted if name and built.get(name) not in (None, wanted[name])]
    return any((workspace / name).stat().st_mtime_ns <= then for name in changed)


def _drop_unfinished(folder: Path) -> None:
    """Removes what a build that failed or was cut off compiled.

    EDK2 rewrites the compiler's dependency files after make succeeded. Until then they name a target that its
    makefile does not have, so that the next build would not see a header that was corrected meanwhile.
    """
    for depends in folder.rglob("*.deps"):
        if not depends.read_bytes().endswith(_REWRITTEN):
            stem = depends.name.partition(".")[0]
            for made in depends.parent.glob(f"{stem}.*"):
                made.unlink(missing_ok=True)


def clean(workspace: Path, product: Product = HVPKG) -> None:
    """Removes what builds left, also EDK2's settings and its data base of parsed files."""
    for name in (f"Build/{product.name}", "Conf"):
        shutil.rmtree(workspace / name, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The environment of stuart: its programs are beside this Python, and nobody else's EDK2 may shine through."""
    drop = ("WORKSPACE", "PACKAGES_PATH", "EDK_TOOLS_PATH", "CONF_PATH", "BASE_TOOLS_PATH", "PYTHONPATH", "MAKEFLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def _stuart(target: str, workspace: Path, product: Product) -> None:
    """Runs the three commands of stuart as any EDK2 platform does."""
    arguments = ["-c", product.settings, f"TARGET={target}", f"TOOL_CHAIN_TAG={TOOL_CHAIN}", *product.variables]
    with ui.step(f"building {product.name} {target}") as step:

        def progress(line: str) -> None:
            if line.startswith(_PROGRESS):
                step.update(line.removeprefix(_PROGRESS).strip())

        for tool in ("stuart_setup", "stuart_update", "stuart_build"):
            step.update(tool)
            command = [str(Path(sys.executable).parent / tool), *arguments]
            code, output = follow(command, workspace, _environment(), progress)
            if code != 0:
                raise _build_error(tool, target, output, workspace, product)


def _build_error(tool: str, target: str, output: list[str], workspace: Path, product: Product) -> HvError:
    """Prints what went wrong, each message once, and gives the one line that sums it up."""
    log = log_path(workspace, product)
    lines = list(output)
    if tool == "stuart_build" and log.is_file():
        # The compiler's own lines are in the log only; before this mark stuart looks at the machine.
        lines += log.read_text(errors="replace").partition("Kicking off build")[2].splitlines()
    if any("No space left on device" in line for line in lines):
        return NoSpaceError(f"no space left on the disk for the build in {workspace / 'Build'}")
    said = [_LEVEL.sub("", line).strip().replace(f"{workspace}/", "") for line in lines]
    # What names a file and a line is worth more than the summaries that follow from it.
    exact = [text for text in said if _MESSAGE.search(text)]
    general = [text for text in said if re.search(r"error|undefined reference", text, re.IGNORECASE)]
    for text in list(dict.fromkeys(exact or general))[:30]:
        ui.info(f"    {text}")
    return HvError(f"{tool} failed for {target}; everything it said is in {log}")

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Builds HvPkg with stuart, when its sources changed, and says where the images are."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvtools import edk2, toolchain, ui
from hvtools.errors import HvError, NoSpaceError
from hvtools.lock import locked

ROOT = Path(__file__).resolve().parents[2]
"""The work tree that this package is installed from."""

TARGETS = ("DEBUG", "RELEASE")
TOOL_CHAIN = "GCC5"
PACKAGES = ("HvPkg", "ovmf")
SETTINGS = "stuart_settings.py"
_STATE = "hv-built.json"
_REWRITTEN = b"# Updated \n"
_LEVEL = re.compile(r"^(ERROR|CRITICAL|WARNING|INFO|PROGRESS|DEBUG)\s*-\s*|^Compiler #\S+ from ")
_MESSAGE = re.compile(r"\.\w+\S*\(?[:(]\d+.*\b(error|warning)\b|undefined reference|^ld: |multiple definition")


@dataclass(frozen=True)
class Built:
    """A finished build."""

    target: str
    folder: Path
    rebuilt: bool


def image_dir(target: str = "DEBUG", workspace: Path = ROOT) -> Path:
    """The folder of the built images, HvDxe.efi and the applications, with their .debug files."""
    return workspace / "Build" / "HvPkg" / f"{target}_{TOOL_CHAIN}" / "X64"


def log_path(workspace: Path = ROOT) -> Path:
    """The log that stuart leaves."""
    return workspace / "Build" / "BUILDLOG_HvPkg.txt"


def fingerprint(workspace: Path, identity: str) -> dict[str, str]:
    """What an image is made from: a checksum for each source file, and the EDK2 and compiler it is built with.

    Args:
        workspace: the clone.
        identity: the identity of its EDK2.
    """
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    made = {"": f"{identity} {compiler} {os.environ.get('GCC5_BIN', '')}"}
    sources = (path for package in PACKAGES for path in (workspace / package).rglob("*"))
    for path in [workspace / SETTINGS, *sorted(sources)]:
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


def ensure_built(target: str = "DEBUG", workspace: Path = ROOT, force: bool = False) -> Built:
    """Builds a target if its sources changed since it was built; installs and fetches what that takes.

    Args:
        target: DEBUG or RELEASE.
        workspace: the clone.
        force: run stuart even when nothing changed.

    Raises:
        HvError: it does not build; the compiler's messages were printed.
    """
    toolchain.require("build")
    tree = edk2.ready(workspace)
    folder = image_dir(target, workspace)
    with lock(workspace):
        wanted = fingerprint(workspace, tree.identity)
        built = _state(folder)
        if built == wanted and not force:
            return Built(target, folder, False)
        if built is not None and _make_would_miss(workspace, folder, built, wanted):
            ui.info("a source is older than what was built from it, or EDK2 or the compiler changed: building anew")
            clean(workspace)
        (folder / _STATE).unlink(missing_ok=True)
        _drop_unfinished(folder)
        _stuart(target, workspace)
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


def clean(workspace: Path) -> None:
    """Removes what builds left, also EDK2's settings and its data base of parsed files."""
    for name in ("Build/HvPkg", "Conf"):
        shutil.rmtree(workspace / name, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The environment of stuart: its programs are beside this Python, and nobody else's EDK2 may shine through."""
    drop = ("WORKSPACE", "PACKAGES_PATH", "EDK_TOOLS_PATH", "CONF_PATH", "BASE_TOOLS_PATH", "PYTHONPATH", "MAKEFLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def _stuart(target: str, workspace: Path) -> None:
    """Runs the three commands of stuart as any EDK2 platform does."""
    arguments = ["-c", SETTINGS, f"TARGET={target}", f"TOOL_CHAIN_TAG={TOOL_CHAIN}"]
    with ui.step(f"building HvPkg {target}") as step:
        for tool in ("stuart_setup", "stuart_update", "stuart_build"):
            step.update(tool)
            code, output = _follow([str(Path(sys.executable).parent / tool), *arguments], workspace, step)
            if code != 0:
                raise _build_error(tool, target, output, workspace)


def _follow(command: list[str], workspace: Path, step: ui.Step) -> tuple[int, list[str]]:
    """Runs a command in a process group of its own, shows its progress, and ends all of the group on Ctrl-C."""
    output: list[str] = []
    with subprocess.Popen(
        command,
        cwd=workspace,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line.rstrip())
                if line.startswith("PROGRESS - "):
                    step.update(line.removeprefix("PROGRESS - ").strip())
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    return process.returncode, output


def _build_error(tool: str, target: str, output: list[str], workspace: Path) -> HvError:
    """Prints what went wrong, each message once, and gives the one line that sums it up."""
    log = log_path(workspace)
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

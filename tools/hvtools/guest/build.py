# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Compiles the programs of the root guest, once for each version of their sources."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from hvtools import build
from hvtools.errors import HvError
from hvtools.images.files import written_whole

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=gnu11", "-static", "-O2", "-Wall", "-Wextra", "-Werror")


def self_check(workspace: Path = build.ROOT) -> Path:
    """Give the static program that is the first of the root guest."""
    return program("hvcheck", workspace)


def program(name: str, workspace: Path = build.ROOT) -> Path:
    """Give a static program.

    Args:
        name: of its source, without suffix.
        workspace: the clone, for HvPkg's generated headers and for the result.

    Raises:
        HvError: there is no compiler, or it refuses.
    """
    include = workspace / "HvPkg" / "Include"
    sources = [_SOURCES / f"{name}.c", _SOURCES / "Base.h", *sorted((include / "Generated").glob("*.h"))]
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in sources:
        digest.update(source.read_bytes())
    folder = workspace / "Build" / "Guest"
    compiled = folder / f"{name}-{digest.hexdigest()[:16]}"
    if compiled.exists():
        return compiled
    compiler = shutil.which("gcc")
    if compiler is None:
        raise HvError("gcc is not installed: run `hv setup`")
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(compiled) as temporary:
        result = subprocess.run(
            [compiler, *_FLAGS, f"-I{_SOURCES}", f"-I{include}", sources[0], "-o", temporary],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            said = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
            raise HvError(f"{sources[0].name} does not compile: {said[0]}")
    return compiled

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The initial RAM disk: busybox, the self-check as its first program, and what the user adds."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from hvtools.errors import HvError
from hvtools.images import cpio
from hvtools.images.files import written_whole

INIT = "/hvtools/init"  # for the kernel's rdinit=
_HOME = "hvtools"
_COMPRESSION = 6


def _applets(busybox: Path) -> list[str]:
    try:
        result = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HvError(f"{busybox} does not list its applets: {error}") from error
    return result.stdout.split()


def entries(
    check: Path, busybox: Path, script: Path | None, added: Mapping[PurePosixPath, Path], standalone: bool
) -> list[cpio.Entry]:
    """List the members of the archive.

    Everything that is ours is below one folder, so that it can be laid over somebody's own initial RAM disk.

    Args:
        check: the static self-check, which is also the first program.
        busybox: a static busybox.
        script: shell script to run as root.
        added: files for /add.
        standalone: there is no other RAM disk below, so /bin and the like are missing.
    """
    members = [
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/mem", 1, 1, 0o640),
        cpio.character_device("dev/null", 1, 3, 0o666),
        cpio.directory("proc"),
        cpio.directory("sys"),
        cpio.directory("tmp", 0o1777),
        cpio.directory("root", 0o700),
        cpio.directory("add"),
        cpio.regular(f"{_HOME}/init", check.read_bytes(), 0o755),
        cpio.regular(f"{_HOME}/bin/busybox", busybox.read_bytes(), 0o755),
        cpio.symlink(f"{_HOME}/bin/hvcheck", "../init"),
    ]
    members += [cpio.symlink(f"{_HOME}/bin/{applet}", "busybox") for applet in _applets(busybox) if applet != "busybox"]
    if standalone:
        members += [cpio.symlink(name, f"{_HOME}/bin") for name in ("bin", "sbin")]
    if script is not None:
        members.append(cpio.regular(f"{_HOME}/script", script.read_bytes(), 0o755))
    for path, source in added.items():
        permissions = 0o755 if source.stat().st_mode & 0o111 else 0o644
        members.append(cpio.regular(f"add/{path}", source.read_bytes(), permissions))
    return members


def build_initramfs(
    target: Path,
    check: Path,
    busybox: Path,
    script: Path | None = None,
    added: Mapping[PurePosixPath, Path] | None = None,
    base: Path | None = None,
) -> None:
    """Write the initial RAM disk to `target`, whole or not at all.

    Args:
        target: the file to make.
        check: the static self-check.
        busybox: a static busybox.
        script: shell script to run as root.
        added: files for /add.
        base: somebody's own initial RAM disk; ours is laid over it (the kernel unpacks one after the other).

    Raises:
        NoSpaceError: the disk has no room.
        HvError: busybox does not run.
    """
    ours = cpio.archive(entries(check, busybox, script, added or {}, standalone=base is None))
    with written_whole(target) as temporary:
        with temporary.open("wb") as file:
            if base is not None:
                below = base.read_bytes()
                file.write(below + bytes(-len(below) % 4))  # an archive begins at a multiple of four bytes
            file.write(gzip.compress(ours, _COMPRESSION, mtime=0))

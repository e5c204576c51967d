# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The EFI system partition: a FAT volume made by dosfstools and filled by mtools."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from hvtools.errors import HvError, UsageError
from hvtools.images.files import check_room, human_size, written_whole

_MIB = 1 << 20
_CLUSTER = 32 << 10  # the largest that mkfs.fat takes: no file wastes more than this
_SLACK = 4 * _MIB  # tables, directories, and some room for the shell to write
_FAT_FILE_MAX = (1 << 32) - 1  # FAT: 32-bit file size
_FORBIDDEN = set('"*:<>?\\|') | {chr(code) for code in range(32)}


def check_name(path: PurePosixPath) -> None:
    """Refuse a path that FAT cannot hold.

    Raises:
        UsageError: it is absolute, leaves the volume, or has a character that FAT does not allow.
    """
    parts = path.parts
    if path.is_absolute() or not parts or ".." in parts:
        raise UsageError(f"{str(path)!r} is no path inside the image")
    for part in parts:
        if _FORBIDDEN & set(part) or len(part) > 255 or part.endswith((".", " ")):
            raise UsageError(f"{str(path)!r} cannot be a name on a FAT volume")


def volume_size(sizes: list[int]) -> int:
    """Give the size in bytes of a volume that holds files of `sizes` bytes."""
    contents = sum(size + -size % _CLUSTER for size in sizes)
    total = contents + contents // 64 + len(sizes) * _CLUSTER + _SLACK  # 1/64: two FATs of 32 bits per 512 bytes
    return total + -total % _MIB


def tool(*command: str | Path, contents: bytes = b"") -> None:
    """Run a program that makes images.

    Raises:
        HvError: it is missing or fails.
    """
    output_of(*command, contents=contents)


def output_of(*command: str | Path, contents: bytes = b"") -> bytes:
    """Run a program that makes or reads images, and give what it says.

    Raises:
        HvError: it is missing or fails.
    """
    name = str(command[0])
    program = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise HvError(f"{name} is not installed: run `hv setup`")
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1", MTOOLSRC=os.devnull, LC_ALL="C.UTF-8")
    result = subprocess.run(
        [program, *command[1:]],
        input=contents,
        capture_output=True,
        env=environment,
        check=False,
    )
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip() or b"no message").decode("utf-8", "replace")
        raise HvError(f"{name} failed: {said.splitlines()[-1]}")
    return result.stdout


def build_volume(
    image: Path, files: Mapping[PurePosixPath, Path | bytes], label: str = "HVPKG", size: int | None = None
) -> None:
    """Make a FAT volume at `image` with `files`, whole or not at all.

    Args:
        image: the file to make; it is replaced if it is there.
        files: paths on the volume, and where the contents are, or the contents.
        label: the volume's name.
        size: bytes of the volume; None for what the files need.

    Raises:
        UsageError: a name or size does not go on a FAT volume, or the disk has no room.
        HvError: a tool is missing or fails.
    """
    folded: dict[str, PurePosixPath] = {}
    sizes = []
    for path, source in files.items():
        check_name(path)
        other = folded.setdefault(str(path).casefold(), path)
        if other != path:
            raise UsageError(f"{str(path)!r} and {str(other)!r} are the same name on a FAT volume")
        length = len(source) if isinstance(source, bytes) else source.stat().st_size
        if length > _FAT_FILE_MAX:
            raise UsageError(f"{str(path)!r} has {human_size(length)}: more than a file on a FAT volume may have")
        sizes.append(length)
    needed = volume_size(sizes)
    total = needed if size is None else size
    if total < needed:
        raise UsageError(f"{human_size(max(total, 0))} for the files are too few: {human_size(needed)} are needed")
    check_room(image.parent, total)
    with written_whole(image) as temporary:
        os.truncate(temporary, total)
        tool("mkfs.fat", "-n", label, temporary)
        folders = sorted({parent for path in files for parent in path.parents if parent.parts})
        if folders:
            tool("mmd", "-i", temporary, *(f"::/{folder}" for folder in folders))
        for path, source in files.items():
            if isinstance(source, bytes):
                tool("mcopy", "-i", temporary, "-", f"::/{path}", contents=source)
            else:
                tool("mcopy", "-i", temporary, source, f"::/{path}")

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Files that appear whole or not at all, and what is said when there is no room for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvtools.errors import HvError, NoSpaceError, UsageError, is_no_space


def human_size(size: int) -> str:
    """Give a number of bytes for people."""
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / (1 << 10):.1f} KiB"


def no_room(folder: Path, size: int | None = None) -> NoSpaceError:
    """Make the error that says that a disk is full."""
    need = "" if size is None else f", {human_size(size)} are needed"
    return NoSpaceError(f"no disk space in {folder} for the boot image{need}")


def check_room(folder: Path, size: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        NoSpaceError: fewer than `size` bytes are free in `folder`.
    """
    if shutil.disk_usage(folder).free < size:
        raise no_room(folder, size)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which becomes `path` at the end, and nothing if the block fails.

    A file that was there is replaced, and what takes its place has its permissions.

    Raises:
        NoSpaceError: the disk is full.
        UsageError: the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _explained(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        executable = temporary.stat().st_mode & 0o111  # as a linker leaves it
        # mkstemp gives 0600
        temporary.chmod(path.stat().st_mode & 0o777 | executable if path.exists() else (0o666 | executable) & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise _explained(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Bring a file to the disk, so that a crash cannot leave an empty file behind its final name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(path: Path, error: OSError) -> HvError:
    if is_no_space(error):
        return no_room(path.parent)
    return UsageError(f"cannot write {path}: {error.strerror}")

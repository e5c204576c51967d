# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Results as JSON files, for `--json FILE`."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from hvtools.errors import NoSpaceError, UsageError, is_no_space


def check_writable(path: Path) -> None:
    """Refuses a place where no file can be made before the work is done, not after it.

    Raises:
        UsageError: there is no such folder, or it is somebody else's.
    """
    if not path.exists() and not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"{path} cannot be written: its folder is not there, or not yours")


def _writable(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        check_writable(path)
    return path


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_writable,
    help="Write the result to FILE.",
    metavar="FILE",
)
"""The option `--json FILE`; the verb gets `json_file: Path | None`."""


def write(path: Path | None, value: dict[str, Any]) -> None:
    """Writes a result, whole or not at all; does nothing without a path.

    Raises:
        UsageError: the file cannot be written there.
        NoSpaceError: the disk is full.
    """
    if path is None:
        return
    text = json.dumps(value, indent=2) + "\n"
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            # /dev/stdout, a pipe, a link: what is behind it gets the text, and it stays what it is.
            with path.open("w") as file:
                file.write(text)
        else:
            _replace(path, text)
    except OSError as error:
        if is_no_space(error):
            raise NoSpaceError(f"no space left on the disk for {path}") from error
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    """Puts a new file in the place of a path, by one rename."""
    handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

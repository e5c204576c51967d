# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Results as JSON files, for `--json FILE`."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hvtools.errors import NoSpaceError, UsageError, is_no_space


def write(path: Path | None, value: dict[str, Any]) -> None:
    """Writes a result, whole or not at all; does nothing without a path.

    Raises:
        UsageError: the file cannot be written there.
        NoSpaceError: the disk is full.
    """
    if path is None:
        return
    text = json.dumps(value, indent=2) + "\n"
    if path.exists() and not path.is_file():
        # A pipe or /dev/stdout: there is nothing to rename.
        path.write_text(text)
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        if is_no_space(error):
            raise NoSpaceError(f"no space left on the disk for {path}") from error
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Runs a command that takes long, line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path


def follow(
    command: list[str], folder: Path, environment: Mapping[str, str], heard: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run a command in a process group of its own, and end all of the group if we are interrupted.

    Args:
        command: it gets no input.
        folder: where it runs.
        environment: all that it gets.
        heard: called with each line of its two outputs.

    Returns:
        its exit code and the lines.
    """
    output: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
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
                heard(output[-1])
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    return process.returncode, output

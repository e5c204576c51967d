# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The command line of pytest, for the verbs that run the tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def pytest_command(
    junit: Path, slow: bool, environment: Path | None, arguments: Sequence[str], options: Sequence[str] = ()
) -> list[str]:
    """Give the command that runs the tests.

    Args:
        junit: where the report goes.
        slow: the slow ones, too.
        environment: labgrid's environment file, for only the boot tests on its box.
        arguments: of the person who asked for it; they come last.
        options: further ones of the verb.
    """
    command = [sys.executable, "-m", "pytest", f"--junitxml={junit}"]
    if environment is not None:
        command += [f"--lab={environment.absolute()}", "-o", "testpaths=tests/boot"]
    if not slow:
        command += ["-m", "not slow"]
    return [*command, *options, *arguments]

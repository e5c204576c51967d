# SPDX-License-Identifier: BSD-2-Clause-Patent
"""EDK2's own checks of the packages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hvtools import build, edk2

CHECKS = {
    "HvPkg": {"Char Encoding", "Dependency", "Dsc Complete", "Guid", "Library Class", "License"},
    "ovmf": {"Char Encoding", "Dependency", "Dsc Complete", "Guid", "License"},
}


def ci_build(*arguments: str) -> str:
    edk2.ready(build.ROOT)
    with build.lock(build.ROOT):
        result = subprocess.run(
            [str(Path(sys.executable).parent / "stuart_ci_build"), "-c", "ci/CISettings.py", "TOOL_CHAIN_TAG=GCC5"]
            + list(arguments),
            cwd=build.ROOT,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert result.returncode == 0, "\n".join(
        line for line in result.stdout.splitlines() if re.match("ERROR|CRITICAL", line)
    )
    return result.stdout


def test_the_packages_pass_the_checks_that_build_nothing() -> None:
    output = ci_build("-p", ",".join(CHECKS), "-t", "NO-TARGET")
    for package, names in CHECKS.items():
        part = re.split(r"--Running (\w+): ", output)
        ran = {
            match[1]
            for name, text in zip(part[1::2], part[2::2], strict=True)
            if name == package and (match := re.match(r"([\w ]+?) Check Test", text)) and "--->Test Success" in text
        }
        assert ran == names


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_packages_compile_as_a_ci_build() -> None:
    output = ci_build("-p", ",".join(CHECKS), "-t", "DEBUG")
    assert output.count("--->Test Success: Compiler Plugin DEBUG") == len(CHECKS)

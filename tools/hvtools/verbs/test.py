# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv test`: what a commit must pass."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import click

from hvtools import build, linux, report, ui
from hvtools.errors import EXIT_FAILED
from hvtools.machines.registry import LAB, platform_named
from hvtools.setup import setup_all
from hvtools.suite import pytest_command

_WORKERS_MAX = 4

_CHECKS = {
    "ruff": ["ruff", "check", "--quiet", "."],
    "mypy": ["mypy"],
}


@click.command(
    "test",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  hv test                        what a commit must pass
  hv test tests/unit -k mailbox  a part of it
  hv test --all                  the slow ones, too
  hv test --lab box.yaml         the boot tests, on a box in a lab""",
)
@click.option("--all", "slow", is_flag=True, help="Also the slow tests.")
@click.option(
    "--lab",
    "environment",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Only the boot tests, on the box of this labgrid environment file.",
)
@report.json_option
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def command(slow: bool, environment: Path | None, json_file: Path | None, pytest_arguments: tuple[str, ...]) -> int:
    """Set up and build what changed, then run ruff, mypy and pytest.

    Further arguments go to pytest, as in `hv test -k cache` or `hv test tests/unit`.
    """
    if environment is not None:
        platform_named(f"{LAB}{environment}")  # says what is wrong with it before anything else
    setup_all()
    linux.headers()
    for target in build.TARGETS:
        build.ensure_built(target)
    checks = _CHECKS if environment is None else {}  # they are about this tree, not about a box
    failed = [name for name, arguments in checks.items() if not _check(name, arguments)]
    code, counts = _pytest(slow, environment, pytest_arguments)
    report.write(json_file, {"checks": {name: name not in failed for name in checks}, "pytest": counts})
    if failed:
        ui.info(f"hv: failed before pytest: {', '.join(failed)}")
    # Ctrl-C came to us too, as an exception. pytest's code 2 may also be a test that failed with -x, or a file that
    # cannot be imported, and a signal that ended it may be the kernel's, which had no memory left.
    return EXIT_FAILED if code != 0 or failed else 0


def _check(name: str, arguments: list[str]) -> bool:
    """Runs one checker of this environment over the work tree, and shows what it has to say."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=build.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    good = result.returncode == 0
    ui.out.print(f"{name}: {'ok' if good else 'failed'}", markup=False)
    if not good:
        ui.out.print(result.stdout.rstrip(), markup=False)
    return good


def _pytest(slow: bool, environment: Path | None, arguments: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
    """Runs pytest with its output as it comes.

    Returns:
        Its exit code, and the numbers of tests by outcome.
    """
    with tempfile.TemporaryDirectory(prefix="hv-test-") as temporary:
        xml = Path(temporary) / "junit.xml"
        # An emulator keeps one processor busy. More than four do not help: compilers and long boots are what is left.
        workers = min(len(os.sched_getaffinity(0)), _WORKERS_MAX)
        parallel = ["-n", str(workers), "--dist", "worksteal"] if environment is None and workers > 1 else []
        command = pytest_command(xml, slow, environment, arguments, parallel)
        with subprocess.Popen(command, cwd=build.ROOT) as process:
            try:
                code = process.wait()
            except BaseException as error:
                _end(process, told=isinstance(error, KeyboardInterrupt))
                raise
        return code, {"exit": code, **_counts(xml)}


def _end(process: subprocess.Popen[bytes], told: bool) -> None:
    """Waits until pytest ended its emulators and itself.

    Args:
        process: pytest.
        told: it probably got the terminal's Ctrl-C too; a second one at once would cut its clean-up short.
    """
    for number in (None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[0 if told else 1 :]:
        if number is not None:
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
            return


def _counts(xml: Path) -> dict[str, int]:
    """The numbers in a JUnit file; none when pytest did not come to writing it."""
    if not xml.is_file():
        return {}
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(xml).getroot().iter("testsuite"):
        for name in total:
            total[name] += int(suite.get(name, "0"))
    return total

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The boot tests on many boxes at once: each box is a pytest of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools import build
from hvtools.errors import HvError
from hvtools.lab.places import Held, connected, select
from hvtools.lab.report import HTML, XML, BoxResult, read
from hvtools.suite import pytest_command

JUNIT = "junit.xml"
OUTPUT = "pytest.log"
BOOTS = "boots"

_CUT_SECONDS = 60.0  # for labgrid to switch a box off
_NAME_MAX = 100  # characters
_END_SECONDS = 20.0  # for pytest to switch its box off
Observer = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        environment: labgrid's environment file; LG_PLACE in it is the box.
        address: the coordinator.
        folder: one folder for each box goes there, and the reports.
        slow: the slow tests, too.
        arguments: for pytest.
        limit: seconds for one box.
        wait: seconds to wait for busy boxes.
    """

    environment: Path
    address: str
    folder: Path
    slow: bool
    arguments: tuple[str, ...]
    limit: float
    wait: float


async def check(address: str, names: Sequence[str], tags: Mapping[str, str]) -> None:
    """Refuse what the coordinator does not know, before anything is built.

    Raises:
        HvError: it does not answer.
        UsageError: there is no such place.
    """
    async with connected(address) as session:
        select(session, names, tags)


async def run(plan: Plan, names: Sequence[str], tags: Mapping[str, str], tell: Observer) -> list[BoxResult]:
    """Run the tests on all places that are meant, at the same time.

    Raises:
        HvError: no coordinator, or a busy box; nothing was touched then.
    """
    async with connected(plan.address) as session:
        places = select(session, names, tags)
        held = Held(session)
        try:
            await held.take(places, plan.wait)
            tell(f"{len(places)} boxes: {', '.join(places)}")
            folders = {name: plan.folder / folder for name, folder in folder_names(places).items()}
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_box(plan, held, name, folders[name], tell)) for name in places]
            return [task.result() for task in tasks]
        finally:
            await held.release_all()


def folder_names(places: Sequence[str]) -> dict[str, str]:
    """Give each place a folder of its own: labgrid allows any name, a slash in it too."""
    names: dict[str, str] = {}
    taken = {XML, HTML}
    for place in places:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", place).strip(".")[:_NAME_MAX] or "box"
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        names[place] = next(name for name in itertools.chain([stem], numbered) if name not in taken)
        taken.add(names[place])
    return names


async def _box(plan: Plan, held: Held, name: str, folder: Path, tell: Observer) -> BoxResult:
    environment = {**os.environ, "LG_PLACE": name, "LG_COORDINATOR": plan.address}
    start = time.monotonic()
    fault = ""
    try:
        folder.mkdir()
        fault = await _tested(plan, folder, environment)
    except Exception as error:  # it is this box's: the others go on
        fault = " ".join(str(error).split()) or type(error).__name__
    finally:
        if fault or not (folder / JUNIT).is_file():  # pytest did not come to switching it off
            fault = fault or "pytest ended before its report: see its output"
            fault += await _cut(plan, name, environment)
        await held.release(name)
    result = read(name, folder / JUNIT, time.monotonic() - start, fault)
    tell(result.line)
    return result


async def _tested(plan: Plan, folder: Path, environment: Mapping[str, str]) -> str:
    """Run pytest.

    Returns:
        what is wrong with the box, if it had to be ended.
    """
    logs = [f"--logs={folder / BOOTS}"]
    command = pytest_command(folder / JUNIT, plan.slow, plan.environment, plan.arguments, logs)
    with (folder / OUTPUT).open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=build.ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(plan.limit):
            await process.wait()
    except TimeoutError:
        return f"the limit of {plan.limit:.0f} s is over"
    finally:
        await _end(process)
    return ""


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_SECONDS)


async def _cut(plan: Plan, name: str, environment: Mapping[str, str]) -> str:
    """Take a box's power away.

    Returns:
        nothing, or that it could not be done.
    """
    failed = "; its power could not be cut: "
    try:
        process = await asyncio.create_subprocess_exec(
            *_power_off(plan, name),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return f"{failed}{error.strerror}"
    try:
        async with asyncio.timeout(_CUT_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        return f"{failed}labgrid's client took more than {_CUT_SECONDS:.0f} s"
    finally:
        await _end(process)
    if process.returncode == 0:
        return ""
    lines = said.decode("utf-8", "replace").split("\n")
    return f"{failed}{' '.join(lines[-2:]).strip()}"


def _power_off(plan: Plan, name: str) -> list[str]:
    client = [sys.executable, "-m", "labgrid.remote.client", "-c", str(plan.environment)]
    return [*client, "-p", name, "power", "off"]


def folder_for(plan_folder: Path | None) -> Path:
    """Make the folder of a run.

    Raises:
        HvError: it cannot be made.
    """
    folder = plan_folder or build.ROOT / "Build" / "Lab" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise HvError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder.absolute()

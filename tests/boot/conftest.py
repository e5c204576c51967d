# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Machines for the tests: by capability, each booted once for all tests that ask for the same."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from hvtools import build
from hvtools.boot.request import BootRequest, BoxError, size_of
from hvtools.boot.result import BootResult
from hvtools.boot.runner import booting, run
from hvtools.boot.startup import Prompt
from hvtools.boot.strategy import BootStrategy
from hvtools.errors import UsageError
from hvtools.machines.registry import CAPABILITIES, LAB, Platform, platform_named, platforms_with

Boot = Callable[..., BootResult]
_SESSIONS_KEPT = 2

Session = Callable[..., AbstractContextManager[BootStrategy]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"needs(*capabilities): run on each platform that has all of {', '.join(CAPABILITIES)}"
    )
    config.addinivalue_line("markers", "everywhere: run by default on platforms too that are not fast")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "platform" not in metafunc.fixturenames:
        return
    needed = {"linux"}
    for marker in metafunc.definition.iter_markers("needs"):
        needed |= set(marker.args)
    if lab := metafunc.config.getoption("--lab"):
        _on_box(metafunc, platform_named(f"{LAB}{lab}"), needed)
        return
    platforms = platforms_with(needed)
    assert platforms, f"no platform has {sorted(needed)}"
    everywhere = metafunc.definition.get_closest_marker("everywhere") is not None

    def marks(platform: Platform) -> tuple[pytest.MarkDecorator, ...]:
        return () if everywhere or "fast" in platform.capabilities else (pytest.mark.slow,)

    if "lacking" in metafunc.fixturenames:
        metafunc.parametrize(
            ("platform", "lacking"),
            [
                pytest.param(platform.name, requirement, marks=marks(platform))
                for platform in platforms
                for requirement in platform.lesser_cpus
            ],
        )
        return
    metafunc.parametrize("platform", [pytest.param(platform.name, marks=marks(platform)) for platform in platforms])


def _on_box(metafunc: pytest.Metafunc, box: Platform, needed: set[str]) -> None:
    """Run a test on the one box; skip it if that cannot be what the test needs."""
    marks: list[pytest.MarkDecorator] = []
    if missing := needed - box.capabilities:
        marks.append(pytest.mark.skip(reason=f"the box has no {', '.join(sorted(missing))} among its features"))
    if "lacking" in metafunc.fixturenames:
        skipped = pytest.mark.skip(reason="the processor of a box cannot be chosen")
        metafunc.parametrize(("platform", "lacking"), [pytest.param(box.name, "", marks=skipped)])
        return
    metafunc.parametrize("platform", [pytest.param(box.name, marks=marks, id="box")])


@pytest.fixture(autouse=True)
def _stop_when_the_box_hangs(
    request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]
) -> Iterator[None]:
    """A box that hangs is off by now, and left alone."""
    yield
    if lab := request.config.getoption("--lab"):
        from hvtools.lab.box import hang_of
        from hvtools.lab.report import HANG

        if hang := hang_of(f"{LAB}{lab}"):
            record_testsuite_property(HANG, hang)
            request.session.shouldstop = f"the box hangs: {hang}"


def _fitting(platform: str, fields: dict[str, Any]) -> BootRequest:
    """Make a request; skip the test if it is for another machine than a box is."""
    cpus, memory_mib = size_of(platform_named(platform))
    request = BootRequest(platform=platform, **{"cpus": cpus, "memory_mib": memory_mib, **fields})
    try:
        request.checked()
    except BoxError as error:
        pytest.skip(f"{error}; a box that fits would run it")
    except UsageError:
        pass  # the test may be about it
    return request


@pytest.fixture(scope="session")
def _results() -> dict[str, BootResult]:
    return {}


@pytest.fixture(scope="session")
def _logs(pytestconfig: pytest.Config) -> Iterator[Callable[[], Path]]:
    """Folders for the logs of each boot; not pytest's own, which go when somebody else tests three times."""
    if own := pytestconfig.getoption("--logs"):
        session = Path(own).absolute()
    else:
        parent = build.ROOT / "Build" / "BootTests"
        parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(parent.iterdir())[:-_SESSIONS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        session = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    numbers = itertools.count()

    def made() -> Path:
        folder = session / f"{next(numbers):03}"
        folder.mkdir(parents=True)
        return folder

    yield made


@pytest.fixture
def boot(platform: str, _results: dict[str, BootResult], _logs: Callable[[], Path]) -> Boot:
    """Boot with the fields of BootRequest; `fresh=True` boots even if an earlier test asked for the same."""

    def booted(fresh: bool = False, **fields: Any) -> BootResult:  # noqa: ANN401
        request = _fitting(platform, fields)
        key = repr(request)
        if fresh or key not in _results:
            _results[key] = run(request, _logs())
        return _results[key]

    return booted


@pytest.fixture
def session(platform: str, _logs: Callable[[], Path]) -> Session:
    """Prepare a machine whose startup script stops at the shell's prompt; fields as for `boot`."""

    def prepared(restart: bool = False, **fields: Any) -> AbstractContextManager[BootStrategy]:  # noqa: ANN401
        request = _fitting(platform, fields)
        return booting(request, _logs(), payload=Prompt(), restart=restart)

    return prepared


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Make a shell script for the root guest."""

    def written(text: str) -> Path:
        path = tmp_path / "script.sh"
        path.write_text(text)
        return path

    return written


@pytest.fixture
def concurrent(platform: str) -> str:
    """The accelerator with which processors run at the same time."""
    accelerator = platform_named(platform).concurrent_accelerator
    assert accelerator is not None
    return accelerator


class Hv:
    """The command line, as a person calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hvtools", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ, TMPDIR=str(self.temporary))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it with a session of its own, so that a signal to it goes nowhere else."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def hv(tmp_path: Path) -> Hv:
    return Hv(tmp_path)

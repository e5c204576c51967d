# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Figures: one measured number each, with where it was measured; as JSON and back."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvtools import build
from hvtools.errors import UsageError

DETERMINISTIC = ("instructions", "ticks", "exits", "bytes", "ratio")
"""Units of figures that do not depend on the machine that measures."""

HOST = "host"
"""The platform of figures that need no machine."""


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: what was measured, such as exit.cpuid.
        platform: where, as `--on` says it; HOST for what needs no machine.
        cpus: processors of the machine, 0 where that says nothing.
        unit: of the value.
        value: the median of the runs.
        runs: each measurement.
    """

    name: str
    platform: str
    cpus: int
    unit: str
    value: float
    runs: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it the same figure in another report."""
        return self.name, self.platform, self.cpus


def figure(name: str, platform: str, cpus: int, unit: str, runs: Sequence[float]) -> Figure:
    """Make a figure of its measurements; whole numbers stay whole."""
    value = statistics.median(runs)
    return Figure(name, platform, cpus, unit, int(value) if value == int(value) else round(value, 9), tuple(runs))


@dataclass(frozen=True)
class Report:
    """The figures of one commit.

    Attributes:
        commit: its hash, with "+" behind it when the work tree differs; empty outside of a repository.
        date: UTC, ISO 8601.
        figures: in the order in which they were measured.
    """

    commit: str
    date: str
    figures: tuple[Figure, ...]

    def as_json(self) -> dict[str, Any]:
        """Give the report for `--json`."""
        return {"commit": self.commit, "date": self.date, "figures": [asdict(each) for each in self.figures]}

    def find(self, key: tuple[str, str, int]) -> Figure | None:
        """Find a figure by its key."""
        return next((each for each in self.figures if each.key == key), None)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=build.ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def report_of(figures: Iterable[Figure]) -> Report:
    """Make a report of what was just measured."""
    commit = _git("rev-parse", "HEAD")
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    return Report(commit, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), tuple(figures))


def _figure_of(raw: dict[str, Any]) -> Figure:
    return Figure(raw["name"], raw["platform"], raw["cpus"], raw["unit"], raw["value"], tuple(raw["runs"]))


def read_report(path: Path) -> Report:
    """Read what `--json` wrote.

    Raises:
        UsageError: the file is not such a report.
    """
    try:
        raw = json.loads(path.read_text())
        figures = tuple(_figure_of(each) for each in raw["figures"])
        return Report(str(raw["commit"]), str(raw["date"]), figures)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no report of `hv bench --json FILE`") from error

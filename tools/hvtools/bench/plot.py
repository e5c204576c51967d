# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Figures as plots: one file for each group of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, whatever the environment says

from matplotlib import pyplot

from hvtools.bench.figures import Figure, Report


def _places(figures: Sequence[Figure]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((each.platform, each.cpus) for each in figures))


def _bars(figures: Sequence[Figure], title: str, path: Path) -> None:
    names = list(dict.fromkeys(each.name for each in figures))
    places = _places(figures)
    height = 0.8 / len(places)
    plot, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * len(names)), layout="constrained")
    for index, (platform, cpus) in enumerate(places):
        own = {each.name: each.value for each in figures if (each.platform, each.cpus) == (platform, cpus)}
        rows = [row + index * height for row, name in enumerate(names) if name in own]
        bars = axes.barh(rows, [own[name] for name in names if name in own], height, label=f"{platform}, {cpus} CPU")
        axes.bar_label(bars, fmt="%g", fontsize=6, padding=2)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel(figures[0].unit)
    axes.set_title(title)
    axes.legend()
    plot.savefig(path)
    pyplot.close(plot)


def _lines(series: dict[str, list[tuple[float, float]]], title: str, x: str, y: str, path: Path) -> None:
    plot, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for label, points in series.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", base=2, label=label)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.legend()
    axes.grid(True, alpha=0.3)
    plot.savefig(path)
    pyplot.close(plot)


def _by_cpus(figures: Sequence[Figure], name: str) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for each in figures:
        if each.name == name:
            series.setdefault(each.platform, []).append((each.cpus, each.value))
    return {platform: points for platform, points in series.items() if len(points) > 1}


def _nested(figures: Sequence[Figure], last: str) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for each in figures:
        words = each.name.split(".")
        if words[0] == "nested" and words[-1] == last and each.value > 0:
            size = float(words[2][:-1]) * (1024 if words[2].endswith("t") else 1)
            series.setdefault(f"{words[1]} pages", []).append((size, each.value))
    return series


def write(report: Report, folder: Path) -> list[Path]:
    """Draw what there is.

    Args:
        report: the figures.
        folder: for the files; it is made.

    Returns:
        the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = report.figures
    made = []
    groups = {
        "exits": (
            "instructions of an exit",
            [e for e in figures if e.name.startswith("exit.") and e.unit == "instructions"],
        ),
        "exit-cycles": (
            "cycles of an exit",
            [e for e in figures if e.name.startswith("exit.") and e.unit == "cycles"],
        ),
        "boot": ("exits from ExitBootServices to init", [e for e in figures if e.name.startswith("boot.exits.")]),
        "seconds": ("seconds to user space", [e for e in figures if e.name.startswith("boot.seconds")]),
    }
    for name, (title, group) in groups.items():
        if group:
            made.append(folder / f"{name}.png")
            _bars(group, title, made[-1])
    lines = {
        "launch": (_by_cpus(figures, "launch.ticks"), "time of the launch", "processors", "ticks"),
        "reserved": (_by_cpus(figures, "memory.reserved"), "reserved memory", "processors", "bytes"),
        "nested-bytes": (_nested(figures, "bytes"), "nested tables", "GiB of address space", "bytes"),
        "nested-build": (_nested(figures, "build"), "building nested tables", "GiB of address space", "seconds"),
    }
    for name, (series, title, x, y) in lines.items():
        if series:
            made.append(folder / f"{name}.png")
            _lines(series, title, x, y, made[-1])
    return made

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What is measured: parts that follow each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools import build
from hvtools.bench import launch, linux, nested, shell
from hvtools.bench.figures import HOST, Figure, figure
from hvtools.machines.registry import platform_named
from hvtools.ui import Step

_PAIRS = 5
_MOST_CPUS_EMULATED_ONE_BY_ONE = 8  # on platforms where each processor takes its time from the others


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        title: for the progress.
        measure: takes the platforms, a folder for logs, and the step to report to.
    """

    title: str
    measure: Callable[[Sequence[str], Path, Step], list[Figure]]


def _round_trips(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        # The xAPIC page is trapped only where there are processors to start.
        exact_with_two = platform_named(name).counting_accelerator is not None
        for cpus in (1, 2) if exact_with_two else (1,):
            step.update(f"{name}, {cpus} CPU")
            found += shell.measure(name, cpus, folder / f"shell-{name}-{cpus}")
    return found


def _image(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    image = build.ensure_built(shell.TARGET).folder / "HvDxe.efi"
    return [figure("image.bytes", HOST, 0, "bytes", [image.stat().st_size])]


def _exits(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        step.update(f"{name}, 1 CPU")
        found += linux.exits(name, 1, folder / f"linux-{name}-1")
    return found


def _exits_of_more(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        step.update(f"{name}, 2 CPUs")
        found += linux.exits(name, 2, folder / f"linux-{name}-2")
    return found


def _ticks(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        if "ticks" in platform_named(name).capabilities:
            step.update(name)
            found += linux.ticks(name, 1, folder / f"ticks-{name}")
    return found


def _seconds(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        if "ticks" not in platform_named(name).capabilities:
            step.update(name)
            found += linux.seconds(name, 1, folder / f"seconds-{name}", _PAIRS)
    return found


def _launch(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for name in platforms:
        fast = "fast" in platform_named(name).capabilities
        counts = [cpus for cpus in (1, 2, 4, 8, 16, 32, 64) if fast or cpus <= _MOST_CPUS_EMULATED_ONE_BY_ONE]
        step.update(name)
        found += launch.measure(name, counts, folder / f"launch-{name}")
    return found


def _nested(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    return nested.measure()


IMAGE = Part("size of the image", _image)
ROUND_TRIPS = Part("round trips in the UEFI shell", _round_trips)
EXITS = Part("exits of Linux, 1 CPU", _exits)

CHECKED = (IMAGE, ROUND_TRIPS)
QUICK = (IMAGE, ROUND_TRIPS, EXITS)
ALL = (
    *QUICK,
    Part("exits of Linux, 2 CPUs", _exits_of_more),
    Part("nested tables by size and page size", _nested),
    Part("launch by number of processors", _launch),
    Part("instructions of a boot without and with the hypervisor", _ticks),
    Part("time of a boot without and with the hypervisor", _seconds),
)

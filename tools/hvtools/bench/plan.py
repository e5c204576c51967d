# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What is measured: parts that follow each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools import build, ui
from hvtools.bench import launch, linux, nested, shell
from hvtools.bench.figures import HOST, Figure, figure
from hvtools.machines.registry import Platform, platform_named
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


def _counts(platform: Platform, *wanted: int) -> tuple[int, ...]:
    """The numbers of processors to measure with: a machine that is there already has its own."""
    return (platform.box.cpus,) if platform.box else wanted


def _file(platform: Platform) -> str:
    """The platform's name in that of a folder: a box is named by a path."""
    return platform.name.replace("/", "_").replace(":", "_")


def _says(platform: Platform, cpus: int) -> str:
    return f"{platform.name}, {cpus} CPU{'s' * (cpus != 1)}"


def _round_trips(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        # The xAPIC page is trapped only where there are processors to start.
        exact_with_two = platform.counting_accelerator is not None
        for cpus in _counts(platform, *((1, 2) if exact_with_two else (1,))):
            step.update(_says(platform, cpus))
            found += shell.measure(platform.name, cpus, folder / f"shell-{_file(platform)}-{cpus}")
    return found


def _image(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    image = build.ensure_built(shell.TARGET).folder / "HvDxe.efi"
    return [figure("image.bytes", HOST, 0, "bytes", [image.stat().st_size])]


def _exits(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        (cpus,) = _counts(platform, 1)
        step.update(_says(platform, cpus))
        found += linux.exits(platform.name, cpus, folder / f"linux-{_file(platform)}-{cpus}")
    return found


def _exits_of_more(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        if platform.box is None:
            step.update(_says(platform, 2))
            found += linux.exits(platform.name, 2, folder / f"linux-{_file(platform)}-2")
    return found


def _ticks(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        if "ticks" in platform.capabilities:
            step.update(_says(platform, 1))
            found += linux.ticks(platform.name, 1, folder / f"ticks-{_file(platform)}")
    return found


def _seconds(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        if "ticks" not in platform.capabilities:
            (cpus,) = _counts(platform, 1)
            step.update(_says(platform, cpus))
            found += linux.seconds(platform.name, cpus, folder / f"seconds-{_file(platform)}", _PAIRS)
    return found


def _launch(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    found = []
    for platform in map(platform_named, platforms):
        fast = "fast" in platform.capabilities
        most = [cpus for cpus in (1, 2, 4, 8, 16, 32, 64) if fast or cpus <= _MOST_CPUS_EMULATED_ONE_BY_ONE]
        step.update(platform.name)
        found += launch.measure(platform.name, _counts(platform, *most), folder / f"launch-{_file(platform)}")
    return found


def _nested(platforms: Sequence[str], folder: Path, step: Step) -> list[Figure]:
    return nested.measure(nested.room(), ui.warn)


IMAGE = Part("size of the image", _image)
ROUND_TRIPS = Part("round trips in the UEFI shell", _round_trips)
EXITS = Part("exits of Linux", _exits)

TICKS = Part("instructions of a boot without and with the hypervisor", _ticks)

QUICK = (IMAGE, ROUND_TRIPS, EXITS)
CHECKED = (*QUICK, TICKS)
ALL = (
    *QUICK,
    Part("exits of Linux, 2 CPUs", _exits_of_more),
    Part("nested tables by size and page size", _nested),
    Part("launch by number of processors", _launch),
    TICKS,
    Part("time of a boot without and with the hypervisor", _seconds),
)

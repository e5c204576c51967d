# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What is measured: parts that follow each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools import build
from hvtools.bench import shell
from hvtools.bench.figures import Figure, figure
from hvtools.machines.registry import platform_named
from hvtools.ui import Step


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
    return [
        figure(
            "image.bytes", "host", 0, "bytes", [(build.ensure_built(shell.TARGET).folder / "HvDxe.efi").stat().st_size]
        )
    ]


ROUND_TRIPS = Part("round trips in the UEFI shell", _round_trips)
IMAGE = Part("size of the image", _image)

CHECKED = (IMAGE, ROUND_TRIPS)
QUICK = (IMAGE, ROUND_TRIPS)
ALL = (IMAGE, ROUND_TRIPS)

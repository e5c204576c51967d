# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The launch: its time and memory against the number of processors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvtools import build
from hvtools.bench.figures import Figure, figure
from hvtools.bench.shell import TARGET
from hvtools.boot.request import BootRequest, size_of
from hvtools.boot.runner import run
from hvtools.errors import HvError
from hvtools.machines.registry import platform_named


def measure(platform_name: str, counts: Sequence[int], folder: Path) -> list[Figure]:
    """Load the hypervisor on machines with these numbers of processors.

    Raises:
        HvError: it did not start, or did not say how long that took.
    """
    platform = platform_named(platform_name)
    program = build.ensure_built(TARGET).folder / "HvReturn.efi"
    found = []
    for cpus in counts:
        result = run(
            BootRequest(
                platform=platform_name,
                cpus=cpus,
                memory_mib=size_of(platform)[1],
                application=program,
                exact="ticks" in platform.capabilities,
                target=TARGET,
            ),
            folder / str(cpus),
        ).must_be_ok()
        done = [line for line in result.log if line.event == "launch-done"]
        if not done or result.checks.status is None:
            raise HvError(f"the log of {platform_name} with {cpus} CPUs has no launch-done")
        found.append(figure("launch.ticks", platform_name, cpus, platform.counter, [int(done[0].fields["ticks"])]))
        found.append(figure("memory.reserved", platform_name, cpus, "bytes", [result.checks.status.reserved_bytes]))
        found.append(figure("memory.nested", platform_name, cpus, "bytes", [result.checks.status.nested_bytes]))
    return found

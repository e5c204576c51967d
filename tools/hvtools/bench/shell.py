# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Round trips in the UEFI shell: the program HvBench, without and with the hypervisor, in one boot."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hvtools import build
from hvtools.bench.figures import Figure, figure
from hvtools.boot.hvlog import reasons
from hvtools.boot.request import BootRequest, size_of
from hvtools.boot.result import BootResult
from hvtools.boot.runner import run
from hvtools.boot.startup import options_command
from hvtools.errors import HvError
from hvtools.machines.registry import platform_named

TARGET = "RELEASE"
PROGRAMS = ("HvBench.efi", "HvDxe.efi", "HvStatus.efi")
_SCRIPT = "\r\n".join(
    [
        "@echo -off",
        r"fs0:\add\HvBench.efi",
        options_command({"sleep_guard": "always"}),  # the port that exits
        r"load -nc fs0:\add\HvDxe.efi",
        r"fs0:\add\HvBench.efi",
        r"fs0:\add\HvStatus.efi",
        "",
    ]
)
_BASE = ".base"
_LINE = re.compile(r"^hvbench: when=(native|hv|linux) name=(\S+) loops=(\d+) min=(\d+) sum=(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """What one loop took, in ticks."""

    loops: int
    least: int
    total: int

    @property
    def mean(self) -> float:
        """Ticks of one pass."""
        return self.total / self.loops


Samples = Mapping[tuple[str, str], Sample]


def parse(console: str) -> Samples:
    """Read the lines of HvBench and of hvbench: by when ("native", "hv", "linux") and name."""
    return {
        (match[1], match[2]): Sample(int(match[3]), int(match[4]), int(match[5])) for match in _LINE.finditer(console)
    }


def costs(samples: Samples) -> dict[str, float]:
    """Take from each loop under the hypervisor the same loop without it.

    Where that cannot be executed without it, there is one of the same length with NOP in its place. IPIs are given
    whole: to send one costs something without a hypervisor too.

    Returns:
        ticks by name: the mean, less the loop's own.
    """
    found = {}
    for (when, name), sample in samples.items():
        if when != "hv" or name.endswith(_BASE):
            continue
        base = samples.get((when, name + _BASE)) or samples.get(("native", name))
        if base is not None:
            found[name] = sample.mean - base.mean
    return found


def measure(platform_name: str, cpus: int, folder: Path) -> list[Figure]:
    """Boot once, and measure.

    Args:
        platform_name: where.
        cpus: number of processors. With one, Bochs' time stamp counter counts instructions.
        folder: for the logs.

    Raises:
        HvError: the boot failed, or the hypervisor did not start.
    """
    platform = platform_named(platform_name)
    images = build.ensure_built(TARGET).folder
    with tempfile.TemporaryDirectory(prefix="hv-bench-") as temporary:
        script = Path(temporary) / "Bench.nsh"
        script.write_text(_SCRIPT, newline="")
        result = run(
            BootRequest(
                platform=platform_name,
                cpus=cpus,
                memory_mib=size_of(platform)[1],
                hypervisor=False,  # the script loads it
                application=script,
                added={PurePosixPath(name): images / name for name in PROGRAMS},
                accelerator=platform.counting_accelerator,
                exact="ticks" in platform.capabilities,
                target=TARGET,
            ),
            folder,
        ).must_be_ok()
    return figures_of(result, platform_name, cpus)


def must_be_release(result: BootResult) -> None:
    """Figures are of RELEASE builds, so that a DEBUG build's own checks are not among them.

    Raises:
        HvError: what ran was another.
    """
    started = [line.fields.get("build") for line in result.log if line.event == "start"]
    if started[:1] != [TARGET]:
        raise HvError(f"the hypervisor that was measured is no {TARGET} build: {started}")


def figures_of(result: BootResult, platform_name: str, cpus: int) -> list[Figure]:
    """Read the figures of a boot.

    Raises:
        HvError: the hypervisor did not start.
    """
    platform = platform_named(platform_name)
    found = costs(parse(result.record.console))
    status = result.checks.status
    if not found or status is None:
        raise HvError(
            f"HvDxe did not start on {platform_name}: {'; '.join(reasons(result.log)) or 'no reason in its log'}"
        )
    must_be_release(result)
    # On Bochs with more than one processor the counter is a clock that they share.
    exact = cpus == 1 or "ticks" not in platform.capabilities
    unit = "instructions" if exact and platform.ticks_per_instruction else platform.counter
    scale = platform.ticks_per_instruction or 1
    return [
        *(figure(name, platform_name, cpus, unit, [round(ticks / scale, 3)]) for name, ticks in found.items()),
        figure("memory.reserved", platform_name, cpus, "bytes", [status.reserved_bytes]),
        figure("memory.nested", platform_name, cpus, "bytes", [status.nested_bytes]),
    ]

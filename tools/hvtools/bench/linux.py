# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Linux: exits of a boot, CPUID from user space, exits of an idle and of a busy system, time to user space."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath

from hvtools.bench.figures import Figure, figure
from hvtools.bench.shell import TARGET, must_be_release, parse
from hvtools.boot.hvlog import fields_of
from hvtools.boot.request import BootRequest, size_of
from hvtools.boot.result import BootResult
from hvtools.boot.runner import run
from hvtools.errors import HvError
from hvtools.guest.build import program
from hvtools.machines.registry import platform_named

# What is fixed about the load: processes that are started, and bytes that are copied between two of them.
_SCRIPT = """\
mark() { echo "hvbench: mark=$1 uptime=$(cut -d' ' -f1 /proc/uptime)"; hvcheck; }
/add/hvbench || exit 1
mark settle
sleep 0.2
mark idle
sleep 0.5
mark load
i=0
while [ $i -lt 50 ]; do
    /hvtools/bin/busybox true
    i=$((i + 1))
done
dd if=/dev/zero bs=4096 count=500 2>/dev/null | cat >/dev/null
mark end
"""
_TICK_RUNS = 3
_SAME_TIMER = "lapic=notscdeadline"
_MARK = re.compile(r"^hvbench: mark=(\w+) uptime=([0-9.]+)$")
_EXITS = re.compile(r"^hvcheck: exits when=now cpu=\d+(.*)$")


def boot(platform_name: str, cpus: int, folder: Path, hypervisor: bool = True, **more: object) -> BootResult:
    """Boot Linux as it is measured: a RELEASE build, and on Bochs the same to the tick."""
    platform = platform_named(platform_name)
    request = BootRequest(
        platform=platform_name,
        cpus=cpus,
        memory_mib=size_of(platform)[1],
        hypervisor=hypervisor,
        exact="ticks" in platform.capabilities,
        target=TARGET,
        **more,  # type: ignore[arg-type]
    )
    result = run(request, folder).must_be_ok()
    if hypervisor:
        must_be_release(result)
    return result


def _marks(output: str) -> dict[str, tuple[float, Counter[str]]]:
    """The counters of all processors at each mark, with the kernel's clock in seconds."""
    found: dict[str, tuple[float, Counter[str]]] = {}
    at = ""
    for line in output.splitlines():
        if mark := _MARK.match(line):
            at = mark[1]
            found[at] = (float(mark[2]), Counter())
        elif at and (exits := _EXITS.match(line)):
            found[at][1].update({key: int(value) for key, value in fields_of(exits[1]).items() if key != "total"})
    return found


def _between(marks: dict[str, tuple[float, Counter[str]]], begin: str, end: str) -> tuple[float, Counter[str]]:
    try:
        (start, before), (stop, after) = marks[begin], marks[end]
    except KeyError as error:
        raise HvError(f"the script did not come to its mark {error}") from None
    return stop - start, after - before


def exits(platform_name: str, cpus: int, folder: Path) -> list[Figure]:
    """Boot once with the hypervisor: exits by reason, from the kernel's start to the first program and after it.

    CPUID is what the system asks for itself, also the self-check that reads the counters; the rates are without it.

    Raises:
        HvError: the boot failed.
    """
    platform = platform_named(platform_name)
    with tempfile.TemporaryDirectory(prefix="hv-bench-") as temporary:
        script = Path(temporary) / "bench.sh"
        script.write_text(_SCRIPT)
        result = boot(platform_name, cpus, folder, script=script, added={PurePosixPath("hvbench"): program("hvbench")})
    counted = result.checks.boot_exits()
    if counted is None:
        raise HvError("the hypervisor's counters at ExitBootServices cannot be read")
    found = [figure("boot.exits.total", platform_name, cpus, "exits", [counted.total()])]
    found += [figure(f"boot.exits.{kind}", platform_name, cpus, "exits", [n]) for kind, n in sorted(counted.items())]
    others = counted.total() - counted["cpuid"]
    found.append(figure("boot.exits.but-cpuid", platform_name, cpus, "exits", [others]))
    marks = _marks(result.checks.script_output)
    for name, begin, end in (("idle", "idle", "load"), ("load", "load", "end")):
        seconds, kinds = _between(marks, begin, end)
        rate = (kinds.total() - kinds["cpuid"]) / seconds
        found.append(figure(f"{name}.exits.but-cpuid", platform_name, cpus, "exits/s", [round(rate, 1)]))
    exact = cpus == 1 and platform.ticks_per_instruction and platform.counting_accelerator is None
    if exact or platform.counter == "cycles":
        unit = "instructions" if exact else platform.counter
        least = user_space_cpuid(result.checks.script_output)
        found.append(figure("exit.cpuid.linux", platform_name, cpus, unit, [least]))
    return found


def user_space_cpuid(output: str) -> int:
    """Read what the program hvbench says: ticks of CPUID in user space, less those of NOP.

    Raises:
        HvError: it did not say it.
    """
    samples = parse(output)
    try:
        return samples["linux", "exit.cpuid"].least - samples["linux", "nop"].least
    except KeyError:
        raise HvError("hvbench did not measure CPUID from user space") from None


def ticks(platform_name: str, cpus: int, folder: Path) -> list[Figure]:
    """Boot without and with the hypervisor where instructions are counted: ticks to power-off, and their ratio.

    Both boots have the same timer: on Bochs' processors Linux takes the TSC's deadline where it sees a hypervisor, and
    distrusts the microcode where it sees none, which is 1 % of the instructions in favour of the hypervisor (measured).

    Each boot is the same to the tick when it is repeated, but where in its timer's period the kernel starts decides
    about 0.4 % of it (measured). So the pairs differ in the length of the command line.
    """
    spent: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(_TICK_RUNS):
        for hypervisor, taken in spent.items():
            where = folder / f"hv-{hypervisor}-{turn}".lower()
            append = f"{_SAME_TIMER} hvbench={'x' * turn}"
            ending = boot(platform_name, cpus, where, hypervisor, append=append).record.ending
            if ending is None or ending.ticks is None:
                raise HvError(f"{platform_name} did not say at which tick the machine ended")
            taken.append(ending.ticks)
    ratios = [with_hv / without for without, with_hv in zip(spent[False], spent[True], strict=True)]
    return [
        figure("boot.ticks.native", platform_name, cpus, "ticks", spent[False]),
        figure("boot.ticks", platform_name, cpus, "ticks", spent[True]),
        figure("boot.ratio", platform_name, cpus, "ratio", ratios),
    ]


VARIANTS: dict[str, dict[str, str] | None] = {
    ".native": None,
    "": {},
    ".1g": {"nested_page": "1g"},
    ".2m": {"nested_page": "2m"},
    ".4k": {"nested_page": "4k"},
}
"""What is timed: without the hypervisor, with it, and with it by the largest nested page.

An emulator walks the nested tables in software, which costs more than all exits. That is the floor of any hypervisor
with nested paging: one that lets everything else pass, with pages of 1 GiB, 2 MiB or 4 KiB, differs from these only by
its exits, which are counted.
"""


def seconds(platform_name: str, cpus: int, folder: Path, runs: int) -> list[Figure]:
    """Time from the emulator's start to the first program, in turn for each variant, so that a busy host meets all.

    Args:
        platform_name: where.
        cpus: number of processors.
        folder: for the logs.
        runs: of each variant.
    """
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(runs):
        for name, settings in VARIANTS.items():
            where = folder / f"seconds{name}-{turn}"
            result = boot(platform_name, cpus, where, settings is not None, settings=settings or {})
            assert result.root_seconds is not None  # the boot is good
            taken[name].append(round(result.root_seconds, 2))
    found = [figure(f"boot.seconds{name}", platform_name, cpus, "seconds", each) for name, each in taken.items()]
    for name, each in taken.items():
        if name != ".native":
            paired = [round(with_hv / without, 4) for with_hv, without in zip(each, taken[".native"], strict=True)]
            found.append(figure(f"boot.ratio{name}", platform_name, cpus, "wall ratio", paired))
    return found

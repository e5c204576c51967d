# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Events of the root: the same program sees the same with the hypervisor and without, on the same machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot.result import BootResult
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import BootStrategy, State
from hvtools.machines.qmp import QmpMonitor

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Session

pytestmark = pytest.mark.needs("hypervisor")

RF = 1 << 16
SVME = 1 << 12
EFER_TAKEN = "WRMSR takes reserved bits of EFER, and LME while paging is on (APM2 3.1.7)"
GD_KEPT = "#DB leaves DR7.GD as it is (APM2 13.1.1.4)"

# What an emulator does not do by the manual, so that the hypervisor, which does, is not like it.
NOT_BY_THE_MANUAL: dict[str, dict[str, str]] = {
    "qemu-svm": {
        "gp_efer_lme": EFER_TAKEN,
        "gp_efer_reserved": EFER_TAKEN,
        "step_gp": EFER_TAKEN,
        "df_of_gp": EFER_TAKEN,
        "nested_gp_of_host": EFER_TAKEN,
        "nested_df": EFER_TAKEN,
        "step_gd": GD_KEPT,
        "step_cpuid_gd": GD_KEPT,
    },
    "bochs-vmx": {},
    "bochs-svm": {
        "nested_interrupt": "EXITINTINFO of an interrupt is that of the exception before it (APM2 15.7.2)",
    },
}
# Those whose own faults do not push RF (APM2 8.2; SDM volume 3, 18.3.1.1): their lines are compared without it.
FAULTS_WITHOUT_RF = {"qemu-svm"}


def without_rf(line: str) -> str:
    return re.sub(r"rflags=0x(\w+)", lambda flags: f"rflags={int(flags[1], 16) & ~RF:#x}", line)


def without_svme(line: str) -> str:
    """Without what EFER shows of SVM: the root reads it as it is."""
    return re.sub(r"rax=0x(\w+) rcx=0xC0000080", lambda rax: f"rax={int(rax[1], 16) & ~SVME:#x} rcx=EFER", line)


def events(result: BootResult, platform: str) -> dict[str, list[str]]:
    """The lines of each scenario of HvEvents, without the scenario's name."""
    found: dict[str, list[str]] = {}
    for line in result.record.console.splitlines():
        if match := re.match(r"HvEvents: (\w+) (.*)", line):
            text = without_svme(match[2].strip())
            found.setdefault(match[1], []).append(without_rf(text) if platform in FAULTS_WITHOUT_RF else text)
    assert "HvEvents: done" in result.record.console, result.report()
    return found


@pytest.mark.everywhere
def test_events_are_those_of_the_bare_machine(boot: Boot, platform: str) -> None:
    program = build.ensure_built("DEBUG").folder / "HvEvents.efi"
    bare = events(boot(application=program, cpus=2, hypervisor=False).must_be_ok(), platform)
    under = events(boot(application=program, cpus=2).must_be_ok(), platform)
    assert bare.keys() == under.keys() and len(bare) >= 80
    different = {name: (bare[name], under[name]) for name in bare if bare[name] != under[name]}
    assert different.keys() == NOT_BY_THE_MANUAL[platform].keys(), different
    # What both say is right, too: none of them is lost or doubled.
    assert under["nmi_ten_thousand"][0] == "events=10000 gave-up=0"
    assert under["nested_nmi"] == ["events=1 gave-up=1", "vector=2"]
    # Here the manual is the referee: #GP comes where the emulator has none, and #DF of it.
    assert under["gp_efer_lme"][1].startswith("vector=13 at=12 error=0x0"), under["gp_efer_lme"]


# Processors, NMIs, with the hypervisor. Without it, the machine must be able to do it, too.
NMIS = pytest.mark.parametrize(
    ("cpus", "count", "hypervisor"),
    [
        (4, 200, True),
        pytest.param(1, 10_000, True, marks=pytest.mark.slow),
        pytest.param(4, 10_000, True, marks=pytest.mark.slow),
        pytest.param(4, 10_000, False, marks=pytest.mark.slow),
    ],
)
NMI_PROGRAM = "HvNmi.efi"
LONG = 1800.0


@contextlib.contextmanager
def nmi_program(session: Session, cpus: int, hypervisor: bool) -> Iterator[BootStrategy]:
    """A machine at the shell that has the program."""
    program = build.ensure_built("DEBUG").folder / NMI_PROGRAM
    added = {PurePosixPath(NMI_PROGRAM): program}
    with session(cpus=cpus, timeout=LONG, added=added, hypervisor=hypervisor) as strategy:
        strategy.transition(State.HYPERVISOR if hypervisor else State.SHELL)
        yield strategy


def arrived(output: str) -> list[int]:
    """The NMIs that each processor has counted."""
    return [int(number) for number in re.findall(r"^HvNmi: cpu=\d+ nmis=(\d+)", output, re.MULTILINE)]


@pytest.mark.timeout(2 * LONG)
@NMIS
def test_each_nmi_of_a_device_comes_once_at_every_processor(
    session: Session, cpus: int, count: int, hypervisor: bool
) -> None:
    with nmi_program(session, cpus, hypervisor) as strategy:
        output = EfiShell(strategy).must(f"fs0:\\add\\{NMI_PROGRAM} {count}")
    assert arrived(output) == [count] * cpus


def send_nmis(strategy: BootStrategy, count: int) -> None:
    """Send NMIs to a machine that waits for them, each when the one before has arrived at every processor."""
    _, match = strategy.expect([re.compile(r"HvNmi: first=0x(\w+) stride=(\d+) cpus=(\d+)")])
    first, stride, cpus = int(match[1], 16), int(match[2]), int(match[3])
    monitor = strategy.machine.monitor
    assert isinstance(monitor, QmpMonitor)

    def counted(cpu: int) -> int:
        said = monitor.execute("human-monitor-command", {"command-line": f"xp /1gx {first + cpu * stride:#x}"})
        return int(str(said).split()[1], 16)

    for sent in range(1, count + 1):
        monitor.execute("inject-nmi")
        for cpu in range(cpus):
            while counted(cpu) < sent:
                assert strategy.remaining > 0, f"NMI {sent} has not arrived at processor {cpu}"


@pytest.mark.needs("nmi")
@pytest.mark.timeout(2 * LONG)
@NMIS
def test_each_nmi_from_outside_comes_once_at_every_processor(
    session: Session, cpus: int, count: int, hypervisor: bool
) -> None:
    with nmi_program(session, cpus, hypervisor) as strategy:
        shell = EfiShell(strategy)
        before = len(strategy.machine.console.text())
        shell.type(f"fs0:\\add\\{NMI_PROGRAM} wait {count}")
        send_nmis(strategy, count)
        strategy.expect([re.compile(rf"HvNmi: sent={count} result=Success")])
        assert arrived(strategy.machine.console.text()[before:]) == [count] * cpus

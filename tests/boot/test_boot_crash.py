# SPDX-License-Identifier: BSD-2-Clause-Patent
"""An exception of the hypervisor itself: reported with its place, and again by the next boot after a warm reset."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot import startup
from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import BootStrategy, State
from hvtools.decode.hypervisor import HypervisorLog

if TYPE_CHECKING:
    from tests.boot.conftest import Session

pytestmark = pytest.mark.needs("hypervisor")

DE, UD, DF, GP, PF = 0, 6, 8, 13, 14
RECORD = ("host-exception", "host-registers", "host-registers-high", "host-control", "host-stack")
LOOKED_EVERY = 0.2


def crasher() -> dict[PurePosixPath, Path]:
    return {PurePosixPath("HvCrash.efi"): build.ensure_built("DEBUG").folder / "HvCrash.efi"}


def crash(strategy: BootStrategy, vector: int, cpu: int) -> None:
    EfiShell(strategy).type(f"fs0:\\add\\HvCrash.efi {vector} {cpu}")


def again(strategy: BootStrategy) -> str:
    """Wait until HvDxe is loaded once more; its log since then."""
    strategy.expect([re.compile("any other key to continue")])
    strategy.machine.console.send("\r")
    _, match = strategy.expect([startup.LOADED])
    assert int(match[1], 16) == 0, "the next boot runs under the hypervisor again"
    log = strategy.machine.hypervisor_log()
    return log[log.rindex("hv: info cpu0 start ") :]


def events(log: Sequence[LogLine], name: str) -> list[LogLine]:
    return [line for line in log if line.event == name]


def decoded(log: str) -> list[str]:
    reader = HypervisorLog()
    for line in log.splitlines():
        reader.feed(line)
    return [line for report in reader.reports() for line in report.explanations]


def check_record(before: str, after: str, vector: int, cpu: int) -> None:
    """The next boot's log has what this run's log has, and more."""
    log, told = parse_log(before), parse_log(after)
    names = [line.event for line in told]
    record = told[names.index("previous-run") + 1 : names.index("previous-run-end")]
    (begin,), (end,) = events(told, "previous-run"), events(told, "previous-run-end")
    (image,) = events(log, "image")
    assert begin.fields["base"] == image.fields["base"] and begin.fields["cpu"] == str(cpu)
    assert [line for line in record if line.event != "previous-log"] == [line for line in log if line.event in RECORD]
    (exception,) = events(record, "host-exception")
    assert exception.cpu == cpu and exception.fields["vector"] == str(vector)
    previous = [line.fields["text"] for line in events(record, "previous-log")]
    assert len(previous) == int(end.fields["lines"]) > 0
    assert f"error cpu{cpu} host-exception " in "\n".join(previous), "the last lines of the ring"
    # The tool says where, for the run itself and for what it left.
    place = r"Inject\.c:\d+" if vector != DF else "Overflow"
    for text in (before, after):
        (said,) = [line for line in decoded(text) if f"cpu{cpu}: the hypervisor itself took" in line]
        assert re.search(place, said), said


def crash_again_and_again(strategy: BootStrategy, cases: Sequence[tuple[int, int]]) -> None:
    """Raise exceptions in the host, each in the run that the one before began, and look at what both runs say."""
    strategy.transition(State.HYPERVISOR)
    run = strategy.machine.hypervisor_log()
    for vector, cpu in cases:
        known = len(strategy.machine.hypervisor_log())
        crash(strategy, vector, cpu)
        following = again(strategy)
        crashed = strategy.machine.hypervisor_log()[known : -len(following)]
        check_record(run + crashed, following, vector, cpu)
        # What the run before left is not this run's.
        run = following[following.index("hv: info cpu0 image ") :]


@pytest.mark.everywhere
def test_the_next_boot_prints_what_crashed(session: Session) -> None:
    settings = {"inject": "on", "on_crash": "reset"}
    with session(restart=True, cpus=2, settings=settings, added=crasher()) as strategy:
        crash_again_and_again(strategy, ((PF, 1), (GP, 0), (DE, 1)))


@pytest.mark.slow
def test_a_stack_that_overflows_meets_its_guard_page_and_is_told_once(session: Session) -> None:
    settings = {"inject": "on", "on_crash": "reset"}
    with session(restart=True, cpus=2, settings=settings, added=crasher()) as strategy:
        crash_again_and_again(strategy, ((DF, 0), (UD, 1)))
        EfiShell(strategy).type("reset -w")
        assert not [line for line in parse_log(again(strategy)) if line.event.startswith("previous-")]


@pytest.mark.needs("smp")
def test_by_default_the_processors_stop_and_say_so(session: Session) -> None:
    with session(cpus=3, settings={"inject": "on"}, added=crasher()) as strategy:
        strategy.transition(State.HYPERVISOR)
        crash(strategy, PF, 1)
        while len(parked := events(parse_log(strategy.machine.hypervisor_log()), "host-park")) < 3:
            assert strategy.remaining > 0, strategy.machine.hypervisor_log()
            time.sleep(LOOKED_EVERY)
    assert {line.cpu for line in parked} == {0, 1, 2}
    assert [line.fields["reason"] for line in parked if line.cpu == 1] == ["exception"]


def test_without_the_option_nothing_crashes(session: Session) -> None:
    with session(cpus=2, added=crasher()) as strategy:
        strategy.transition(State.HYPERVISOR)
        for cpu in range(2):
            status, output = EfiShell(strategy).run(f"fs0:\\add\\HvCrash.efi {PF} {cpu}")
            assert status != 0 and "still here: Success, FFFFFFFFFFFFFFFF" in output
        assert not events(parse_log(strategy.machine.hypervisor_log()), "host-exception")

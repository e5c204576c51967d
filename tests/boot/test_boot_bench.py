# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The cost of an exit, where it can be counted exactly, is within its budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.bench import linux, shell
from hvtools.bench.budgets import of_platforms, over_budget
from hvtools.bench.figures import HOST, read_report
from hvtools.boot.request import BootRequest
from hvtools.boot.runner import run
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Hv

pytestmark = pytest.mark.needs("hypervisor")


@pytest.mark.everywhere
@pytest.mark.needs("process")
def test_an_exit_is_within_its_budget(platform: str, _logs: Callable[[], Path]) -> None:
    # With two processors the xAPIC page is trapped; on Bochs they would share the counter.
    cpus = 1 if "ticks" in platform_named(platform).capabilities else 2
    budgets = [
        each for each in of_platforms([platform]) if each.cpus == cpus and each.unit in ("instructions", "bytes")
    ]
    assert budgets
    assert over_budget(shell.measure(platform, cpus, _logs()), budgets) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_benchmark_has_its_figures(hv: Hv) -> None:
    with hv.start("bench", "--quick", "--on", "qemu-svm", "--json", "out.json") as running:
        _, said = running.communicate()
    assert running.returncode == 0, said
    figures = read_report(hv.folder / "out.json").figures
    assert {each.platform for each in figures} == {"qemu-svm", HOST}
    names = {each.key for each in figures}
    # All that has a budget, and the exits of a boot, whose kinds are those that came.
    assert names >= {budget.key for budget in of_platforms(["qemu-svm"])}
    wanted = (
        "boot.exits.total",
        "boot.exits.cpuid",
        "boot.exits.but-cpuid",
        "idle.exits.but-cpuid",
        "load.exits.but-cpuid",
    )
    assert names >= {(name, "qemu-svm", 1) for name in wanted}
    assert all(each.runs for each in figures)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_64_processors_are_virtualised_and_take_little_memory(_logs: Callable[[], Path]) -> None:
    request = BootRequest(
        platform="qemu-svm",
        cpus=64,
        accelerator="tcg,thread=single",
        application=build.ensure_built("DEBUG").folder / "HvReturn.efi",
        timeout=1500,
    )
    result = run(request, _logs()).must_be_ok()
    assert result.virtualised == list(range(64))
    status = result.checks.status
    assert status is not None and status.virtualised == 64
    assert status.reserved_bytes <= (4 << 20) + 64 * (128 << 10)


@pytest.mark.everywhere
@pytest.mark.needs("process")
def test_the_exits_of_linux_are_within_their_budget_and_none_while_it_idles(
    platform: str, _logs: Callable[[], Path]
) -> None:
    budgets = [each for each in of_platforms([platform]) if each.unit == "exits"]
    assert budgets
    figures = linux.exits(platform, 1, _logs())
    assert over_budget(figures, budgets) == []
    assert {each.value for each in figures if each.name == "idle.exits.but-cpuid"} == {0}


@pytest.mark.slow
@pytest.mark.everywhere
@pytest.mark.needs("process", "ticks")
def test_linux_pays_for_cpuid_what_the_shell_pays(platform: str, _logs: Callable[[], Path]) -> None:
    (budget,) = [each for each in of_platforms([platform]) if each.key == ("exit.cpuid", platform, 1)]
    (found,) = [each.value for each in linux.exits(platform, 1, _logs()) if each.name == "exit.cpuid.linux"]
    assert abs(found / budget.limit - 1) <= 0.05


@pytest.mark.slow
@pytest.mark.everywhere
@pytest.mark.needs("process", "ticks")
def test_linux_takes_hardly_more_instructions_than_without(platform: str, _logs: Callable[[], Path]) -> None:
    budgets = [each for each in of_platforms([platform]) if each.unit == "ratio"]
    assert budgets
    assert over_budget(linux.ticks(platform, 1, _logs()), budgets) == []

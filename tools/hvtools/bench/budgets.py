# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The budgets: what a deterministic figure may be at most."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvtools.bench.figures import DETERMINISTIC, HOST, Figure
from hvtools.errors import HvError

BUDGETS = Path(__file__).with_name("budgets.toml")


@dataclass(frozen=True)
class Budget:
    """The most that a figure may be.

    Attributes:
        name: of the figure, as are platform, cpus and unit.
        limit: in that unit.
        slow: to measure it takes minutes.
    """

    name: str
    platform: str
    cpus: int
    unit: str
    limit: float
    slow: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """The figure that it is for."""
        return self.name, self.platform, self.cpus


def read_budgets(path: Path = BUDGETS) -> list[Budget]:
    """Read the file.

    Raises:
        HvError: a row is no budget, or two are for the same figure.
    """
    budgets: list[Budget] = []
    for group in tomllib.loads(path.read_text())["budget"]:
        for name, limit in group["limits"].items():
            budget = Budget(name, group["platform"], group["cpus"], group["unit"], limit, group.get("slow", False))
            if budget.unit not in DETERMINISTIC:
                raise HvError(f"{path.name}: {name} on {budget.platform}: there are no budgets in {budget.unit}")
            if any(other.key == budget.key for other in budgets):
                raise HvError(f"{path.name}: two budgets for {name} on {budget.platform} with {budget.cpus} CPUs")
            budgets.append(budget)
    return budgets


def of_platforms(names: Sequence[str], slow: bool = True) -> list[Budget]:
    """Read the budgets of some platforms, and of what needs no machine.

    Args:
        names: of the platforms.
        slow: those too that take minutes to measure.
    """
    return [each for each in read_budgets() if each.platform in (*names, HOST) and (slow or not each.slow)]


def over_budget(figures: Iterable[Figure], budgets: Iterable[Budget]) -> list[str]:
    """Compare figures with their budgets.

    Args:
        figures: what was measured.
        budgets: of the figures that had to be measured: one that is missing counts as over its budget.

    Returns:
        one line for each figure that is over.
    """
    measured = {each.key: each for each in figures}
    found = []
    for budget in budgets:
        cpus = f" with {budget.cpus} CPU{'s' * (budget.cpus != 1)}" if budget.cpus else ""
        where = f"{budget.name} on {budget.platform}{cpus}"
        got = measured.get(budget.key)
        if got is None:
            found.append(f"{where} was not measured")
        elif got.unit != budget.unit:
            found.append(f"{where} was measured in {got.unit}, its budget is in {budget.unit}")
        elif got.value == 0 and budget.name.startswith("exit."):
            found.append(f"{where} does not exit")
        elif got.value > budget.limit:
            found.append(f"{where}: {got.value:g} {got.unit}, at most {budget.limit:g}")
    return found

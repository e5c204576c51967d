# SPDX-License-Identifier: BSD-2-Clause-Patent
"""One line of the doctor's findings."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mark(enum.Enum):
    """How a finding is meant."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        mark: whether something that is needed is missing (BAD), or there is something to know (NOTE).
        value: what was found.
        fix: what changes it; every BAD one has a fix.
    """

    name: str
    mark: Mark
    value: str
    fix: str = ""

    def __post_init__(self) -> None:
        """Refuse to complain without help.

        Raises:
            ValueError: a BAD finding without a fix.
        """
        if self.mark is Mark.BAD and not self.fix:
            raise ValueError(f"{self.name}: a finding that is bad needs a fix")

    @property
    def is_bad(self) -> bool:
        """Something that is needed is missing."""
        return self.mark is Mark.BAD

    def as_json(self) -> dict[str, str]:
        """The same for `--json`."""
        return {"name": self.name, "mark": self.mark.value, "value": self.value, "fix": self.fix}


def passed(good: bool, name: str, value: str, fix: str, otherwise: Mark = Mark.BAD) -> Check:
    """Give a finding that is OK if `good`, else `otherwise`, and only then has its fix."""
    return Check(name, Mark.OK if good else otherwise, value, "" if good else fix)

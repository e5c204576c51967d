# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's log: `hv: LEVEL cpuN event key=value ...`, one line for each event."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LEVELS = ("error", "warn", "info", "debug")

# A value with a quote in front is that quoted text and nothing else: two ways to read it would multiply.
_FIELD = re.compile(r'([A-Za-z0-9_.-]+)=("[^"]*"|(?!")\S*)')
# The firmware may have its own console on the same port: a line of ours can begin behind some of its output.
_LINE = re.compile(
    rf"hv: ({'|'.join(LEVELS)}) cpu(\d+) ([a-z0-9][a-z0-9-]*)((?: [A-Za-z0-9_.-]+=(?:\"[^\"]*\"|(?!\")\S*))*)\s*$"
)


@dataclass(frozen=True)
class LogLine:
    """One event."""

    level: str
    cpu: int
    event: str
    fields: Mapping[str, str]

    def text(self) -> str:
        """Give the event for people."""
        return " ".join([self.event, *(f"{key}={value}" for key, value in self.fields.items())])


def fields_of(text: str) -> dict[str, str]:
    """Split `key=value key="two words"` into a dictionary."""
    return {key: value.strip('"') for key, value in _FIELD.findall(text)}


def parse_log(text: str) -> list[LogLine]:
    """Find the hypervisor's lines in `text`; all others are left out."""
    found = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match:
            found.append(LogLine(match[1], int(match[2]), match[3], fields_of(match[4])))
    return found


def reasons(lines: list[LogLine]) -> list[str]:
    """Say why a launch failed: what it needed and did not find, then what went wrong."""
    unmet = [line.text() for line in lines if line.event == "requirement-unmet"]
    return unmet or [line.text() for line in lines if line.level == "error"]

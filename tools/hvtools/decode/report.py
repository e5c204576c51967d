# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a decoder has to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

K = TypeVar("K")


@dataclass(frozen=True)
class Table:
    """Rows under a title; all cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Report:
    """What was found in a file of one format.

    Attributes:
        format: What it is, for people.
        explanations: What happened, in words, one line each and the cause first.
        tables: The details.
        data: The same for programs, where a table does not have it.
    """

    format: str
    explanations: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Give the report for `--json`."""
        tables = [
            {"title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]} for t in self.tables
        ]
        return {"format": self.format, "explanations": self.explanations, "tables": tables, **self.data}

    def print(self, console: Console) -> None:
        """Show the report to a person. What comes from a file is text, never markup or control sequences."""
        console.print(Text(self.format, style="bold"))
        for explanation in self.explanations:
            console.print(Text(f"  {printable(explanation)}"))
        for table in self.tables:
            console.print()
            shown = RichTable(
                box=box.SIMPLE_HEAD, title_justify="left", title=Text(printable(table.title)), pad_edge=False
            )
            for column in table.columns:
                shown.add_column(Text(column), overflow="fold")
            for row in table.rows:
                shown.add_row(*(Text(printable(cell)) for cell in row))
            console.print(shown)


class Decoder(Protocol):
    """Reads a file of one format line by line, in memory that does not grow with the file."""

    def feed(self, line: str) -> None:
        """Take the next line, without its end."""

    def reports(self) -> list[Report]:
        """Say what was found; nothing if there was nothing of this format."""


def count(counts: Counter[K], key: K, most: int) -> bool:
    """Count one more of a key, unless it is new and there are so many: a file may have any number of different ones.

    Returns:
        Whether it was counted.
    """
    if key not in counts and len(counts) >= most:
        return False
    counts[key] += 1
    return True


class Explanations:
    """Lines in the order in which they came first, each with the number of times; later kinds are only counted."""

    def __init__(self, most: int = 100) -> None:
        """Make an empty list that keeps so many different lines."""
        self._most = most
        self._counts: Counter[str] = Counter()
        self._more = 0

    def add(self, line: str) -> None:
        """Add a line."""
        if not count(self._counts, line, self._most):
            self._more += 1

    def lines(self) -> list[str]:
        """Give the lines."""
        found = [line if times == 1 else f"{line} ({times} times)" for line, times in self._counts.items()]
        return [*found, f"and {self._more} more"] if self._more else found


def printable(text: str) -> str:
    """Give text without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Figures as a table: a row for each name, a column for each place."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from hvtools.bench.figures import Figure, Report


def _value(each: Figure | None, before: Report | None) -> str:
    if each is None:
        return ""
    text = f"{each.value:,}" if isinstance(each.value, int) or each.value < 0.1 else f"{each.value:,.2f}"
    old = before.find(each.key) if before else None
    if old is None or old.unit != each.unit or old.value == each.value:
        return text
    change = f" ({(each.value - old.value) / old.value:+.1%})" if old.value else ""
    return f"{text} was {old.value:,g}{change}"


def table(report: Report, before: Report | None = None) -> Table:
    """Make the table.

    Args:
        report: what was measured.
        before: an earlier report; where a figure differs, the cell says so.
    """
    places = list(dict.fromkeys((each.platform, each.cpus) for each in report.figures))
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("figure", no_wrap=True)
    made.add_column("unit", no_wrap=True)
    for platform, cpus in places:
        processors = f"{cpus} CPU{'s' * (cpus != 1)}" if cpus else ""
        made.add_column(f"{platform}\n{processors}", justify="right", no_wrap=True)
    for name, unit in dict.fromkeys((each.name, each.unit) for each in report.figures):
        cells = [report.find((name, *place)) for place in places]
        if any(cell is not None and cell.unit == unit for cell in cells):
            made.add_row(name, unit, *(_value(c if c and c.unit == unit else None, before) for c in cells))
    return made


def print_whole(console: Console, made: Table) -> None:
    """Print a table in its own width: a figure that is cut off says nothing."""
    screen = console.width
    console.width = max(screen, Measurement.get(console, console.options.update(width=10_000), made).maximum)
    console.print(made)
    console.width = screen

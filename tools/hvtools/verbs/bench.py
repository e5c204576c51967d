# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv bench`: what the hypervisor costs."""

from __future__ import annotations

from pathlib import Path

import click

from hvtools import completion, report, ui
from hvtools.bench import budgets, plan, show
from hvtools.bench.figures import read_report, report_of
from hvtools.boot.runner import logs_folder
from hvtools.errors import HvError
from hvtools.machines.registry import LAB, PLATFORM_NAMES, PLATFORMS, platform_named

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(
    "bench",
    epilog="""\b
Examples:
  hv bench --quick                what takes seconds
  hv bench --json before.json     to compare with later
  hv bench --compare before.json  what changed since
  hv bench --on lab:box.yaml      cycles of a real processor
  hv bench --plot plots/          bars and curves""",
)
@click.option(
    "--on",
    "platforms",
    shell_complete=completion.platforms,
    metavar="PLATFORM",
    multiple=True,
    help=f"{', '.join(PLATFORM_NAMES)}, or {LAB}FILE for a box in a lab; default: all that are emulated.",
)
@click.option("--quick", is_flag=True, help="Only what takes seconds.")
@click.option("--check", is_flag=True, help="Fail if a figure is over its budget; measures only what has one.")
@click.option("--compare", metavar="FILE", type=_FILE, help="Show the change since a report of --json.")
@click.option("--plot", "plots", metavar="DIR", type=_FOLDER, help="Draw the figures into files of this folder.")
@report.json_option
@click.option("--keep", type=_FOLDER, metavar="DIR", help="Folder for all logs.")
def command(
    platforms: tuple[str, ...],
    quick: bool,
    check: bool,
    compare: Path | None,
    plots: Path | None,
    json_file: Path | None,
    keep: Path | None,
) -> int:
    """Measure what the hypervisor costs: instructions of each exit, exits of a boot, time, memory.

    Instructions are exact: Bochs counts them, and QEMU does with -icount. KVM and a box in a lab give cycles. Every
    other figure has the unit in which it was measured.
    """
    names = [platform_named(name).name for name in platforms or PLATFORMS]
    before = read_report(compare) if compare else None
    folder = logs_folder(keep)
    if plots is not None:
        plots = logs_folder(plots)
    wanted = plan.QUICK if quick else plan.CHECKED if check else plan.ALL
    figures = []
    for part in wanted:
        with ui.step(part.title) as step:
            figures += part.measure(names, folder, step)
    result = report_of(figures)
    report.write(json_file, result.as_json())  # first: whoever reads the table may leave
    show.print_whole(ui.out, show.table(result, before))
    if plots is not None:
        from hvtools.bench import plot  # matplotlib takes a second to load

        for path in plot.write(result, plots):
            ui.info(f"plot: {path}")
    if check:
        over = budgets.over_budget(figures, budgets.of_platforms(names, slow=not quick))
        if over:
            raise HvError("over budget: " + "; ".join(over))
    return 0

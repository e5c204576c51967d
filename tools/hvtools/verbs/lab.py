# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv lab`: boxes in a lab, by labgrid."""

import asyncio
import math
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import click

from hvtools import build, report, ui
from hvtools.boot.request import SECONDS_MAX
from hvtools.errors import HvError, UsageError
from hvtools.setup import setup_all

_FILE = click.Path(path_type=Path)


@click.group(
    "lab",
    epilog="""\b
Examples:
  hv lab demo                                      a lab of three emulated boxes, until Ctrl-C
  hv lab run --env box.yaml --place box1 --place box2
  hv lab run --env box.yaml --tag board=x570 -- -k smp
  hv test --lab box.yaml                           one box, without coordinator""",
)
def command() -> None:
    """Run the boot tests on boxes of a lab that labgrid manages."""


class _Seconds(click.FloatRange):
    """A time that a clock can count."""

    def __init__(self, least: float) -> None:
        super().__init__(least, SECONDS_MAX)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Refuse what is no number, too: it is not outside of any range."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a valid float.", param, ctx)
        return seconds


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    wrong = [pair for pair in pairs if not all(pair.partition("="))]
    if wrong:
        raise UsageError(f"--tag {wrong[0]}: KEY=VALUE is wanted")
    return dict(pair.split("=", 1) for pair in pairs)


@command.command(
    "run",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  hv lab run --env box.yaml --place box1 --place box2
  hv lab run --env box.yaml --tag board=x570 --wait 600     boxes that others have now
  hv lab run --env box.yaml --tag board=x570 -- -k smp      a part of the tests""",
)
@click.option("--env", "environment", type=_FILE, required=True, metavar="FILE", help="Environment file of the boxes.")
@click.option("--coordinator", metavar="HOST:PORT", help="labgrid's coordinator, else $LG_COORDINATOR.")
@click.option("--place", "places", multiple=True, metavar="NAME", help="A box; may be given again.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="All boxes that have all of these tags.")
@click.option("--wait", type=_Seconds(0), default=0.0, metavar="S", help="Seconds to wait for busy boxes (0).")
@click.option("--limit", type=_Seconds(1), default=3600.0, metavar="S", help="Seconds for one box (3600).")
@click.option("--all", "slow", is_flag=True, help="Also the slow tests.")
@click.option("--keep", type=_FILE, metavar="DIR", help="Folder for logs and reports, a new one.")
@report.json_option
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    environment: Path,
    coordinator: str | None,
    places: tuple[str, ...],
    tags: tuple[str, ...],
    wait: float,
    limit: float,
    slow: bool,
    keep: Path | None,
    json_file: Path | None,
    pytest_arguments: tuple[str, ...],
) -> int:
    """Reserve boxes, run the boot tests on all of them at once, and release each when it is through.

    LG_PLACE in the environment file stands for the box. A box that hangs is reported, switched off and released while
    the others go on. Further arguments go to pytest. Exit code 1 if anything failed on any box.
    """
    from hvtools.lab import report as reports
    from hvtools.lab import run as runs

    wanted = _tags(tags)
    if not places and not wanted:
        raise UsageError("no box is named: give --place or --tag")
    if not environment.is_file():
        raise UsageError(f"the environment file {environment} does not exist or is no file")
    address = coordinator or os.environ.get("LG_COORDINATOR")
    if address is None:
        raise UsageError("no coordinator is named: give --coordinator, or set LG_COORDINATOR")
    asyncio.run(runs.check(address, places, wanted))
    setup_all()
    for target in build.TARGETS:
        build.ensure_built(target)
    folder = runs.folder_for(keep)
    plan = runs.Plan(environment.absolute(), address, folder, slow, pytest_arguments, limit, wait)
    results = asyncio.run(runs.run(plan, places, wanted, ui.info))
    reports.write(folder, results, (runs.OUTPUT, runs.JUNIT, runs.BOOTS))
    report.write(json_file, {"report": str(folder), "boxes": [result.as_json() for result in results]})
    ui.out.print(f"report: {folder / reports.HTML}", markup=False)
    if bad := [result.name for result in results if not result.ok]:
        raise HvError(f"{len(bad)} of {len(results)} boxes did not pass: {', '.join(bad)} (see the report)")
    return 0


@command.command(
    "demo",
    epilog="""\b
Examples:
  hv lab demo                         three boxes, until Ctrl-C
  hv lab demo --boxes 2 --hang box2   one of them hangs""",
)
@click.option("--boxes", type=click.IntRange(1, 16), default=3, metavar="N", help="Emulated boxes (3).")
@click.option("--hang", "hanging", multiple=True, metavar="NAME", help="A box that hangs; may be given again.")
@click.option("--keep", type=_FILE, metavar="DIR", help="Folder for all that the lab needs, a new one.")
def demo(boxes: int, hanging: tuple[str, ...], keep: Path | None) -> None:
    """Make a lab on this machine: emulated boxes behind labgrid's coordinator and exporter, until Ctrl-C."""
    from hvtools.lab.demo import Demo

    names = [f"box{number}" for number in range(1, boxes + 1)]
    if unknown := set(hanging) - set(names):
        raise UsageError(f"--hang {min(unknown)}: the boxes are {', '.join(names)}")
    if keep is not None and keep.exists():
        raise UsageError(f"{keep} is there already")
    with tempfile.TemporaryDirectory(prefix="hv-lab-") as temporary:
        folder = Path(temporary) if keep is None else keep.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with Demo(folder, names, frozenset(hanging)) as lab:
            ui.out.print(f"LG_COORDINATOR={lab.address} LG_ENV={lab.environment}", markup=False)
            ui.info(f"{len(names)} boxes: {', '.join(names)}; in another terminal, for example")
            ui.info(f"  hv lab run --coordinator {lab.address} --env {lab.environment} --tag board=qemu")
            ui.info(f"  labgrid-client -x {lab.address} places")
            ui.info("Ctrl-C ends it")
            signal.pause()

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv trace`: a boot whose every exit is recorded."""

from pathlib import Path

import click
from rich.table import Table

from hvtools import completion, report, ui
from hvtools.boot import runner
from hvtools.boot.hvlog import parse_log
from hvtools.boot.request import BootRequest, parse_added, parse_settings
from hvtools.boot.strategy import BootStrategy, State
from hvtools.errors import HvError, UsageError
from hvtools.generated.options import OPTIONS
from hvtools.machines.live import LiveMemory, live_memory
from hvtools.machines.registry import DEFAULT_PLATFORM, PLATFORM_NAMES, platform_named
from hvtools.trace import kernel, records
from hvtools.trace.summary import Summary, summarise
from hvtools.trace.symbols import Symbols

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_RECORDS = 65536
_POLL_SECONDS = 0.2


@click.command(
    "trace",
    epilog="""\b
Examples:
  hv trace --picture exits.svg             a boot of Linux, drawn
  hv trace --cpus 8 --json exits.json      its numbers for a program
  hv trace --symbols kernel                functions of the kernel instead of addresses
  hv trace --on bochs-vmx --symbols System.map
  hv trace --script stress.sh --places 30  of what a script does in Linux""",
)
@click.option(
    "--on",
    "platform",
    shell_complete=completion.platforms,
    metavar="PLATFORM",
    default=DEFAULT_PLATFORM,
    help=f"Platform ({DEFAULT_PLATFORM}): {', '.join(PLATFORM_NAMES)}.",
)
@click.option("--cpus", type=int, default=2, metavar="N", help="Processors (2).")
@click.option(
    "--records",
    "count",
    type=click.IntRange(1, OPTIONS["trace"].maximum),
    default=_RECORDS,
    metavar="N",
    help=f"Exits that are kept for each processor, the newest ones ({_RECORDS}).",
)
@click.option(
    "--symbols",
    metavar="FILE|kernel",
    help="System.map or /proc/kallsyms of the kernel; kernel: of the pinned one, by a boot of its own the first time.",
)
@click.option("--places", type=click.IntRange(1, 10000), default=15, metavar="N", help="Hottest guest addresses (15).")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw it: .svg or .png."
)
@click.option("--script", type=_FILE, metavar="FILE", help="As for hv boot.")
@click.option("--run", "application", type=_FILE, metavar="F.efi", help="As for hv boot.")
@click.option("--add", "added", multiple=True, metavar="F[:DEST]", help="As for hv boot.")
@click.option(
    "--set",
    "settings",
    shell_complete=completion.settings,
    multiple=True,
    metavar="OPTION=VALUE",
    help="As for hv boot.",
)
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Folder for all logs.")
@report.json_option
def command(
    platform: str,
    cpus: int,
    count: int,
    symbols: str | None,
    places: int,
    picture: Path | None,
    script: Path | None,
    application: Path | None,
    added: tuple[str, ...],
    settings: tuple[str, ...],
    keep: Path | None,
    json_file: Path | None,
) -> None:
    """Boot with a record of every exit, and say which exits there were, when, and where in the guest.

    The records are in the hypervisor's memory and are read when the machine has powered off. With --symbols the kernel
    is started at its linked address (nokaslr).
    """
    found = platform_named(platform)
    if "memory" not in found.capabilities:
        raise UsageError(f"{platform}: its memory cannot be read from outside: use --on {DEFAULT_PLATFORM}")
    names = None if symbols is None else Symbols(_symbols_file(symbols))
    if picture is not None:
        # It takes a second to load, and no other verb needs it.
        from hvtools.trace import picture as drawing

        drawing.check(picture)
    request = BootRequest(
        platform=platform,
        cpus=cpus,
        script=script,
        application=application,
        added=parse_added(added),
        append=kernel.APPEND if names is not None and application is None else "",
        settings={**parse_settings(settings), "trace": str(count)},
    )
    request.checked()
    trace = _boot(request, runner.logs_folder(keep))
    if not trace.exits:
        raise HvError("the trace has no exit")
    summary = summarise(trace, found.vendor, names, places)
    report.write(json_file, summary.as_json())
    try:
        if picture is not None:
            with ui.step(f"drawing {picture}"):
                drawing.draw(trace, picture, f"exits on {platform}, {cpus} processors")
    finally:
        _print(summary)  # of a boot that took its time, whatever became of the picture


def _symbols_file(name: str) -> Path:
    if name == "kernel":
        return kernel.kernel_symbols()
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--symbols: {path} does not exist or is no file: give one, or say --symbols kernel")
    return path


def _boot(request: BootRequest, folder: Path) -> records.Trace:
    with runner.booting(request, folder, hold=True) as strategy:
        with ui.step(f"booting with a trace on {request.platform}") as step:
            strategy.transition(State.ROOT)
            step.update("running")
            memory = live_memory(strategy.machine.spec.folder)
            if memory is None:
                raise HvError("the machine is gone before its trace could be read")
            _until_off(strategy, memory)
        lines = parse_log(strategy.machine.hypervisor_log())
        with ui.step("reading the records"):
            return records.read(memory, lines)


def _until_off(strategy: BootStrategy, memory: LiveMemory) -> None:
    """Wait until the machine has powered itself off, and is held with its memory."""
    while not memory.held():
        if not strategy.remaining:
            raise HvError("the machine did not power off in time")
        # An emulator whose console nobody reads stands still.
        strategy.machine.console.drain(_POLL_SECONDS)


def _print(summary: Summary) -> None:
    total = sum(sum(counts) for counts in summary.by_kind.values())
    lost = f", {summary.lost} older ones overwritten (--records)" if summary.lost else ""
    ui.out.print(f"{total} exits in {summary.ticks / 1e6:.0f} million ticks{lost}", markup=False)
    table = Table(title="by kind", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("kind")
    table.add_column("exits", justify="right")
    table.add_column("share", justify="right")
    table.add_column("by processor")
    table.add_column("reasons")
    for kind, counts in summary.by_kind.items():
        reasons = ", ".join(f"{name} {n}" for (own, name), n in summary.by_reason.most_common() if own == kind)
        share = f"{100 * sum(counts) / total:.1f} %"
        table.add_row(kind, str(sum(counts)), share, " ".join(map(str, counts)), reasons)
    ui.out.print(table)
    table = Table(title="hottest places of the guest", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("exits", "kind", "place", "mostly at"):
        table.add_column(name, justify="right" if name == "exits" else "left")
    for place in summary.places:
        table.add_row(str(place.count), place.kind, place.name, f"{place.address:#x}")
    ui.out.print(table)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv log`: the hypervisor's log ring, of a machine that runs or of a memory dump."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from hvtools import report, ring, ui
from hvtools.boot.hvlog import LEVELS, LogLine, parse_log
from hvtools.boot.runs import Run, run_at
from hvtools.errors import HvError, UsageError
from hvtools.machines.live import LiveMemory
from hvtools.machines.memory import Dump
from hvtools.machines.protocols import MachineError

_POLL_SECONDS = 0.25
_STYLE = {"error": "red", "warn": "yellow", "info": None, "debug": "dim"}


@click.command(
    "log",
    epilog="""\b
Examples:
  hv log                         the newest boot of this clone
  hv log -f                      the same, and what comes, until the machine ends
  hv log run/ --level warn       of a boot with --keep run/, what is bad
  hv log run/ --save memory.elf  and keep the machine's memory
  hv log memory.elf              out of that dump""",
)
@click.argument("where", required=False, metavar="[RUN|DUMP]", type=click.Path(exists=True, path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Go on until the machine ends.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="Least severe level that is shown (debug).")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Save a memory dump (ELF)."
)
@report.json_option
def command(where: Path | None, follow: bool, level: str, save: Path | None, json_file: Path | None) -> None:
    """Print the hypervisor's log from its ring in memory, which has also what is too frequent for the ports.

    RUN is the folder of a boot, by default the newest of this clone. If its machine has ended, or is one whose memory
    cannot be read, the log of the ports is printed. DUMP is a file with the machine's memory: ELF as QEMU's
    dump-guest-memory writes it, or the plain bytes from address 0.
    """
    if where is not None and not where.is_dir():
        if follow or save:
            raise UsageError(f"--{'follow' if follow else 'save'} is for a machine that runs, and {where} is a file")
        lines = _of_dump(where)
    else:
        lines = _of_run(run_at(where), follow, save)
    shown = []
    for line in lines:
        if LEVELS.index(line.level) <= LEVELS.index(level):
            ui.out.print(f"{line.level:>5} cpu{line.cpu} {line.text()}", style=_STYLE[line.level], markup=False)
            shown.append({"level": line.level, "cpu": line.cpu, "event": line.event, "fields": dict(line.fields)})
    report.write(json_file, {"lines": shown})


def _of_dump(path: Path) -> Iterator[LogLine]:
    dump = Dump(path)
    try:
        for found in ring.in_dump(dump):
            ui.info(f"ring at {found.address:#x}, {found.written} bytes written")
            yield from parse_log(ring.whole_lines(found))
    except HvError as error:
        raise UsageError(f"{path}: {error}") from error
    finally:
        dump.close()


def _of_run(run: Run, follow: bool, save: Path | None) -> Iterator[LogLine]:
    memory = run.memory()
    if memory is None:
        if save:
            raise UsageError(f"--save: no machine runs in {run.folder}, or none whose memory can be read")
        ui.info(f"no machine runs in {run.folder} whose memory can be read: this is its log from the ports")
        yield from run.port_log()
        return
    if save:
        with ui.step(f"saving the memory to {save}"):
            memory.save(save)
    if follow:
        yield from _follow(run, memory)
        return
    found = ring.by_log(memory, run.port_log())
    if found is None:
        ui.info("the hypervisor has no ring yet: this is its log from the ports")
    yield from run.port_log() if found is None else parse_log(ring.whole_lines(found))


def _follow(run: Run, memory: LiveMemory) -> Iterator[LogLine]:
    follower = ring.Follower()
    found = None
    try:
        while True:
            found = ring.by_log(memory, run.port_log()) if found is None else ring.read(memory, found.address)
            if found is not None:
                yield from follower.take(found)
            # Nobody tells when memory changes.
            time.sleep(_POLL_SECONDS)
    except MachineError:
        yield from follower.rest()
        ui.info("the machine has ended")

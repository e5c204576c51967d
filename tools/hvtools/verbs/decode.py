# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv decode`: a log, dump or trace, explained."""

import sys
from pathlib import Path

import click

from hvtools import report, ui
from hvtools.decode import reader
from hvtools.decode.pagewalk import Memory
from hvtools.errors import HvError, UsageError

_FORMATS = "a log of HvDxe or Bochs, a register dump of QEMU or KVM, or a trace of KVM"


_EXAMPLES = """\b
Examples:
  hv decode Build/Boot/20260101-120000-1234
  hv decode hypervisor.log --json out.json
  trace-cmd report | hv decode
"""


@click.command("decode", epilog=_EXAMPLES)
@click.option(
    "--symbols",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="F.debug",
    help="HvDxe.debug of the build that ran, if it is not the one in Build.",
)
@click.option(
    "--memory",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The machine's memory, for page walks: ELF (hv log --save) or bytes from address 0 (QEMU: pmemsave).",
)
@report.json_option
@click.argument("source", metavar="[FILE|-]", default="-")
def command(source: str, symbols: Path | None, memory: Path | None, json_file: Path | None) -> None:
    """Explain a log, a register dump or a trace; FILE can also be the folder of a run (`hv boot --keep`).

    Known are logs of HvDxe (failures in words, addresses with file and line, dumped VMCSs and VMCBs field by field,
    with the manual's rules for an entry run over them), register dumps of QEMU and KVM, logs of Bochs, and
    `trace-cmd report` of KVM's events.
    """
    if source == "-" and sys.stdin.isatty():
        raise UsageError("nothing to decode: give a FILE, or pipe it in")
    physical = Memory(memory) if memory else None
    if source == "-":
        found = {"-": reader.read(sys.stdin.buffer, symbols, physical)}
    else:
        found = reader.read_path(Path(source), symbols, physical)
    reports = [(name, each) for name, some in found.items() for each in some]
    for name, each in reports:
        if len(found) > 1:
            ui.out.print(name, markup=False, style="bold")
        each.print(ui.out)
    report.write(json_file, {"reports": [{"file": name, **each.as_json()} for name, each in reports]})
    if not reports:
        what = "standard input" if source == "-" else source
        raise HvError(f"{what} has nothing that can be decoded: not {_FORMATS}; see `hv decode --help`")

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv debug`: GDB on a machine, from before the launch of the hypervisor."""

from pathlib import Path

import click

from hvtools import completion, toolchain, ui
from hvtools.boot import runner
from hvtools.boot.request import BootRequest, parse_added, parse_settings
from hvtools.debugger import session
from hvtools.errors import HvError, UsageError
from hvtools.machines.registry import DEFAULT_PLATFORM, PLATFORM_NAMES, platform_named

_CPUS = 2
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "debug",
    epilog="""\b
Examples:
  hv debug                                  stops before the launch
  hv debug --break HvOnCpuid --cpu 1        stops at the first CPUID exit of processor 1 (type: continue)
  hv debug --on bochs-vmx                   on VMX, with one processor
  hv debug --break HvOnCpuid --script FILE  runs GDB commands out of a file
\b
Commands of GDB's that are added, `help NAME` says more:
  hv-cpus     processors: state, where each guest is, exits so far
  hv-exit     the last exit in words, and the guest's registers
  hv-vmcb     the VMCB by field
  hv-vmcs     the VMCS by field
  hv-npt A    walk of the nested tables for a guest-physical address
  hv-log      the log, out of its ring""",
)
@click.option(
    "--on",
    "platform",
    shell_complete=completion.platforms,
    metavar="PLATFORM",
    default=DEFAULT_PLATFORM,
    help=f"Platform ({DEFAULT_PLATFORM}): {', '.join(PLATFORM_NAMES)}.",
)
@click.option("--cpus", type=int, metavar="N", help="Processors (2; on Bochs 1, whose stub has no more).")
@click.option(
    "--break", "breaks", multiple=True, metavar="SYMBOL", help="Where to stop: function, FILE:LINE, *0xADDRESS."
)
@click.option("--cpu", type=int, metavar="N", help="The processor that is looked at, and alone stops at --break.")
@click.option("--script", type=_FILE, metavar="FILE", help="GDB commands to run instead of asking for them.")
@click.option(
    "--set",
    "settings",
    shell_complete=completion.settings,
    multiple=True,
    metavar="OPTION=VALUE",
    help="As for hv boot.",
)
@click.option("--run", "application", type=_FILE, metavar="F.efi", help="As for hv boot.")
@click.option("--add", "added", multiple=True, metavar="F[:DEST]", help="As for hv boot.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Folder for all logs.")
def command(
    platform: str,
    cpus: int | None,
    breaks: tuple[str, ...],
    cpu: int | None,
    script: Path | None,
    settings: tuple[str, ...],
    application: Path | None,
    added: tuple[str, ...],
    keep: Path | None,
) -> None:
    """Boot a machine, stop it when HvDxe is built but not launched, and attach GDB with its symbols.

    Breakpoints in host life (handlers, backends) work from there on; `continue` lets the launch happen. The machine
    goes when GDB ends. Its console is in the file console.log of its folder.
    """
    if cpus is None:
        cpus = platform_named(platform).debugger_cpus or _CPUS
    session.check(platform, cpus, breaks, cpu)
    asked = parse_settings(settings)
    if "wait" in asked:
        raise UsageError("--set wait: hv debug sets it itself")
    request = BootRequest(
        platform=platform,
        cpus=cpus,
        application=application,
        added=parse_added(added),
        settings={**asked, **session.SETTING},
    )
    request.checked()
    toolchain.require("debug")
    folder = runner.logs_folder(keep)
    ui.info(f"starting the machine; its console is in {folder}")
    with runner.booting(request, folder, debugger=True) as strategy:
        code = session.debug(strategy, runner.symbols(request.target), breaks, cpu, script)
    if code != 0:
        raise HvError(f"GDB ended with status {code}")

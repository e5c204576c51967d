# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv doctor`: what this machine can run, and what to do about the rest."""

from pathlib import Path

import click
from rich.text import Text

from hvtools import report, ui
from hvtools.doctor import kvm, tools
from hvtools.doctor.check import Check, Mark
from hvtools.errors import HvError

_STYLE = {Mark.OK: "green", Mark.NOTE: "yellow", Mark.BAD: "red"}


@click.command(
    "doctor",
    epilog="""\b
Examples:
  hv doctor                      what can run here, and why the rest cannot
  hv doctor --json findings.json the same for a program
  hv boot --on bochs-vmx         a platform that it calls ready""",
)
@report.json_option
def command(json_file: Path | None) -> None:
    """Say which platforms this machine can run HvDxe on, and the fix for each that it cannot.

    KVM is asked what it would give a guest; that its device exists says nothing. Nothing is installed or changed.
    Exit code 1 if an emulated platform, or something to build with, is not ready; KVM may be missing.
    """
    found = kvm.examine()
    if found.ready:
        state = Check("kvm", Mark.OK, f"ready: {found.vendor.upper() if found.vendor else ''} in guests of KVM")
    else:
        state = Check("kvm", Mark.NOTE, f"not ready: {found.reason}")
    with ui.step("trying the emulators out") as step:
        platforms = [tools.qemu_svm(), *tools.bochs_platforms()]
        step.result(f"{sum(not check.is_bad for check in platforms)} of {len(platforms)} ready")
    sections = {
        "platforms": [*platforms, state],
        "KVM": found.checks,
        "tools": [*tools.needs(), *tools.sources()],
        "disk": tools.disk(),
    }
    report.write(
        json_file,
        {
            "ready": {check.name: check.mark is Mark.OK for check in sections["platforms"]},
            **{name.lower(): [check.as_json() for check in checks] for name, checks in sections.items()},
        },
    )
    for name, checks in sections.items():
        _print(name, checks)
    bad = [check.name for name, checks in sections.items() if name != "KVM" for check in checks if check.is_bad]
    if bad:
        raise HvError(f"not ready: {', '.join(bad)}; the fix stands beside each, most are `./hv setup`")


def _print(title: str, checks: list[Check]) -> None:
    """Print findings, one to a line whatever the terminal's width: a fix can be copied."""
    width = max(len(check.name) for check in checks)
    ui.out.print(f"{title}:", style="bold", markup=False)
    for check in checks:
        ui.out.print(
            Text(f"  {check.mark.value:>4}", _STYLE[check.mark]), Text(f" {check.name:<{width}}  {check.value}")
        )
        if check.fix:
            ui.out.print(Text(f"{'':>9}fix: {check.fix}", "cyan"))

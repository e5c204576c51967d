# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv setup`: everything that the other verbs would fetch at their first use."""

from pathlib import Path

import click

from hvtools import report, ui
from hvtools.setup import setup_all


@click.command(
    "setup",
    epilog="""\b
Examples:
  hv setup                    once, 5 minutes; later runs do only what is missing
  hv setup --json setup.json  where everything is""",
)
@report.json_option
def command(json_file: Path | None) -> None:
    """Install and fetch everything that build, boot and test need."""
    result = setup_all()
    report.write(json_file, result.as_json())
    ui.out.print(f"EDK2     {result.edk2.path}", markup=False)
    ui.out.print(f"kernel   {result.kernel.version} ({result.kernel.package.version})", markup=False)
    ui.out.print(f"busybox  {result.busybox}", markup=False)
    ui.out.print(f"Bochs    {result.bochs.program} ({result.bochs.version})", markup=False)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv options`: the hypervisor's options in a firmware image."""

from pathlib import Path

import click

from hvtools import report, ui
from hvtools.boot import options
from hvtools.boot.request import parse_settings
from hvtools.errors import UsageError
from hvtools.images import variables


@click.command(
    "options",
    epilog="""\b
Examples:
  hv options OVMF.fd                          what is set
  hv options OVMF.fd nested_page=2m log=warn  these, and no others
  hv options OVMF.fd --clear                  the defaults""",
)
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1, metavar="[OPTION=VALUE]...")
@click.option("--clear", is_flag=True, help="Remove the variable: every option gets its default.")
@report.json_option
def command(image: Path, settings: tuple[str, ...], clear: bool, json_file: Path | None) -> None:
    """Show or set the hypervisor's options in IMAGE, a firmware image with a variable store.

    In the UEFI shell and in Linux the same options are the variable HvOptions: see Docs/Reference/Options.md.
    """
    if not image.is_file():
        raise UsageError(f"the firmware image {image} does not exist")
    try:
        wanted = parse_settings(settings)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("--set ")) from None  # `hv boot` has that option
    if clear and wanted:
        raise UsageError("--clear does not go with settings")
    if clear or wanted:
        options.check(wanted)
        variables.write_options(image, wanted)
    text = variables.read_options(image)
    report.write(json_file, {"image": str(image), "options": text})
    ui.out.print(text if text is not None else "no options are set: every one has its default", markup=False)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv build`: HvDxe and the applications, by stuart."""

from pathlib import Path

import click

from hvtools import build, report, ui
from hvtools.errors import HvError


@click.command(
    "build",
    epilog="""\b
Examples:
  hv build               DEBUG
  hv build --target all  DEBUG and RELEASE""",
)
@click.option(
    "--target",
    type=click.Choice([*build.TARGETS, "all"], case_sensitive=False),
    default="DEBUG",
    show_default=True,
    help="What to build; all is both.",
)
@click.option("--force", is_flag=True, help="Run stuart even if no source changed.")
@report.json_option
def command(target: str, force: bool, json_file: Path | None) -> None:
    """Build HvDxe.efi and the applications with stuart, after setting up what that takes."""
    targets = build.TARGETS if target == "all" else (target,)
    results = [build.ensure_built(name, force=force) for name in targets]
    images = {result.target: sorted(result.folder.glob("*.efi")) for result in results}
    report.write(
        json_file,
        {
            result.target: {
                "folder": str(result.folder),
                "rebuilt": result.rebuilt,
                "images": {image.name: image.stat().st_size for image in images[result.target]},
            }
            for result in results
        },
    )
    for result in results:
        if not images[result.target]:
            raise HvError(f"stuart was content, but {result.folder} has no image")
        how = "built" if result.rebuilt else "nothing changed"
        ui.out.print(f"{result.target} ({how}): {result.folder}", markup=False)
        for image in images[result.target]:
            ui.out.print(f"{image.stat().st_size:>10}  {image.name}", markup=False)

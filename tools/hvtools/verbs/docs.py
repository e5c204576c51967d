# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv docs`: the manual as HTML."""

import subprocess
import sys
from pathlib import Path

import click

from hvtools import build, gen, ui
from hvtools.errors import HvError, UsageError

_CONFIGURATION = build.ROOT / "mkdocs.yml"
_MARKS = ("WARNING", "ERROR")
_OUT = build.ROOT / "Build" / "Docs"
_MADE_HERE = ".hv-docs"  # MkDocs leaves hidden files when it empties a folder


@click.command(
    "docs",
    epilog="""\b
Examples:
  hv docs              into Build/Docs; open index.html there
  hv docs --out site/  somewhere else""",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=_OUT,
    metavar="DIR",
    help="Where it goes (Build/Docs).",
)
def command(out: Path) -> None:
    """Make the manual as HTML, with the reference pages that are generated from the tables.

    A link that leads nowhere is an error. What an earlier manual left in DIR is removed; a folder with other things in
    it is refused.
    """
    _take(out)
    stale = [path for path in gen.stale(gen.render(), gen.ROOT) if path.suffix == ".md"]
    if stale:
        raise HvError(f"reference pages are stale, run `./hv gen`: {' '.join(map(str, stale))}")
    with ui.step("making the manual"):
        # Not --quiet: it counts as errors only what it prints.
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
        result = subprocess.run(
            [*command, "--config-file", str(_CONFIGURATION), "--site-dir", str(out.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if result.returncode != 0:
        said = [line.strip() for line in result.stdout.splitlines()]
        wrong = [line for line in said if line.startswith(_MARKS)] or said[-1:] or ["it gives no reason"]
        for line in wrong[1:]:
            ui.info(f"    {line}")
        raise HvError(f"the manual has errors: {wrong[0]}")
    ui.out.print(f"{out / 'index.html'}", markup=False)


def _take(out: Path) -> None:
    """Make the folder, or see that all that is in it is ours: MkDocs empties it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark = out / _MADE_HERE
        if any(out.iterdir()) and not mark.exists() and out != _OUT:
            raise UsageError(f"--out: {out} has files that are no manual of `hv docs`: name a new or empty folder")
        mark.touch()
    except OSError as error:
        raise UsageError(f"--out: the folder {out} cannot be made: {error.strerror}") from error

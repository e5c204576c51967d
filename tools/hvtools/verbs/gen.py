# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv gen`: make the generated files from the tables, or check that they are up to date."""

from __future__ import annotations

import click

from hvtools import gen
from hvtools.errors import HvError


@click.command(
    name="gen",
    epilog="""\b
Examples:
  hv gen          after an edit of a table
  hv gen --check  in a hook: exit code 1 if something is stale""",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and name the files that are stale.")
def command(check: bool) -> None:
    """Make the C headers, Python modules and reference pages from tools/hvtools/spec."""
    files = gen.render()
    if check:
        wrong = gen.stale(files, gen.ROOT)
        if wrong:
            raise HvError(f"stale, run `./hv gen`: {' '.join(map(str, wrong))}")
        click.echo(f"{len(files)} generated files are up to date")
        return
    changed = gen.write(files, gen.ROOT)
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} of {len(files)} generated files changed")

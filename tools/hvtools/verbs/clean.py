# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv clean`: back to a fresh clone, and with `--cache` to a fresh machine."""

import contextlib
import shutil
import sys
from pathlib import Path

import click

from hvtools import build, cache, edk2, ui
from hvtools.boot.runs import in_use
from hvtools.errors import HvError

_LEFT = ("Build", "Conf", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")


@click.command(
    "clean",
    epilog="""\b
Examples:
  hv clean          as after git clone
  hv clean --cache  as on a new machine""",
)
@click.option("--cache", "empty_cache", is_flag=True, help="Empty the cache too, which all clones share.")
def command(empty_cache: bool) -> None:
    """Remove what builds and tests left in this clone.

    The Python environment that is in use stays; those of other versions of this clone go.
    """
    with contextlib.closing(in_use(build.ROOT)) as users, build.lock(build.ROOT):
        if not users.try_own():
            raise HvError("a boot of this clone runs, in a folder that would go: run `hv clean` when it has ended")
        for name in _LEFT:
            shutil.rmtree(build.ROOT / name, ignore_errors=True)
        edk2.unlink(build.ROOT)
        _old_environments(Path(sys.prefix))
    ui.out.print(f"clean: {build.ROOT}", markup=False)
    if empty_cache:
        store = cache.default()
        freed = store.empty()
        ui.out.print(f"empty: {store.root} ({freed / 1e6:.0f} MB freed)", markup=False)


def _old_environments(current: Path) -> None:
    """Removes the Python environments beside the one that is in use."""
    if current.parent != build.ROOT / ".venv":
        return
    for entry in current.parent.iterdir():
        if entry.name.removesuffix(".lock") == current.name:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)

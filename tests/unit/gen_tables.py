# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Help for tests of the generator: the tables with one change."""

import shutil
from pathlib import Path

from hvtools import gen


def changed(folder: Path, table: str, old: str, new: str) -> dict[Path, str]:
    """Render a copy of the tables in which one place of one of them differs.

    Args:
        folder: where the copy goes.
        table: the file to change.
        old: what stands there exactly once.
        new: what shall stand there.
    """
    spec = folder / "spec"
    shutil.copytree(gen.SPEC, spec)
    text = (spec / table).read_text()
    assert text.count(old) == 1, f"{table} has {text.count(old)} times {old!r}"
    (spec / table).write_text(text.replace(old, new))
    return gen.render(spec)

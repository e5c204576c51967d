# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The folders that boots leave: which is the newest one, and which is in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvtools.boot import runs
from hvtools.errors import UsageError


def test_the_newest_boot_is_the_newest_that_has_a_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "runs_folder", lambda: tmp_path)
    for name, content in (("20260101-1", "a"), ("20260102-2", "b"), ("20260103-3", None)):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "console.log").write_text(content)
    assert runs.run_at(None).folder == tmp_path / "20260102-2"
    for name in ("20260101-1", "20260102-2"):
        (tmp_path / name / "console.log").unlink()
    with pytest.raises(UsageError, match="no boot has left its logs"):
        runs.run_at(None)

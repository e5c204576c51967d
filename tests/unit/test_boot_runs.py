# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The folders that boots leave: which is the newest one, and which is in use."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from hvtools import build
from hvtools.boot import runner, runs
from hvtools.boot.request import BootRequest
from hvtools.errors import HvError, UsageError


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


def test_a_boot_keeps_hv_clean_away_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alone() -> bool:
        with contextlib.closing(runs.in_use(tmp_path)) as lock:
            return lock.try_own()

    def collect(*arguments: object) -> None:
        assert not alone()
        raise HvError("enough")

    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "collect", collect)
    with pytest.raises(HvError, match="enough"), runner.booting(BootRequest(), tmp_path):
        pass
    assert alone()

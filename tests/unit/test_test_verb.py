# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv test`: what its exit code says of pytest's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hvtools import build, cli, linux
from hvtools.verbs import test as verb


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("", 0),
        ("raise SystemExit(1)", 1),
        ("raise SystemExit(2)", 1),
        ("import os; os.kill(os.getpid(), 9)", 1),
        ("import os, signal; os.kill(os.getppid(), signal.SIGINT)", 130),
    ],
    ids=["passed", "failed", "stopped-at-the-first", "killed", "ctrl-c"],
)
def test_130_is_of_ctrl_c_only(program: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verb, "_CHECKS", {})
    monkeypatch.setattr(verb, "setup_all", lambda: None)
    monkeypatch.setattr(linux, "headers", lambda: None)
    monkeypatch.setattr(build, "TARGETS", ())
    monkeypatch.setattr(verb, "pytest_command", lambda *arguments: [sys.executable, "-c", program])
    result = tmp_path / "out.json"
    assert cli.run(["test", "--json", str(result)]) == code
    if code != 130:
        assert (json.loads(result.read_text())["pytest"]["exit"] == 0) == (code == 0)

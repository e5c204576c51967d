# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a boot shows while it runs, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hvtools import ui
from hvtools.boot.progress import Progress
from hvtools.boot.request import BootRequest
from hvtools.boot.strategy import State


def shown(monkeypatch: pytest.MonkeyPatch, request: BootRequest, terminal: bool, console: bool = False) -> str:
    out = io.StringIO()
    monkeypatch.setattr(ui, "err", Console(file=out, force_terminal=terminal, width=100, highlight=False))
    with Progress(request, console) as progress:
        for at, state in enumerate(State):
            progress.reached(state, at * 1.5)
            progress.heard("\x1b[2Jhello\r\n")
    return out.getvalue()


def test_elsewhere_there_is_one_plain_line_for_each_state(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, BootRequest(cpus=1), terminal=False)
    assert text.splitlines() == [
        "booting Linux under HvDxe on qemu-svm: 1 CPU, 512 MiB",
        "   1.5 s  firmware",
        "   3.0 s  UEFI shell",
        "   4.5 s  HvDxe",
        "   6.0 s  root",
    ]


def test_a_terminal_shows_what_comes_next_and_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    request = BootRequest(application=Path("X.efi"))
    text = shown(monkeypatch, request, terminal=True)
    assert "booting X.efi under HvDxe on qemu-svm: 4 CPUs" in text
    assert "X.efi runs" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible at the end"


def test_the_console_is_passed_on_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, BootRequest(hypervisor=False), terminal=True, console=True)
    assert text.count("hello\n") == len(State)
    assert "\x1b[2J" not in text and "\x1b[?25l" not in text
    assert "without hypervisor" in text

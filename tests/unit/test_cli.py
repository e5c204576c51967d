# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The command line: every error is one line on standard error and an exit code, never a traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

from hvtools import cli, report
from hvtools.errors import CorruptError, HvError, NetworkError, NoSpaceError, NotThereError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error."""
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("hv: error: ")
    return told.err.strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuchverb"], "No such command 'nosuchverb'"),
        (["--nosuchoption"], "No such option"),
        (["build", "--nosuchoption"], "No such option"),
        (["build", "--target"], "requires an argument"),
        (["build", "--target", "FAST"], "'FAST' is not one of"),
        (["build", "surplus"], "surplus"),
        (["setup", "--json", "/nonexistent/folder/out.json"], "cannot be written"),
        (["setup", "--json", "/"], "is a directory"),
        (["clean", "--cach=1"], "cach"),
    ],
)
def test_wrong_use_is_one_line_and_2(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert expected in one_line(capsys)


def verb(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, result: int | None = None) -> None:
    """Puts a verb `trial` beside the real ones, which ends with the error or the result."""

    @click.command("trial")
    def command() -> int | None:
        if error is not None:
            raise error
        return result

    module = types.ModuleType("hvtools.verbs.trial")
    vars(module)["command"] = command
    monkeypatch.setitem(sys.modules, "hvtools.verbs.trial", module)
    monkeypatch.setattr(cli._Verbs, "list_commands", lambda _self, _context: ["trial"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HvError("it\nfailed"), 1),
        (NotThereError("not there"), 1),
        (NetworkError("no network"), 1),
        (UsageError("wrong"), 2),
        (CorruptError("corrupt"), 2),
        (NoSpaceError("full"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a fault\nof ours"), 1),
    ],
)
def test_each_error_is_one_line_with_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HV_DEBUG", raising=False)
    verb(monkeypatch, error)
    assert cli.run(["trial"]) == code
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("hv: error: ")
    assert "Traceback" not in told.err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (7, 7)])
def test_a_verbs_result_is_the_exit_code(
    result: int | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(monkeypatch, None, result)
    assert cli.run(["trial"]) == code
    assert capsys.readouterr().err == ""


def test_help_has_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    told = capsys.readouterr().out
    commands = [line.split()[0] for line in told.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    present = {path.stem for path in (ROOT / "tools" / "hvtools" / "verbs").glob("[a-z]*.py")}
    assert present <= set(commands)
    assert commands[:3] == ["setup", "doctor", "build"]


def test_verbs_are_loaded_only_when_used() -> None:
    code = (
        "import sys; from hvtools import cli; cli.run(['clean', '--help']);"
        "sys.exit(sum(name.startswith('hvtools.verbs.') for name in sys.modules) != 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


# The process says when it is in the middle of its work, and has something to clean up.
WORKER = """
import pathlib, signal, sys, types
import click
from hvtools import cli

@click.command("trial")
def command():
    try:
        print("working", flush=True)
        while True:
            signal.pause()
    finally:
        pathlib.Path(sys.argv[1]).touch()

module = types.ModuleType("hvtools.verbs.trial")
module.command = command
sys.modules["hvtools.verbs.trial"] = module
cli._Verbs.list_commands = lambda self, context: ["trial"]
real = cli.run
cli.run = lambda arguments: real(["trial"])
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up_and_ends_with_its_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(mark)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "working\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert mark.exists()
    assert "Traceback" not in err
    assert err == ("hv: error: interrupted\n" if number == signal.SIGINT else "")


def test_a_report_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report.write(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    with pytest.raises(TypeError):
        report.write(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
    report.write(None, {"a": 1})


def test_a_report_to_a_full_device_is_told() -> None:
    with pytest.raises(NoSpaceError, match="no space left on the disk for /dev/full"):
        report.write(Path("/dev/full"), {"a": 1})


def test_a_report_through_a_link_leaves_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    report.write(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}


def test_a_report_cannot_replace_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        report.write(tmp_path / "gone" / "out.json", {})


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "hvtools", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert "Traceback" not in result.stderr
    assert result.returncode == 1

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Every error that a person may see names the next step, and the commands that it names exist."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import hvtools
from hvtools import cli
from hvtools.errors import HvError, InterruptedByUser, names_step, with_step
from tests.unit.test_docs import parsed

TOOLS = Path(hvtools.__file__).parent
_IN_GDB = "debugger/commands.py"  # GDB prints these, and their next step is one of its own commands


def kinds(root: type[HvError] = HvError) -> Iterator[type[HvError]]:
    """All errors of the tools, with those of modules that nobody has loaded yet."""
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


for module in pkgutil.walk_packages([str(TOOLS)], "hvtools."):
    if not module.name.startswith(("hvtools.debugger.commands", "hvtools.__main__", "hvtools.lab")):
        importlib.import_module(module.name)
KINDS = {kind.__name__: kind for kind in kinds()}


def raised() -> Iterator[tuple[str, str, str]]:
    """Where errors are raised: place, class, and the constant words of the message."""
    for path in sorted(TOOLS.rglob("*.py")):
        if str(path.relative_to(TOOLS)) == _IN_GDB:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error")):
                continue
            words = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""
                for argument in node.args[:1]
                for part in ast.walk(argument)
            )
            yield f"{path.relative_to(TOOLS)}:{node.lineno}", node.func.id, words


RAISED = list(raised())
OTHERS = {
    # Of Python's and of libraries, for what calls them: they do not reach a person as they are.
    "AssertionError",
    "AttributeError",
    "ELFError",
    "FileNotFoundError",
    "KeyError",
    "RuntimeError",
    "TypeError",
    "ValueError",
    "_GoneError",
}


def test_every_error_that_is_raised_has_a_next_step() -> None:
    assert len(RAISED) > 200, "the check finds them"
    for place, kind, words in RAISED:
        if kind in OTHERS:
            continue
        assert kind in KINDS, f"{place}: {kind} is none of ours: it has no next step"
        assert KINDS[kind].step or names_step(words), place


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_class_has_a_step(name: str) -> None:
    kind = KINDS[name]
    assert kind is InterruptedByUser or with_step("it failed", kind.step, "boot") != "it failed"


def commands(text: str) -> list[str]:
    return re.findall(r"`(?:\./)?hv ([^`{]+)`", text)


def test_the_commands_that_errors_name_exist() -> None:
    found = {command for _, _, words in RAISED for command in commands(words)}
    found |= {command.replace("VERB", "boot") for kind in KINDS.values() for command in commands(kind.step)}
    assert {"setup", "gen", "docs"} <= found
    for command in found:
        if command.endswith("--help"):
            assert command.split()[0] in cli.cli.list_commands(click.Context(cli.cli))
        else:
            parsed(command)


@pytest.mark.parametrize(
    ("message", "step"),
    [
        ("run `hv setup`", True),
        ("--cpus 300: must be 1 to 255", True),
        ("no platform 'x': there is a, b", True),
        ("--size: give one", True),
        ("there is no log ring at 0x1000", False),
        ("the disk does not give back what was written", False),
        ("it has no name", False),
    ],
)
def test_a_message_that_names_a_step_keeps_it(message: str, step: bool) -> None:
    assert names_step(message) is step
    shown = with_step(message, "see `hv VERB --help`", "log")
    assert shown == (message if step else f"{message} (see `hv log --help`)")


BAD = {
    "boot": ["--cpus", "0"],
    "build": ["--target", "FAST"],
    "debug": ["--cpu", "7"],
    "decode": ["/nonexistent"],
    "docs": ["--out", "/proc/nowhere"],
    "flash": ["read", "/nonexistent/file", "-p", "none"],
    "image": ["/nonexistent/x.img"],
    "log": ["/nonexistent"],
    "options": ["/nonexistent"],
    "trace": ["--picture", "x.txt"],
    "completion": ["nosuchshell"],
    "bench": ["--on", "nosuch"],
    "gen": ["surplus"],
    "setup": ["surplus"],
    "clean": ["surplus"],
    "doctor": ["surplus"],
    "lab": [],
}


@pytest.mark.parametrize("verb", sorted(set(cli.cli.list_commands(click.Context(cli.cli))) - {"test"}))
def test_each_verb_says_what_is_wrong_and_what_to_do(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run([verb, *BAD[verb]])
    told = capsys.readouterr().err
    assert code == 2 and (told.count("\n") == 1 or verb == "lab"), told
    assert names_step(told) or "Commands:" in told, told


def test_every_verb_is_tried() -> None:
    assert BAD.keys() | {"test"} == set(cli.cli.list_commands(click.Context(cli.cli)))

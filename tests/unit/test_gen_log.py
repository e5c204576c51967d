# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Each HV_LOG in the C sources against the event's row: HV_LOG itself has no types, and reads what the row says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools import gen
from hvtools.gen.emit import camel
from hvtools.generated.log_events import EVENTS

SOURCES = sorted((gen.ROOT / "HvPkg").rglob("*.c"))
BY_ENUM = {camel(name): event for name, event in EVENTS.items()}


def without_comments(text: str) -> str:
    """Return C text without its comments; strings stay."""
    pattern = r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/'
    return re.sub(pattern, lambda found: found[0] if found[0].startswith('"') else " ", text, flags=re.DOTALL)


def arguments(text: str, start: int) -> list[str]:
    """Return the arguments of a call whose opening parenthesis is at `start`."""
    found = [""]
    depth = 0
    for token in re.findall(r'"(?:\\.|[^"\\])*"|.', text[start:], re.DOTALL):
        if token in ("(", "{", "["):
            depth += 1
        if token in (")", "}", "]"):
            depth -= 1
            if depth == 0:
                return [argument.strip() for argument in found]
        if token == "," and depth == 1:
            found.append("")
        elif depth > 1 or token != "(":
            found[-1] += token
    raise AssertionError("a call without an end")


def calls(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each HV_LOG."""
    text = without_comments(text)
    for match in re.finditer(r"\bHV_LOG(?:_GUEST)? \(", text):
        yield arguments(text, match.end() - 1)


def complaints(text: str) -> list[str]:
    """Return what is wrong with the calls in a C source."""
    found: list[str] = []
    for call in calls(text):
        event = BY_ENUM.get(call[1])
        if event is None:
            found.append(f"{call[1]}: no such event")
            continue
        values = call[2:]
        if len(values) != len(event.fields):
            found.append(f"{call[1]}: {len(values)} values for {len(event.fields)} fields")
            continue
        for value, (key, kind) in zip(values, event.fields, strict=True):
            if value.startswith("HV_STR (") != (kind == "s"):
                found.append(f"{call[1]}: {key} is of type {kind}, not {value}")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=[str(path.relative_to(gen.ROOT)) for path in SOURCES])
def test_calls_fit_their_rows(source: Path) -> None:
    assert complaints(source.read_text()) == []


def test_there_are_calls() -> None:
    assert sum(len(list(calls(source.read_text()))) for source in SOURCES) >= 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('HV_LOG (0, Kick, HV_STR ("a, (b"));', []),
        ("HV_LOG (0, BootDone);", []),
        ("HV_LOG (0, CpuUp, Index, Id (1, 2)); // HV_LOG (0, Nope)", []),
        ("HV_LOG (\n  0,\n  CpuUp,\n  Index\n  );", ["CpuUp: 1 values for 2 fields"]),
        ("HV_LOG (0, BootDone, 1);", ["BootDone: 1 values for 0 fields"]),
        ("HV_LOG (0, Kick, Method);", ["Kick: method is of type s, not Method"]),
        ("HV_LOG (0, Unload, HV_STR (Text));", ["Unload: cpus is of type u, not HV_STR (Text)"]),
        ("HV_LOG (0, Nope, 1);", ["Nope: no such event"]),
    ],
)
def test_the_check_finds_what_is_wrong(text: str, expected: list[str]) -> None:
    assert complaints(text) == expected

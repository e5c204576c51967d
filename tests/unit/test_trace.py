# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What is made of a trace: kinds, numbers, symbols, pictures."""

from __future__ import annotations

import base64
import errno
import gzip
import tracemalloc
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from hvtools import cli, ui
from hvtools.errors import HvError, UsageError
from hvtools.generated.exits import KINDS
from hvtools.trace import kernel, picture
from hvtools.trace.records import Exit, Trace, kind_of
from hvtools.trace.summary import summarise
from hvtools.trace.symbols import Symbols
from hvtools.verbs import trace as verb

NPF, CPUID = 0x400, 0x72
EXITS = [
    Exit(1_000_000, 0, "cpuid", CPUID, 0x1010, 0, 0),
    Exit(2_000_000, 1, "cpuid", CPUID, 0x1014, 0, 0),
    Exit(3_000_000, 1, "cpuid", CPUID, 0x1014, 0, 0),
    Exit(9_000_000, 1, "apic-write", NPF, 0x2000, 7, 0xFEE00300),
]
TRACE = Trace(EXITS, 3, 2)
MAP = "0000000000001000 T startup\n0000000000001800 d data\n0000000000001fff t near_end\n"


def test_a_nested_fault_is_what_its_address_says() -> None:
    fault, host = KINDS.index("nested-fault"), range(0x10000, 0x20000)
    assert kind_of(fault, 0xFEE00300, host) == "apic-write"
    assert kind_of(fault, 0x1FFFF, host) == "host-memory"
    assert kind_of(fault, 0x20000, host) == "nested-fault"
    assert kind_of(KINDS.index("cpuid"), 0x10000, host) == "cpuid"
    assert kind_of(99, 0, host) == "unknown"


def test_exits_are_counted_by_kind_processor_and_place(tmp_path: Path) -> None:
    (tmp_path / "map").write_text(MAP)
    found = summarise(TRACE, "svm", Symbols(tmp_path / "map"), 10)
    assert found.by_kind == {"cpuid": [1, 2], "apic-write": [0, 1]}
    assert found.by_reason == {("cpuid", "CPUID"): 3, ("apic-write", "NPF"): 1}
    assert [(place.name, place.count, place.address) for place in found.places] == [
        ("startup", 3, 0x1014),
        ("near_end", 1, 0x2000),
    ]
    assert found.ticks == 8_000_000 and found.lost == 3 and found.as_json()["exits"] == 4
    plain = summarise(TRACE, "svm", None, 1)
    assert [(place.name, place.count) for place in plain.places] == [("0x1014", 2)]


def test_a_large_file_of_one_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "map").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="no symbols of code"):
            Symbols(tmp_path / "map")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_address_of_nothing_has_no_function(tmp_path: Path) -> None:
    (tmp_path / "map").write_text(MAP)
    symbols = Symbols(tmp_path / "map")
    assert symbols.name(0xFFF) is None and symbols.name(0x1000) == "startup" and symbols.name(0x1900) == "startup"
    assert symbols.name(0x1FFF + (1 << 20) + 1) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n", "Debian ships a stub"),
        ("0000000000000000 T a\n0000000000000000 T b\n", "all addresses are 0"),
        ("\0\xff nonsense", "has no symbols of code"),
        ("", "has no symbols of code"),
    ],
)
def test_symbols_that_are_none_are_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map").write_text(text)
    assert cli.run(["trace", "--symbols", str(tmp_path / "map")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symbols", "/nonexistent"], "say --symbols kernel"),
        (["--picture", "x.bmp"], "ends in .svg or .png"),
        (["--picture", "no/folder/x.svg"], "no/folder/x.svg cannot be written"),
        (["--records", "0"], "not in the range"),
        (["--set", "nope=1"], "no such option"),
    ],
)
def test_wrong_use_boots_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["trace", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_the_tables_are_printed_whatever_becomes_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verb, "_boot", lambda request, folder: TRACE)
    monkeypatch.setattr(picture, "draw", full)
    monkeypatch.setattr(ui, "out", Console(width=100))
    assert cli.run(["trace", "--keep", str(tmp_path), "--picture", str(tmp_path / "x.svg")]) == 2
    assert "apic-write" in capfd.readouterr().out


def test_a_picture_has_every_kind_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        picture.draw(TRACE, tmp_path / name, "a title of ours")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    for word in ("cpuid (3)", "apic-write (1)", "a title of ours", "processor", "exits"):
        assert word in text
    picture.draw(TRACE, tmp_path / "c.png", "a title")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_many_kinds_and_one_exit_are_drawn_too(tmp_path: Path) -> None:
    many = [Exit(number, 0, kind, 0, 0, 0, 0) for number, kind in enumerate(KINDS)]
    picture.draw(Trace(many, 0, 1), tmp_path / "many.svg", "")
    text = "".join(ElementTree.parse(tmp_path / "many.svg").getroot().itertext())
    assert f"others ({len(KINDS) - 8})" in text
    picture.draw(Trace(many[:1], 0, 1), tmp_path / "one.svg", "")


def test_names_of_pictures(tmp_path: Path) -> None:
    picture.check(tmp_path / "x.SVG")
    with pytest.raises(UsageError, match="ends in"):
        picture.check(tmp_path / "svg")


def printed(lines: list[str]) -> str:
    told = ["symbols: begin", *lines, "symbols: end"]
    return "[    0.1] Linux\n" + "".join(f"hvcheck| {line}\n" for line in told) + "hvcheck: script-end exit=0\n"


def test_the_kernels_symbols_come_over_the_console_whole_or_not_at_all() -> None:
    text = b"".join(b"%016x t function_%d\n" % (0xFFFFFFFF81000000 + n * 64, n * n) for n in range(1000))
    lines = base64.encodebytes(gzip.compress(text)).decode().splitlines()
    assert len(lines) > 30 and kernel.symbols_in(printed(lines)) == text
    for damaged in (lines[:-5], lines[:5] + lines[6:], [*lines[:5], "[    9.9] random: crng init done", *lines[5:]]):
        with pytest.raises(HvError, match="run it again"):
            kernel.symbols_in(printed(damaged))
    with pytest.raises(HvError, match="--symbols FILE"):
        kernel.symbols_in("hvcheck| sh: grep: not found\n")

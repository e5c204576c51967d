# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Log rings in memory dumps, in all the shapes that a dump can have."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtools import cli, ring
from hvtools.boot import runs
from hvtools.boot.hvlog import parse_log
from hvtools.errors import HvError, UsageError
from hvtools.machines.memory import PAGE, Dump, NoMemoryError

SIZE = 4096
LINES = [f"hv: info cpu{number % 4} cpu-up index={number} apic-id={number:#x}\n" for number in range(300)]


def ring_bytes(text: bytes, size: int = SIZE) -> bytes:
    """A ring to which `text` was written, as HvConsoleLib does it."""
    held = bytearray(size)
    for place, byte in enumerate(text):
        held[place % size] = byte
    return ring.HEAD.pack(ring.SIGNATURE, size, 0, len(text)) + bytes(held)


class Bytes:
    """Memory that is one ring."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, address: int, size: int) -> bytes:
        return self.data[address : address + size]


def elf(pieces: dict[int, bytes]) -> bytes:
    """An ELF core of a machine's memory."""
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(pieces), 0, 0, 0
    )
    at = 64 + 56 * len(pieces)
    table, body = b"", b""
    for base, data in pieces.items():
        table += struct.pack("<IIQQQQQQ", 1, 0, at + len(body), 0, base, len(data), len(data), 0)
        body += data
    return head + table + body


def dumped(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "dump"
    path.write_bytes(data)
    return path


def lines_of(path: Path) -> list[str]:
    dump = Dump(path)
    try:
        (found,) = ring.in_dump(dump)
        return ring.whole_lines(found).splitlines(keepends=True)
    finally:
        dump.close()


def test_a_ring_that_is_not_full(tmp_path: Path) -> None:
    data = bytes(5 * PAGE) + ring_bytes("".join(LINES[:20]).encode())
    assert lines_of(dumped(tmp_path, data)) == LINES[:20]


def test_a_ring_that_went_round_begins_with_a_whole_line(tmp_path: Path) -> None:
    found = lines_of(dumped(tmp_path, ring_bytes("".join(LINES).encode())))
    assert 50 < len(found) < 300 and found == LINES[-len(found) :]


def test_an_elf_core_is_read_by_physical_address(tmp_path: Path) -> None:
    path = dumped(tmp_path, elf({0: bytes(PAGE), 0x1_0000_0000: b"x" * PAGE + ring_bytes("".join(LINES[:3]).encode())}))
    assert lines_of(path) == LINES[:3]
    dump = Dump(path)
    assert dump.read(0x1_0000_0000, 3) == b"xxx"
    with pytest.raises(NoMemoryError, match="0x2000"):
        dump.read(0x2000, 1)
    dump.close()


def test_what_only_looks_like_a_ring_is_passed_over(tmp_path: Path) -> None:
    good = ring_bytes("".join(LINES[:2]).encode())
    wrong = [
        ring.SIGNATURE + bytes(PAGE - 8),  # no size
        struct.pack("<8sIIQ", ring.SIGNATURE, 12345, 0, 3) + bytes(PAGE - 24),  # no power of two
        struct.pack("<8sIIQ", ring.SIGNATURE, 1 << 31, 0, 3) + bytes(PAGE - 24),  # more than the dump
        b"\0" + good[: PAGE - 1],  # not at a page
        ring_bytes(b"")[: 2 * PAGE].ljust(2 * PAGE, b"\0"),  # nothing written
    ]
    assert lines_of(dumped(tmp_path, b"".join(wrong) + good)) == LINES[:2]


def test_a_dump_of_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with path.open("wb") as file:
        file.seek((1 << 30) - 3 * PAGE)
        file.write(ring_bytes("".join(LINES[:4]).encode()))
        file.truncate(1 << 30)
    assert lines_of(path) == LINES[:4]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\x7fELF", "header is cut off"),
        (elf({0: b"x"})[:70], "program headers are cut off"),
        (elf({}), "no memory in it"),
        (b"\x7fELF\x01" + bytes(100), "no memory of an x86-64 machine"),
        (b"plain text", "has no log of the hypervisor"),
        (bytes(1 << 20), "has no log of the hypervisor"),
    ],
)
def test_what_is_no_dump_is_one_line(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["log", str(dumped(tmp_path, data))]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and said in told


def test_a_dump_that_was_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    data = elf({0: ring_bytes("".join(LINES[:5]).encode()), 0x100000: bytes(PAGE)})
    assert lines_of(dumped(tmp_path, data[:-100])) == LINES[:5]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x02\x01", ring.SIGNATURE]), st.integers())
def test_any_bytes_are_an_answer_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(start + data + random.Random(seed).randbytes(2 * PAGE))
    try:
        dump = Dump(path)
    except UsageError:
        return
    try:
        ring.in_dump(dump)
    except HvError as error:
        assert error.line
    finally:
        dump.close()


def test_a_follower_gives_each_line_once_and_none_that_is_half_there() -> None:
    text = "".join(LINES).encode()
    follower = ring.Follower()
    given_out = []
    for end in [*range(0, len(text), 97), len(text)]:
        shown = bytearray(ring_bytes(text[:end]))
        if end > 40:
            # The newest bytes are taken, but not written yet.
            for place in range(end - 40, end):
                shown[ring.HEAD.size + place % SIZE] = 0
        given_out += follower.take(ring.read(Bytes(bytes(shown)), 0))
    follower.take(ring.read(Bytes(ring_bytes(text)), 0))
    given_out += follower.rest()
    # What was taken last, the last call of take gave.
    assert [line.text() for line in given_out] == [line.text() for line in parse_log(text.decode())][: len(given_out)]
    assert len(given_out) >= 298


def test_a_follower_goes_on_after_what_was_overwritten_and_after_a_reset() -> None:
    text = "".join(LINES).encode()
    follower = ring.Follower()
    follower.take(ring.read(Bytes(ring_bytes(text[:100])), 0))
    follower.take(ring.read(Bytes(ring_bytes(text)), 0))
    late = follower.take(ring.read(Bytes(ring_bytes(text)), 0))
    assert late[-1].fields["index"] == "299" and 50 < len(late) < 300
    follower.take(ring.read(Bytes(ring_bytes(LINES[7].encode())), 0))
    (again,) = follower.take(ring.read(Bytes(ring_bytes(LINES[7].encode())), 0))
    assert again.fields["index"] == "7"


def test_the_log_of_a_run_is_its_last_lines_however_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_LINES_MAX", 10)
    (tmp_path / "hypervisor.log").write_text("x" * 100_000 + "\n" + "".join(LINES))
    assert [line.fields["index"] for line in runs.Run(tmp_path).port_log()] == [str(n) for n in range(290, 300)]
    (tmp_path / "hypervisor.log").write_text("nothing of ours\n")
    (tmp_path / "serial2.log").write_text(f"\x1b[0mfirmware {LINES[3]}")
    assert [line.fields["index"] for line in runs.Run(tmp_path).port_log()] == ["3"]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Anything can be given to `hv decode`: an answer or one line comes, in memory that does not grow with the file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import tracemalloc
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvtools import build, cli
from hvtools.boot.hvlog import parse_log
from hvtools.decode import reader
from hvtools.decode.report import Report
from hvtools.decode.symbols import Symbols
from hvtools.errors import UsageError
from hvtools.verbs.decode import command
from tests.unit.c.host import run_gcc
from tests.unit.decode.test_decode_dump import SAMPLES

FILES = sorted(SAMPLES.iterdir())
MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The symbols of a build take a while to read, and each example would read them."""
    monkeypatch.setattr(build, "image_dir", lambda *_: Path("/elsewhere"))


def read(data: bytes) -> list[Report]:
    """The reports of some bytes, which must all be fit for JSON and for a terminal."""
    found = reader.read(io.BytesIO(data))
    for report in found:
        json.dumps(report.as_json())
        assert report.explanations, report.format
    return found


class Endless(io.RawIOBase):
    """A file of so many bytes, made of one piece over and over."""

    def __init__(self, piece: bytes, size: int) -> None:
        self._piece, self._left = piece * (MIB // len(piece) + 1), size

    def read(self, size: int = -1) -> bytes:
        data = self._piece[: min(size, self._left)]
        self._left -= len(data)
        return data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=4096))
def test_random_bytes(data: bytes) -> None:
    read(data)


NUMBERS = st.sampled_from(
    [
        *("0", "1", "7", "31", "-1", "", "9" * 11, "8000000000000000", "ffffffffffffffff"),
        *("f" * 40, "f" * 3900, "9" * 5000),
    ]
)


@pytest.mark.parametrize("file", [file for file in FILES if file.name.startswith("hv-")], ids=lambda file: file.name)
def test_a_log_with_another_number_in_any_place(file: Path) -> None:
    """Also where a number goes on into the C code."""
    text = file.read_bytes()
    places = {match[1]: match for match in re.finditer(rb"( [a-z][a-z0-9-]*=(?:0x)?)[0-9a-f]+\b", text)}
    for match in places.values():
        for number in (b"-1", b"9" * 11, b"f" * 17, b"f" * 3900):
            read(text[: match.end(1)] + number + text[match.end() :])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_samples(data: st.DataObject) -> None:
    """Cut off, with pieces replaced, doubled and mixed with those of another sample."""
    text = bytearray(data.draw(st.sampled_from(FILES)).read_bytes())
    other = data.draw(st.sampled_from(FILES)).read_bytes()
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 40))
        start = data.draw(st.integers(0, len(other)))
        new = data.draw(st.binary(max_size=8) | st.just(other[start : start + 60]) | st.just(b"f" * 17))
        text[at : at + length] = new
    read(bytes(text[: data.draw(st.integers(0, len(text)))]))


LINES = st.sampled_from(
    [
        "hv: error cpu{0} exit-unknown code=0x{0} info1=0x{1} info2=0x{2} rip=0x{0}",
        "hv: error cpu0 host-exception vector={0} error=0x{1} rip=0x{2} rsp=0x0 cr2=0x{1}",
        "hv: info cpu0 image base=0x{0} bytes=0x{1} entry=0x0 text=0x0",
        'hv: warn cpu{0} dump words="{0}:{1} {1}:{2}"',
        "hv: warn cpu{0} dump-end kind=vmcs words={1} parts={2}",
        "hv: info cpu0 backend name={0} vendor={1}",
        "hv: info cpu0 backend name=vmx vendor=Intel",
        "hv: error cpu0 npf-unexpected gpa=0x{0} error=0x{1} rip=0x{2}",
        "RAX={0} RBX={1} RIP={2} CR0={0} CR3={1} CR4={2} EFER={0}",
        "CS ={0} {1} {2} {0}",
        "CS =0008 {1} ffffffff 00af9a00",
        "Code=<{0}> {1} 0f ?? <00>",
        "KVM internal error. Suberror: {0}",
        "extra data[{0}]: 0x{1}",
        "KVM: entry failed, hardware error 0x{0}",
        "     {0}: v={1} e={2} i=0 cpl=0 IP=0000:{0} pc={1}",
        "check_exception old: 0x{0} new 0x{1}",
        "CPU Reset (CPU {0})",
        "0000{0}0000000e[CPU{0} ] RDMSR: Unknown register 0x{1}",
        "00000000001i[CPU0  ] CPU is in long mode (active)",
        "00000000001i[CPU0  ] | CR0=0x{0}: {1} EFLAGS={2}",
        "00000000001i[CPU0  ] 0x{0}>> x : {1}",
        " q-1 [000] 1.{0}: kvm_exit: vcpu {0} reason npf rip 0x{1} info1 0x{2} info2 0x{0}",
        " q-1 [000] 1.0: kvm_exit: reason EPT_MISCONFIG rip 0x{0} info {1} {2}",
        " q-1 [000] 1.0: kvm_mmu_paging_element: pte {0} level {1}",
        " q-1 [000] 1.0: kvm_mmu_walker_error: pferr {0} RSVD",
        " q-1 [000] 1.0: kvm_emulate_insn: 0:{0}:{1} (prot64) failed",
        " q-1 [000] 1.0: kvm_msr: msr_read {0} = 0x{1} (#GP)",
        "------ spte = 0x{0} level = {1}, rsvd bits = 0x{2}",
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(lambda line, *n: line.format(*n), LINES, NUMBERS, NUMBERS, NUMBERS), max_size=20))
def test_lines_of_every_format_with_any_number(lines: list[str]) -> None:
    read("\n".join(lines).encode())


REGISTERS = "RAX=0000000000000001 RBX=0000000000000002\nRIP=0000000000001003 CR0=80000011\n"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["00", "0f", "<66>", "??", " ", "  ", "<", ">", "-", "f"]), max_size=12))
def test_bytes_of_code_however_they_are_put_together(parts: list[str]) -> None:
    read(f"{REGISTERS}Code={''.join(parts)}\n".encode())


@pytest.mark.parametrize(
    ("code", "read_as"), [("00 <90> 0ffc", "90"), ("00 <0f> a2 f", "0f a2"), ("00 <90> 0f ?? 00", "90")]
)
def test_code_is_read_as_far_as_it_is_bytes(code: str, read_as: str) -> None:
    (report,) = read(f"{REGISTERS}Code={code}\nRBX=0000000000000007\n".encode())
    (processor,) = report.data["processors"]
    assert processor["registers"]["rbx"] == "0x2", "the code ends a dump"
    assert f"({read_as})" in report.explanations[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_sample_cut_off_anywhere(file: Path) -> None:
    data = file.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 60)):
        read(data[:end])


def test_a_quote_that_never_ends_takes_no_time() -> None:
    """Two ways to read each of these values would be 2 to the power of 900 in all."""
    assert parse_log("hv: info cpu0 start" + ' a="' * 900 + " !") == []


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("zeros", b"\0"),
        ("one line of a format", b"hv: "),
        ("lines of a format", b" q-1 [000] 1.5: kvm_exit: reason npf rip 0x1 info 4 5\n"),
        ("different lines", None),
    ],
)
def test_memory_does_not_grow_with_the_file(name: str, piece: bytes | None) -> None:
    if piece is None:
        lines = [
            f"hv: error cpu{n} page-pool-empty used={n}\nhv: warn cpu{n} dump words={n}:1\n"
            f" q-1 [0] 1.{n}: kvm_exit: reason {n:02000} rip 0x{n} info 1 2\n"
            for n in range(20000)
        ]
        file: io.RawIOBase = io.BytesIO("".join(lines).encode())  # type: ignore[assignment]
    else:
        file = Endless(piece, (2 if piece.endswith(b"\n") else 256) * MIB)
    tracemalloc.start()
    reader.read(file)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MIB


def test_what_is_known_is_counted_when_there_are_too_many_kinds() -> None:
    bochs = [f"00000000001e[CPU0  ] RDMSR: Unknown register 0x{n:x}" for n in range(300)]
    exits = [f" q-1 [000] 1.5: kvm_exit: reason x{n} rip 0x1 info 1 2" for n in range(300)]
    log, trace = sorted(read("\n".join([*bochs, bochs[0], *exits, exits[0]]).encode()), key=lambda each: each.format)
    assert log.tables[0].rows[0] == ("RDMSR", "0x0", "", "2")
    assert trace.data["exits"]["x0"] == 2 and len(trace.data["exits"]) < 300
    assert trace.explanations == ["301 exits, no failure among them"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_sample_is_found_in_the_middle_of_a_large_file(file: Path) -> None:
    """Across the border of two pieces that are read, too."""
    data = file.read_bytes()
    around = b"nothing of interest\n" * (MIB // 20)
    alone = [report.as_json() for report in read(data)]
    for before in (MIB, MIB - len(data) // 2):
        assert [report.as_json() for report in read(around[:before] + b"\n" + data + b"\n" + around)] == alone


@pytest.mark.slow
def test_a_file_of_1_gb(tmp_path: Path) -> None:
    """Random bytes, then a sample: it is found."""
    file = tmp_path / "big"
    block = os.urandom(8 * MIB)
    with file.open("wb") as out:
        for _ in range(128):
            out.write(block)
        out.write(b"\n" + (SAMPLES / "kvm-suberror-1.txt").read_bytes())
    found = reader.read_path(file)[str(file)]
    assert [report.format for report in found] == ["KVM failure report of QEMU"]


def test_formats_in_one_file_are_all_explained() -> None:
    data = b"".join(
        (SAMPLES / name).read_bytes() for name in ("hv-triple-fault.log", "bochs-panic.log", "kvm-suberror-1.txt")
    )
    assert [report.format for report in read(data)] == ["log of HvDxe", "KVM failure report of QEMU", "log of Bochs"]


def test_a_run_s_folder_is_explained_file_by_file(tmp_path: Path) -> None:
    for name, sample in (
        ("hypervisor.log", "hv-entry-refused-by-bochs.log"),
        ("emulator.log", "bochs-entry-failed.log"),
    ):
        (tmp_path / name).write_bytes((SAMPLES / sample).read_bytes())
    out = tmp_path / "out.json"
    result = CliRunner().invoke(command, [str(tmp_path), "--json", str(out)])
    assert result.exit_code == 0
    reports = json.loads(out.read_text())["reports"]
    assert [(Path(each["file"]).name, each["format"]) for each in reports] == [
        ("hypervisor.log", "log of HvDxe"),
        ("emulator.log", "log of Bochs"),
    ]
    (dump,) = reports[0]["dumps"]
    assert dump["broken"][0]["rule"] == "guest-cs-type"


def test_standard_input_is_read(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((SAMPLES / "kvm-reserved-bit.trace").read_bytes())))
    assert cli.run(["decode"]) == 0
    assert "level 3 entry has bit 7 set, guest has no pdpe1gb" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda path: None, 2, "cannot be read: No such file"),
        (lambda path: path.mkdir(), 2, "has none of the logs of a run"),
        (lambda path: path.write_bytes(b""), 1, "nothing that can be decoded"),
        (lambda path: path.write_bytes(bytes(range(256)) * 100), 1, "nothing that can be decoded"),
    ],
)
def test_what_cannot_be_decoded_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, code: int, said: str
) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    assert cli.run(["decode", str(tmp_path / "x")]) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1


def test_a_terminal_is_not_waited_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert cli.run(["decode"]) == 2
    assert "give a FILE" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--symbols", "--memory"])
def test_a_file_of_the_wrong_kind_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    sample = SAMPLES / "hv-host-exception.log"
    assert cli.run(["decode", str(sample), option, str(empty)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small .debug file."""
    folder = tmp_path_factory.mktemp("debug")
    (folder / "x.c").write_text("int f (int a) { return a + 1; }\nint g (int a) { return f (a) * 3; }\n")
    run_gcc("-g", "-shared", "-nostdlib", "-o", folder / "x.debug", folder / "x.c")
    return (folder / "x.debug").read_bytes()


def test_a_damaged_debug_file_is_refused_or_read(tmp_path: Path, debug: bytes) -> None:
    """Whatever the library makes of it, an assertion that fails too."""
    path = tmp_path / "x.debug"
    path.write_bytes(debug)
    (start,) = [start for start, name, _ in Symbols(path)._functions if name == "f"]
    assert Symbols(path).name(start).startswith("f+0x0 (")
    dice = random.Random(1)
    for _ in range(600):
        damaged = bytearray(debug)
        for _ in range(dice.randint(1, 8)):
            at = dice.randrange(len(debug))
            damaged[at : at + 4] = dice.randbytes(4)
        path.write_bytes(damaged)
        with contextlib.suppress(UsageError):
            Symbols(path).name(start)


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"hv: error cpu0 map-failed gpa=0x1 reason=\x1b[2J\x1b]0;[bold]x\x07\n")
    assert cli.run(["decode", str(file)]) == 0
    out = capsys.readouterr().out
    assert "could not be mapped" in out and "[bold]x" in out and "\x1b" not in out and "\x07" not in out

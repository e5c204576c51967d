# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What `hv debug` tells GDB, and what its commands print of bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hvtools import bochs, build, cli, toolchain
from hvtools.boot import runner
from hvtools.boot.hvlog import LogLine
from hvtools.boot.request import BootRequest
from hvtools.debugger import session, text
from hvtools.errors import UsageError
from hvtools.generated import vmcb

MEMORY = LogLine(
    "info", 0, "memory", {"base": "0x100000", "bytes": "0x1000", "status": "0x100000", "status-bytes": "0x1000"}
)
IMAGE = LogLine("info", 0, "image", {"base": "0x200000", "bytes": "0x1000", "entry": "0x0", "text": "0x201000"})
WAITING = session.Waiting(0x1234, MEMORY, IMAGE)


def test_a_vmcb_is_printed_by_field_with_names_of_bits() -> None:
    page = bytearray(4096)
    place = vmcb.OFFSETS["HV_VMCB_CONTROL_EXIT_CODE"]
    struct.pack_into("<Q", page, place, 0x72)
    struct.pack_into("<I", page, vmcb.OFFSETS["HV_VMCB_CONTROL_INTERCEPT3"], vmcb.CONSTANTS["HV_SVM_INTERCEPT3_NMI"])
    lines = list(text.vmcb_lines(bytes(page)))
    assert len(lines) == 2
    assert lines[0].startswith("00c Control.Intercept3") and lines[0].endswith("NMI")
    assert lines[1].startswith("070 Control.ExitCode") and lines[1].endswith("CPUID")
    assert text.control(bytes(page), "ExitCode") == 0x72
    assert len(list(text.vmcb_lines(bytes(4096), everything=True))) > 100


def test_a_vmcs_of_bochs_is_printed_by_field() -> None:
    page = bytearray(4096)
    struct.pack_into("<H", page, 0x10, 0x1234)
    struct.pack_into("<I", page, 0x10 + 4 * (4 * (0x20 + 0x50) + 1 * 0x30 + 2), 10)  # 32 bits, read-only, index 2
    struct.pack_into("<I", page, 0x10 + 4 * (4 * (0x20 + 0x50) + 2 * 0x30 + 0x16), 0x0000_A09B << 8)  # rotated
    struct.pack_into("<Q", page, 0x10 + 4 * (4 * (0x20 + 0x50 + 0x30) + 2 * 0x30 + 0x1E), 0x1_2345_6789)
    assert list(text.vmcs_lines(bytes(page))) == [
        f"0000 VPID                             {0x1234:#018x}",
        f"4402 EXIT_REASON                      {10:#018x}  CPUID",
        f"4816 GUEST_CS_ACCESS_RIGHTS           {0xA09B:#018x}",
        f"681e GUEST_RIP                        {0x1_2345_6789:#018x}",
    ]
    assert len(list(text.vmcs_lines(bytes(4096), everything=True))) > 100


@pytest.mark.parametrize("debugger", [False, True])
def test_the_emulator_is_built_before_the_time_of_a_boot_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debugger: bool
) -> None:
    class Enough(Exception):
        pass

    def provide(debugger: bool = False) -> None:
        raise Enough(debugger)

    monkeypatch.setattr(bochs, "provide", provide)
    monkeypatch.setattr(toolchain, "require", lambda group: None)
    request = BootRequest(platform="bochs-vmx")
    with pytest.raises(Enough) as raised, runner.booting(request, tmp_path, debugger=debugger):
        pass
    assert raised.value.args == (debugger,)


ADDRESS = 0x12_3456_7890
"""Indices 0, 72, 418, 359 and offset 0x890."""


def test_walks_end_at_leaf_large_leaf_or_hole() -> None:
    tables = {
        0x1000: 0x2007,
        0x2000 + 8 * 72: 0x3007,
        0x3000 + 8 * 418: 0x4007,
        0x4000 + 8 * 359: 0x77000 | 7 | 1 << 63,
    }
    lines = list(text.walk_lines(lambda place: tables.get(place, 0), 0x1000, 4, False, ADDRESS))
    assert len(lines) == 6 and lines[1].endswith("P RW US")
    assert "NX" in lines[4] and lines[5] == "  host address 0x77890, page of 0x1000 bytes"
    tables[0x2000 + 8 * 72] = 0x40000000 | 0x87
    lines = list(text.walk_lines(lambda place: tables.get(place, 0), 0x1000, 4, False, ADDRESS))
    assert lines[-1] == f"  host address {0x40000000 + (ADDRESS & 0x3FFFFFFF):#x}, page of 0x40000000 bytes"
    lines = list(text.walk_lines(lambda place: 0, 0x1000, 5, False, ADDRESS))
    assert lines[-2].startswith("  level 5") and lines[-1] == "  not mapped: a hole of 0x1000000000000 bytes"


def test_ept_entries_have_rights_of_their_own_and_a_type() -> None:
    tables = {0x1000: 0x2007, 0x2000 + 8 * 72: 0x40000000 | 6 << 3 | 0x81}
    lines = list(text.walk_lines(lambda place: tables.get(place, 0), 0x1000, 4, True, ADDRESS))
    assert lines[2].endswith("R PS WB") and "page of 0x40000000" in lines[3]
    assert list(text.walk_lines(lambda place: 0x38, 0, 4, True, 0))[-1].startswith("  not mapped")


def test_gdb_gets_symbols_where_the_image_runs_and_breaks_on_one_processor() -> None:
    symbols = build.ensure_built().folder / "HvDxe.debug"
    line = session.arguments(symbols, Path("s"), WAITING, ["HvOnCpuid"], 1, Path("script"))
    assert f"add-symbol-file {symbols} -o 0x200000" in line  # .text is linked at 0x1000
    assert "break HvOnCpuid thread 2" in line and "thread 2" in line
    assert line.index("set {unsigned char} 0x1234 = 1") < line.index("break HvOnCpuid thread 2")
    assert "-batch" in line and line[-2:] == ["-x", "script"]
    person = session.arguments(symbols, Path("s"), WAITING, ["HvOnCpuid"], None, None)
    assert "break HvOnCpuid" in person and "-batch" not in person


def test_a_file_without_symbols_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"text", b"\x7fELF" + bytes(200)):
        path = tmp_path / "x"
        path.write_bytes(data)
        with pytest.raises(UsageError, match="x"):
            session.offset_of(path, IMAGE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "bochs-vmx", "--cpus", "2"], "say --cpus 1"),
        (["--cpus", "2", "--cpu", "2"], "processors 0 to 1"),
        (["--break", "a; shell rm"], "must be a function"),
        (["--set", "wait=off"], "sets it itself"),
        (["--script", "/none"], "does not exist"),
    ],
)
def test_wrong_use_starts_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["debug", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1

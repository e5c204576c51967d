# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvSleepLib on AML that a compiler made, and against a model that looks at one byte at a time."""

import ctypes
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import Core
from tests.unit.c.host import HostLibrary

EN, TYPE_SHIFT = 1 << 5, 2
PM1A, PM1B = 0x605, 0xB015

STATES = """
DefinitionBlock ("", "{kind}", 2, "HVTEST", "SLEEP", 1)
{{
  Name (\\_S0, Package () {{ 0, 0 }})
  {body}
}}
"""


def aml(tmp_path: Path, body: str, kind: str = "DSDT") -> bytearray:
    """The table that iasl makes of definitions."""
    program = shutil.which("iasl")
    assert program is not None, "iasl is not installed: run ./hv setup"
    source = tmp_path / "table.asl"
    source.write_text(STATES.format(kind=kind, body=body))
    subprocess.run([program, "-f", "-p", tmp_path / "table", source], check=True, capture_output=True)
    return bytearray((tmp_path / "table.aml").read_bytes())


def types(hv: HostLibrary, table: bytes | bytearray, state: int) -> tuple[int, int] | None:
    found = hv.ffi.new("UINT8[2]")
    status = hv.name(hv.lib.HvSleepTypes(hv.ffi.from_buffer(bytes(table)), len(table), state, found))
    assert status in ("SUCCESS", "NOT_FOUND")
    return (found[0], found[1]) if status == "SUCCESS" else None


def hide(hv: HostLibrary, table: bytearray, state: int) -> int:
    return int(hv.lib.HvSleepHide(hv.ffi.cast("UINT8 *", hv.ffi.from_buffer(table)), len(table), state))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("Name (_S3, Package () { 1, 1, 0, 0 })", (1, 1)),
        ("Name (\\_S3, Package () { 5, 7 })", (5, 7)),
        ("Name (\\_S3, Package (4) { 0x05, Zero })", (5, 0)),
        ("Name (_S3, Package () { 6 })", (6, 6)),
        ("Scope (\\) { Name (_S3, Package () { 4, 4, 0, 0 }) }", (4, 4)),
        ("If (One) { Name (_S3, Package () { 3, 2 }) }", (3, 2)),
        (
            'Name (_S3, Package () { 1, 1, "a text with which the length of the package takes two bytes", 0 })',
            (1, 1),
        ),
        ("Name (_S3, Package () { 8, 1 })", None),
        ('Name (_S3, "_S3_")', None),
        ("Name (_S4, Package () { 1, 1 })", None),
        ("Method (_S3, 0) { Return (Package () { 1, 1 }) }", None),
    ],
)
def test_the_values_of_a_state(hv: HostLibrary, tmp_path: Path, body: str, found: tuple[int, int] | None) -> None:
    assert types(hv, aml(tmp_path, body), 3) == found


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("Name (_S3, Package () { 1, 1, 0, 0 })", 1),
        ("Name (\\_S3, Package () { 1, 1, 0, 0 })", 1),
        ("Method (_S3, 0) { Return (Package () { 1, 1 }) }", 1),
        ("Method (\\_S3, 0, Serialized) { Name (A, 5) Return (Package () { 1, A, " + "0, " * 40 + "0 }) }", 1),
        ('Name (A, "_S3_")', 0),
        ("Name (_S4, Package () { 1, 1 })", 0),
    ],
)
@pytest.mark.parametrize("kind", ["DSDT", "SSDT"])
def test_a_hidden_state_is_not_found_and_the_rest_stays(
    hv: HostLibrary, tmp_path: Path, body: str, count: int, kind: str
) -> None:
    table = aml(
        tmp_path,
        f"{body}\n  Name (_S5, Package () {{ 7, 6 }})\n  Device (D) {{ Method (_S3D, 0) {{ Return (2) }} }}",
        kind,
    )
    before = bytes(table)
    assert sum(before) % 256 == 0
    assert hide(hv, table, 3) == count
    assert sum(table) % 256 == 0
    changed = [index for index in range(len(before)) if before[index] != table[index]]
    assert len(changed) == (2 if count else 0), "the name and the checksum"
    if count:
        assert types(hv, table, 3) is None and bytes(table).count(b"XS3_") == 1
        (tmp_path / "hidden.aml").write_bytes(table)
        text = subprocess.run(["iasl", "-d", "hidden.aml"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "hecksum" not in text.stderr + text.stdout
        assert "XS3" in (tmp_path / "hidden.dsl").read_text()
    assert types(hv, table, 5) == (7, 6) and hide(hv, table, 3) == 0


@given(
    data=st.binary(max_size=80),
    parts=st.lists(st.sampled_from((b"_S3_", b"\x08", b"\x12", b"\\", b"\x0c", b"\xc0", b"\x14")), max_size=6),
)
def test_any_bytes_are_survived(hv: HostLibrary, data: bytes, parts: list[bytes]) -> None:
    """The table ends where a page ends that nothing is behind: a read beyond it kills the test."""
    table = data + b"".join(parts)
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page) as pages:
        start = hv.ffi.from_buffer(pages)
        hidden = ctypes.c_void_p(int(hv.ffi.cast("uintptr_t", start)) + page)
        libc = ctypes.CDLL(None)
        assert libc.mprotect(hidden, page, 0) == 0
        pages[page - len(table) : page] = table
        place = hv.ffi.cast("UINT8 *", start) + page - len(table)
        hv.lib.HvSleepTypes(place, len(table), 3, hv.ffi.new("UINT8[2]"))
        hv.lib.HvSleepHide(place, len(table), 3)
        after = pages[page - len(table) : page]
        assert len(table) <= 36 or sum(after) % 256 == sum(table) % 256
        hv.ffi.release(start)


def model(guards: dict[int, int], port: int, size: int, value: int) -> tuple[bool, int]:
    """Byte by byte: bit 5 goes out of the byte of a guarded port, if bits 4:2 are none of those that may pass."""
    bytes_ = list(value.to_bytes(4, "little"))
    refused = False
    for offset in range(size):
        allowed = guards.get(port + offset)
        if allowed is not None and bytes_[offset] & EN and not allowed >> (bytes_[offset] >> TYPE_SHIFT & 7) & 1:
            bytes_[offset] &= ~EN
            refused = True
    return refused, int.from_bytes(bytes(bytes_), "little")


@given(
    guards=st.dictionaries(st.sampled_from((PM1A, PM1A + 1, PM1B, 0, 0xFFFF)), st.integers(0, 255), max_size=2),
    port=st.one_of(st.sampled_from((PM1A, PM1B, 0, 0xFFFF)), st.integers(0, 0xFFFF)),
    back=st.integers(0, 4),
    size=st.sampled_from((1, 2, 4)),
    value=st.integers(0, 0xFFFFFFFF),
)
def test_what_is_refused(hv: HostLibrary, guards: dict[int, int], port: int, back: int, size: int, value: int) -> None:
    sleep = hv.ffi.new("HV_SLEEP *", {"Count": len(guards), "Port": [list(item) for item in guards.items()]})
    first = max(port - back, 0)
    cell = hv.ffi.new("UINT32 *", value)
    refused = bool(hv.lib.HvSleepRefuse(sleep, first, size, cell))
    assert (refused, cell[0]) == model(guards, first, size, value)


RIP, LENGTH = 0x1000, 2


def port_exit(core: Core, port: int, size: int, flags: int = 0, rax: int = 0) -> list[tuple[int, int]]:
    """The root accesses a port; what reached the machine since the reset."""
    fake = core.lib.gFake
    fake.Vcpu[0].Regs.Rip, fake.Vcpu[0].Regs.Rax = RIP, rax
    core.run(core.exit("Io", IoPort=port, IoSize=size, IoFlags=flags, NextRip=RIP + LENGTH))
    return core.writes("IoWrite")


def guarded(core: Core) -> None:
    fake = core.reset()
    fake.Host.Sleep.Count = 1
    fake.Host.Sleep.Port[0].Port, fake.Host.Sleep.Port[0].Allowed = PM1A, 1 << 7


def test_a_request_reaches_the_machine_without_its_enable_bit(core: Core) -> None:
    guarded(core)
    assert port_exit(core, PM1A - 1, 2, rax=0xABCD_0000_2401 | 5 << 10) == [(2 << 16 | PM1A - 1, 0x1401)]
    assert core.lib.gFake.Vcpu[0].Regs.Rip == RIP + LENGTH
    assert [name for name, _ in core.log()] == ["SleepRefused"]
    assert port_exit(core, PM1A, 1, rax=EN | 7 << TYPE_SHIFT)[1:] == [(1 << 16 | PM1A, EN | 7 << TYPE_SHIFT)]
    assert len(core.log()) == 1


def test_the_log_is_not_filled_with_requests(core: Core) -> None:
    guarded(core)
    for _ in range(20):
        port_exit(core, PM1A, 1, rax=EN)
    assert core.lib.gFake.IoWrites == 20
    assert [name for name, _ in core.log()] == ["SleepRefused"] * 16


@pytest.mark.parametrize(("size", "rax"), [(1, 0x1122_3344_5566_77EF), (2, 0x1122_3344_5566_BEEF), (4, 0xDEAD_BEEF)])
def test_reads_give_what_the_port_has(core: Core, size: int, rax: int) -> None:
    guarded(core)
    core.lib.gFake.IoValue = 0xDEAD_BEEF
    assert port_exit(core, PM1A, size, flags=1, rax=0x1122_3344_5566_7788) == []
    assert core.lib.gFake.Vcpu[0].Regs.Rax == rax


def test_a_string_instruction_gets_gp(core: Core) -> None:
    guarded(core)
    assert port_exit(core, PM1A, 1, flags=2) == []
    fake = core.lib.gFake
    assert fake.Vcpu[0].Regs.Rip == RIP and fake.Fake[0].Event.Vector == 13

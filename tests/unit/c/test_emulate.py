# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvEmulateLib against this machine's own processor, under sanitizers, and where neither can go."""

import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.c.host import HostLibrary, program

UD, SS, GP, PF, AC = 6, 12, 13, 14, 17
DONE = -1
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def run(made: Path, cases: int, seed: int) -> str:
    result = subprocess.run([made, str(cases), str(seed)], capture_output=True, text=True)
    if result.returncode == 3:
        pytest.skip(f"{result.stderr.strip()}: it needs CONFIG_MODIFY_LDT_SYSCALL")
    assert result.returncode == 0, f"{made.name} {cases} {seed}: {result.stderr or result.returncode}"
    return result.stdout


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("native") / "emulate_native", "Emulate", "Decode")


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(tmp_path_factory.mktemp("fuzz") / "emulate_fuzz", "Emulate", "Decode", flags=SANITIZERS)


def compare(native: Path, cases: int, seed: int) -> None:
    """Both run the cases; what they met is enough to mean something."""
    met: Counter[tuple[str, int, int]] = Counter()
    for line in run(native, cases, seed).splitlines():
        name, _, bits, number, count = line.split()
        met[name, int(bits), int(number)] += int(count)
    assert met.total() == cases
    names = {name for name, _, _ in met}
    assert len(names) == 37
    for name in names:
        for mode in (64, 32, 16) if name != "movsxd" else (64,):
            assert met[name, mode, DONE] and met[name, mode, GP] and met[name, mode, PF], (name, mode)
            # Strings and addresses without a register are in DS or ES unless a prefix says otherwise.
            assert mode == 64 or name in ("lods", "stos", "movs", "moffs") or met[name, mode, SS], (name, mode)
    for vector in (UD, SS, GP, PF, AC):
        assert sum(count for key, count in met.items() if key[2] == vector) > 100, vector


def test_the_processor_does_the_same(native: Path) -> None:
    compare(native, 300_000, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_the_processor_does_the_same_a_million_times(native: Path, seed: int) -> None:
    compare(native, 1_000_000, seed)


def promised(fuzz: Path, cases: int, seed: int) -> None:
    """Nothing breaks, and every result was met."""
    met = dict(line.split() for line in run(fuzz, cases, seed).splitlines())
    assert set(met) == {"done", "again", "fault", "refused", "not-decoded"}
    assert sum(map(int, met.values())) == cases and all(int(count) > 100 for count in met.values()), met


def test_random_bytes_break_nothing(fuzz: Path) -> None:
    promised(fuzz, 2_000_000, 1)


@pytest.mark.slow
def test_random_bytes_break_nothing_for_long(fuzz: Path) -> None:
    promised(fuzz, 100_000_000, 2)


# What user mode cannot show: real mode, virtual-8086 mode, the segment FS, and what a caller sees of the library.

PE_DATA, PE_CODE, PE_READ_ONLY = 0x93, 0x9B, 0x91
VM = 1 << 17


@dataclass
class Machine:
    """16 pages of memory, at the linear addresses 0 to FFFF, in guest-physical pages in reverse order."""

    hv: HostLibrary
    memory: bytearray = field(default_factory=lambda: bytearray(range(256)) * 256)
    unmapped: set[int] = field(default_factory=set)
    calls: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Makes what HvEmulate needs."""
        ffi = self.hv.ffi
        self.regs = ffi.new("HV_REGS *")
        self.regs.Rflags = 2
        self.segments = ffi.new("HV_SEGMENT[6]", [{"Attributes": PE_DATA, "Limit": 0xFFFF}] * 6)
        self.insn = ffi.new("HV_INSN *")
        self._keep = (
            ffi.callback("HV_EMULATE_MAP", self._map),
            ffi.callback("HV_EMULATE_MOVE", self._read),
            ffi.callback("HV_EMULATE_MOVE", self._write),
        )
        self.emulate = ffi.new("HV_EMULATE *")
        self.emulate.Regs, self.emulate.Segment, self.emulate.Repeats = self.regs, self.segments, 1000
        self.emulate.Map, self.emulate.Read, self.emulate.Write = self._keep

    def _map(self, _: Any, linear: int, access: int, gpa: Any, fault: Any) -> int:  # noqa: ANN401
        if linear >> 12 in self.unmapped:
            fault.Cr2, fault.ErrorCode = linear, 2 * access
            return self.hv.status["ACCESS_DENIED"]
        if linear >> 16:
            return self.hv.status["DEVICE_ERROR"]
        gpa[0] = linear ^ 0xF000
        return self.hv.status["SUCCESS"]

    def _read(self, _: Any, gpa: int, buffer: Any, size: int) -> None:  # noqa: ANN401
        self.calls.append(("read", gpa ^ 0xF000, size))
        self.hv.ffi.memmove(buffer, self.memory[gpa ^ 0xF000 :][:size], size)

    def _write(self, _: Any, gpa: int, buffer: Any, size: int) -> None:  # noqa: ANN401
        self.calls.append(("write", gpa ^ 0xF000, size))
        self.memory[gpa ^ 0xF000 : (gpa ^ 0xF000) + size] = self.hv.ffi.buffer(buffer, size)[:]

    def run(self, code: str, mode: int) -> str:
        """Runs an instruction; how it ended, or the exception as its vector and error code."""
        data = bytes.fromhex(code)
        assert self.hv.name(self.hv.lib.HvDecode(data, len(data), mode, self.insn)) == "SUCCESS"
        result = self.hv.lib.HvEmulate(self.insn, self.emulate)
        names = {getattr(self.hv.lib, f"HvEmulate{name}"): name for name in ("Done", "Again", "Fault", "Refused")}
        fault = self.emulate.Fault
        if names[result] != "Fault":
            return names[result]
        return f"{fault.Vector} {fault.ErrorCode}"


@pytest.fixture
def machine(hv: HostLibrary) -> Machine:
    return Machine(hv)


MOV_BX_AX, MOV_BP_AX = "8907", "894600"  # mov [bx], ax; mov [bp], ax


def test_real_mode_has_limits_and_no_types(machine: Machine) -> None:
    machine.segments[3].Attributes = PE_CODE
    machine.regs.Rbx, machine.regs.Rax, machine.segments[3].Base = 0xFFFE, 0x1234, 0
    assert machine.run(MOV_BX_AX, 16) == "Done"
    assert machine.memory[0xFFFE:] == b"\x34\x12"
    machine.regs.Rbx = machine.regs.Rbp = 0xFFFF
    assert machine.run(MOV_BX_AX, 16) == f"{GP} 0"
    assert machine.run(MOV_BP_AX, 16) == f"{SS} 0"


@pytest.mark.parametrize("attributes", [PE_CODE, PE_READ_ONLY, PE_DATA & ~0x80])
def test_protected_mode_has_types_and_virtual_8086_mode_has_not(machine: Machine, attributes: int) -> None:
    machine.emulate.Protected = True
    machine.segments[3].Attributes = attributes
    assert machine.run(MOV_BX_AX, 16) == f"{GP} 0"
    machine.regs.Rflags |= VM
    assert machine.run(MOV_BX_AX, 16) == "Done"


def test_every_segment_has_its_base_and_limit(machine: Machine) -> None:
    machine.regs.Rcx = 0x1122334455667788
    for number, prefix in enumerate("26 2e 36 3e 64 65".split()):
        machine.segments[number].Base = 0x1000 * (number + 1)
        machine.segments[number].Limit = 0x103
        machine.regs.Rax = 0x100
        assert machine.run(f"{prefix}8908", 32) == "Done"
        assert machine.memory[0x1000 * (number + 1) + 0x100 :][:4] == b"\x88\x77\x66\x55"
        machine.regs.Rax = 0x101
        assert machine.run(f"{prefix}8908", 32) == f"{SS if number == 2 else GP} 0"
        assert machine.run(f"{prefix}8908", 64) == "Done"
        assert machine.calls[-1] == ("write", 0x101 + (0x1000 * (number + 1) if number >= 4 else 0), 4)


def test_addresses_wrap_at_4_gib_outside_64_bit_code(machine: Machine) -> None:
    machine.segments[3].Base = 0xFFFFFFFE
    machine.unmapped = {0xFFFFF}
    assert machine.run("8908", 32) == f"{PF} 2"
    assert (machine.emulate.Fault.Cr2, machine.calls) == (0xFFFFFFFE, [])
    machine.segments[3].Base = 0xFFFFFFFF
    machine.regs.Rax, machine.regs.Rcx = 1, 0xAABBCCDD
    assert machine.run("8908", 32) == "Done"
    assert machine.memory[:4] == b"\xdd\xcc\xbb\xaa"


def test_nothing_is_written_if_the_second_page_is_not_there(machine: Machine) -> None:
    machine.unmapped = {2}
    machine.regs.Rax, machine.regs.Rcx = 0x1FFE, 5
    before = bytes(machine.memory)
    assert machine.run("8908", 64) == f"{PF} 2"
    assert (machine.emulate.Fault.Cr2, bytes(machine.memory), machine.calls) == (0x2000, before, [])
    machine.unmapped = set()
    assert machine.run("8908", 64) == "Done"
    assert machine.calls == [("write", 0x1FFE, 2), ("write", 0x2000, 2)]


@pytest.mark.parametrize("code", ["8908", "8708", "0108", "F00FB108", "A5"])
def test_memory_without_access_is_refused_and_nothing_changes(machine: Machine, code: str) -> None:
    machine.regs.Rax = machine.regs.Rdi = 0x10000
    machine.regs.Rflags |= 0x8D5
    before = bytes(machine.hv.ffi.buffer(machine.regs))
    assert machine.run(code, 64) == "Refused"
    assert (bytes(machine.hv.ffi.buffer(machine.regs)), machine.calls) == (before, [])


@pytest.mark.parametrize("code", ["0FA2", "89C8", "0F01D9", "F4"])
def test_what_has_no_memory_operand_is_refused(machine: Machine, code: str) -> None:
    assert machine.run(code, 64) == "Refused"


def test_a_compare_exchange_writes_in_both_cases(machine: Machine) -> None:
    machine.regs.Rdi, machine.regs.Rcx, machine.regs.Rax = (
        0x1000,
        5,
        int.from_bytes(machine.memory[0x1000:0x1004], "little"),
    )
    for value in (5, 5):
        machine.calls.clear()
        assert machine.run("0FB10F", 64) == "Done"
        assert machine.calls == [("read", 0x1000, 4), ("write", 0x1000, 4)]
        assert int.from_bytes(machine.memory[0x1000:0x1004], "little") == value
    assert machine.regs.Rax == 5


def test_a_repetition_stops_at_the_limit_and_at_the_page(machine: Machine) -> None:
    regs = machine.regs
    machine.emulate.Repeats, regs.Rcx, regs.Rdi, regs.Rax = 3, 10, 0x1FE0, 0xAA
    assert machine.run("F3AB", 64) == "Again"
    assert (regs.Rcx, regs.Rdi, len(machine.calls)) == (7, 0x1FEC, 3)
    machine.emulate.Repeats = 100
    assert machine.run("F3AB", 64) == "Again"
    assert (regs.Rcx, regs.Rdi, len(machine.calls)) == (2, 0x2000, 8)
    assert machine.run("F3AB", 64) == "Done"
    assert (regs.Rcx, regs.Rdi, len(machine.calls)) == (0, 0x2008, 10)


def test_a_repetition_keeps_what_was_done_before_the_fault(machine: Machine) -> None:
    regs = machine.regs
    machine.unmapped = {2}
    regs.Rcx, regs.Rsi, regs.Rdi = 10, 0x3000, 0x1FFC
    assert machine.run("F3A5", 64) == f"{PF} 2"
    assert (regs.Rcx, regs.Rsi, regs.Rdi) == (9, 0x3004, 0x2000)
    assert machine.memory[0x1FFC:0x2000] == machine.memory[0x3000:0x3004]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("8908", 0x55667788),  # mov [rax], ecx
        ("668908", 0x7788),
        ("488908", 0x1122334455667788),
        ("8828", 0x77),  # mov [rax], ch
        ("0FC308", 0x55667788),  # movnti [rax], ecx
        ("C70001020384", 0x84030201),  # mov dword [rax], imm
        ("48C70001020384", 0xFFFFFFFF84030201),
        ("C60005", 5),
        ("A30000000000000000", 0x1000),
        ("8708", None),  # xchg [rax], ecx
        ("0108", None),
        ("8B08", None),
        ("89C8", None),
        ("AB", None),
    ],
)
def test_the_value_of_a_plain_store(machine: Machine, code: str, value: int | None) -> None:
    data = bytes.fromhex(code)
    machine.regs.Rax, machine.regs.Rcx = 0x1000, 0x1122334455667788
    assert machine.hv.name(machine.hv.lib.HvDecode(data, len(data), 64, machine.insn)) == "SUCCESS"
    stored = machine.hv.ffi.new("UINT64 *")
    plain = machine.hv.lib.HvEmulateStoredValue(machine.insn, machine.regs, stored)
    assert (int(stored[0]) if plain else None) == value
    if value is not None:
        assert machine.run(code, 64) == "Done"
        place = 0 if code.startswith("A3") else 0x1000
        assert (
            machine.memory[place:][: machine.insn.OperandSize]
            == value.to_bytes(8, "little")[: machine.insn.OperandSize]
        )

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvDecodeLib against iced-x86, and against itself where bytes are missing."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import cffi
import iced_x86
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iced_x86 import MemorySizeExt, Mnemonic, OpKind, Register

from tests.unit.c.host import HostLibrary

SLOT = 16
IP = 0x1234_5000
MODES = (16, 32, 64)

# SDM volume 1, table B-1, in the order of the condition's four bits.
CONDITIONS = "SETO SETNO SETB SETAE SETE SETNE SETBE SETA SETS SETNS SETP SETNP SETL SETGE SETLE SETG".split()
SHIFTS = ("HvOpRol", "HvOpRor", "HvOpRcl", "HvOpRcr", "HvOpShl", "HvOpShr", "HvOpSar")

# What iced calls our operations.
MNEMONICS = {
    "HvOpMovStoreReg": "MOV MOVNTI",
    "HvOpMovStoreImm": "MOV",
    "HvOpMovLoad": "MOV",
    "HvOpMovsx": "MOVSX MOVSXD",
    "HvOpShl": "SHL SAL",
    "HvOpSetcc": " ".join(CONDITIONS),
    "HvOpStos": "STOSB STOSW STOSD STOSQ",
    "HvOpMovs": "MOVSB MOVSW MOVSD MOVSQ",
    "HvOpLods": "LODSB LODSW LODSD LODSQ",
    "HvOpIret": "IRET IRETD IRETQ",
    "HvOpIcebp": "INT1",
    "HvOpMovFromCr": "MOV",
    "HvOpMovToCr": "MOV",
    "HvOpMovFromDr": "MOV",
    "HvOpMovToDr": "MOV",
}
SIZED = {"W": 2, "D": 4, "Q": 8, "B": 1}

GPR = "AX CX DX BX SP BP SI DI".split()
SEGMENTS = {getattr(Register, name): number for number, name in enumerate("ES CS SS DS FS GS".split())}
STRING_DI = {OpKind.MEMORY_ESDI: 2, OpKind.MEMORY_ESEDI: 4, OpKind.MEMORY_ESRDI: 8}
STRING_SI = {OpKind.MEMORY_SEG_SI: 2, OpKind.MEMORY_SEG_ESI: 4, OpKind.MEMORY_SEG_RSI: 8}


def _registers() -> dict[int, tuple[int, int, bool]]:
    """iced's registers as (number, bytes, high byte)."""
    table: dict[int, tuple[int, int, bool]] = {}
    for number, name in enumerate(GPR):
        table[getattr(Register, "R" + name)] = (number, 8, False)
        table[getattr(Register, "E" + name)] = (number, 4, False)
        table[getattr(Register, name)] = (number, 2, False)
    for number, name in enumerate("AL CL DL BL SPL BPL SIL DIL".split()):
        table[getattr(Register, name)] = (number, 1, False)
    for number, name in enumerate("AH CH DH BH".split()):
        table[getattr(Register, name)] = (number, 1, True)
    for number in range(8, 16):
        for suffix, size in (("", 8), ("D", 4), ("W", 2), ("L", 1)):
            table[getattr(Register, f"R{number}{suffix}")] = (number, size, False)
    for number in range(16):
        table[getattr(Register, f"CR{number}")] = (number, 0, False)
        table[getattr(Register, f"DR{number}")] = (number, 0, False)
    return table


REGISTERS = _registers()


class Referee:
    """Both decoders over the same bytes."""

    def __init__(self, hv: HostLibrary) -> None:
        """Prepares a page that ends where memory ends."""
        self.hv = hv
        self.insn = hv.ffi.new("HV_INSN *")
        self.ops = {number: name for name, number in self._enum("HV_OP").items()}
        self.forms = {number: name for name, number in self._enum("HV_FORM").items()}
        self.reasons = {number: name for name, number in self._enum("HV_DECODE_REASON").items()}
        self.mnemonics = {
            number: {getattr(Mnemonic, m) for m in MNEMONICS.get(name, name.removeprefix("HvOp").upper()).split()}
            for number, name in self.ops.items()
            if name not in ("HvOpInvalid", "HvOpMax")
        }
        self.known = set().union(*self.mnemonics.values())
        self.seen: Counter[str] = Counter()
        libc = self._libc()
        page = 4096
        memory = libc.mmap(hv.ffi.NULL, 2 * page, 3, 0x22, -1, 0)
        assert libc.mprotect(memory + page, page, 0) == 0
        self.end = hv.ffi.cast("uint8_t *", memory) + page

    def _libc(self) -> Any:  # noqa: ANN401 (cffi has no types)
        ffi = cffi.FFI()
        ffi.cdef("char *mmap(void *, size_t, int, int, int, long); int mprotect(void *, size_t, int);")
        return ffi.dlopen(None)

    def _enum(self, name: str) -> dict[str, int]:
        return dict(self.hv.ffi.typeof(name).relements)

    def ours(self, data: bytes, mode: int) -> str:
        """Decodes bytes that lie directly before a page that cannot be read."""
        place = self.end - len(data)
        self.hv.ffi.memmove(place, data, len(data))
        return self.hv.name(self.hv.lib.HvDecode(place, len(data), mode, self.insn))

    def compare(self, chunks: Iterable[bytes], mode: int) -> None:
        """Compares both decoders on many instructions, each of 15 bytes with what follows it."""
        chunks = list(chunks)
        decoder = iced_x86.Decoder(
            mode, b"".join(c.ljust(SLOT, b"\0") for c in chunks), options=iced_x86.DecoderOptions.AMD
        )
        theirs = iced_x86.Instruction()
        for number, chunk in enumerate(chunks):
            decoder.position = number * SLOT
            decoder.ip = IP
            decoder.decode_out(theirs)
            status = self.ours(chunk[:15], mode)
            where = f"{chunk[:15].hex()} in {mode}-bit code: iced says {theirs} ({theirs.len} bytes)"
            if status == "SUCCESS":
                assert theirs.code != iced_x86.Code.INVALID, where
                self._same(theirs, mode, where)
                self.seen[self.ops[self.insn.Op]] += 1
            else:
                assert status == "UNSUPPORTED", where
                self._refused(theirs, chunk, mode, where)

    def _refused(self, theirs: Any, chunk: bytes, mode: int, where: str) -> None:  # noqa: ANN401
        reason = self.reasons[self.insn.Reason]
        self.seen[reason] += 1
        where = f"{reason}: {where}"
        if reason == "HvDecodeUnknown":
            if theirs.mnemonic in self.known:
                assert not_covered(theirs), where
        else:
            assert reason != "HvDecodeShort", where
            assert theirs.code == iced_x86.Code.INVALID, where

    def _same(self, theirs: Any, mode: int, where: str) -> None:  # noqa: ANN401
        ours = self.insn
        where = f"ours: {self.ops[ours.Op]} {self.forms[ours.Form]} {ours.Length} bytes; {where}"
        assert ours.Reason == 0, where
        assert ours.Length == theirs.len, where
        assert theirs.mnemonic in self.mnemonics[ours.Op], where
        assert bool(ours.Lock) == theirs.has_lock_prefix, where
        name = self.ops[ours.Op]
        form = self.forms[ours.Form]
        if form == "HvFormString":
            assert (ours.Rep == 2) == theirs.has_repne_prefix and (ours.Rep == 1) == theirs.has_rep_prefix, where
            self._same_string(theirs, where)
            return
        assert ours.Rep == 0, where
        if name == "HvOpIret":
            size = {Mnemonic.IRET: 2, Mnemonic.IRETD: 4, Mnemonic.IRETQ: 8}[theirs.mnemonic]
            assert ours.OperandSize == size, where
        rm, reg, immediate = {
            "HvFormNone": (None, None, None),
            "HvFormRmReg": (0, 1, None),
            "HvFormRegRm": (1, 0, None),
            "HvFormRmImm": (0, None, 1),
            "HvFormRm": (0, None, None),
            "HvFormImm": (None, None, 0),
        }[form]
        assert (bool(ours.HasReg), bool(ours.HasImmediate)) == (reg is not None, immediate is not None), where
        assert bool(ours.HasRm) + bool(ours.HasMemory) == (0 if rm is None else 1) and not ours.HasSource, where
        if rm is not None:
            self._same_rm(theirs, rm, where)
        if reg is not None:
            assert theirs.op_kind(reg) == OpKind.REGISTER, where
            number, size, high = REGISTERS[theirs.op_register(reg)]
            sizes = (1,) if name in SHIFTS else (0, ours.OperandSize)
            assert (ours.Reg, bool(ours.RegHigh)) == (number, high) and size in sizes, where
        if immediate is not None:
            self._same_immediate(theirs, immediate, name, where)
        if name == "HvOpSetcc":
            assert theirs.mnemonic == getattr(Mnemonic, CONDITIONS[ours.Condition]), where
        if form == "HvFormRmImm" or name in ("HvOpNot", "HvOpNeg", "HvOpInc", "HvOpDec", "HvOpSmsw", "HvOpLmsw"):
            assert ours.OperandSize == ours.SourceSize, where

    def _same_rm(self, theirs: Any, operand: int, where: str) -> None:  # noqa: ANN401
        ours = self.insn
        if theirs.op_kind(operand) == OpKind.REGISTER:
            number, size, high = REGISTERS[theirs.op_register(operand)]
            if theirs.mnemonic == Mnemonic.LMSW:
                size = 2  # iced's register has the operand size of the prefixes; 16 bits of it are read
            assert ours.HasRm and (ours.Rm, ours.SourceSize, bool(ours.RmHigh)) == (number, size, high), where
            return
        assert theirs.op_kind(operand) == OpKind.MEMORY and ours.HasMemory, where
        memory = ours.Memory
        if size := MemorySizeExt.size(theirs.memory_size):
            assert ours.SourceSize == size, where
        self._same_segment(memory.Segment, theirs.memory_segment, where)
        mask = (1 << 8 * ours.AddressSize) - 1
        displacement = memory.Displacement
        if theirs.is_ip_rel_memory_operand:
            assert memory.Base == self.hv.constants["HV_REG_RIP"] and memory.Index == 0xFF, where
            displacement += IP + ours.Length
        else:
            self._same_register(memory.Base, theirs.memory_base, where)
            self._same_register(memory.Index, theirs.memory_index, where)
            if memory.Index != 0xFF:
                assert memory.Scale == theirs.memory_index_scale, where
        assert displacement & mask == theirs.memory_displacement & mask, where
        offset = self.hv.lib.HvInsnOffset(ours, self.hv.ffi.addressof(ours, "Memory"), [0] * 16, IP, 0)
        assert offset == theirs.memory_displacement & mask, where

    def _same_segment(self, number: int, theirs: int, where: str) -> None:
        # In 64-bit code CS, DS, ES and SS are all the same; iced names an override that has no effect.
        plain = {number, SEGMENTS[theirs]} <= {0, 1, 2, 3}
        assert number == SEGMENTS[theirs] or (self.insn.Mode == 64 and plain), where

    def _same_register(self, number: int, theirs: int, where: str) -> None:
        if theirs == Register.NONE:
            assert number == self.hv.constants["HV_REG_NONE"], where
        else:
            assert REGISTERS[theirs] == (number, self.insn.AddressSize, False), where

    def _same_immediate(self, theirs: Any, operand: int, name: str, where: str) -> None:  # noqa: ANN401
        ours = self.insn
        bits = 8 * ours.ImmediateSize
        value = ours.Immediate & (1 << bits) - 1
        if bits == 0:
            assert name in SHIFTS and ours.Immediate == 1 == theirs.immediate(operand), where
            return
        if name in (*SHIFTS, "HvOpInt", "HvOpBt", "HvOpBts", "HvOpBtr", "HvOpBtc"):
            assert bits == 8 and ours.Immediate == value == theirs.immediate(operand), where
            return
        signed = value - (1 << bits) if value >> (bits - 1) else value
        assert ours.Immediate == signed % 2**64, where
        mask = (1 << 8 * ours.OperandSize) - 1
        assert ours.Immediate & mask == theirs.immediate(operand) & mask, where

    def _same_string(self, theirs: Any, where: str) -> None:  # noqa: ANN401
        ours = self.insn
        kinds = [theirs.op_kind(n) for n in range(theirs.op_count)]
        destination = [STRING_DI[kind] for kind in kinds if kind in STRING_DI]
        source = [STRING_SI[kind] for kind in kinds if kind in STRING_SI]
        assert destination == [ours.AddressSize] * ours.HasMemory, where
        assert source == [ours.AddressSize] * ours.HasSource, where
        assert MemorySizeExt.size(theirs.memory_size) == ours.OperandSize == ours.SourceSize, where
        if ours.HasMemory:
            memory = ours.Memory
            assert (memory.Base, memory.Index, memory.Displacement, memory.Segment) == (7, 0xFF, 0, 0), where
        if ours.HasSource:
            memory = ours.Source
            assert (memory.Base, memory.Index, memory.Displacement) == (6, 0xFF, 0), where
            self._same_segment(memory.Segment, theirs.memory_segment, where)
        registers = [theirs.op_register(n) for n, kind in enumerate(kinds) if kind == OpKind.REGISTER]
        assert bool(ours.HasReg) == bool(registers), where
        if registers:
            assert REGISTERS[registers[0]] == (ours.Reg, ours.OperandSize, False), where


def not_covered(theirs: Any) -> bool:  # noqa: ANN401
    """Encodings of known mnemonics that the decoder leaves out: they neither access memory nor can be intercepted."""
    if theirs.mnemonic == Mnemonic.PAUSE:
        return True  # F3 with REX.B and 90: XCHG with R8 for the processors, PAUSE for iced
    if theirs.mnemonic == Mnemonic.MOVSD and not theirs.is_string_instruction:
        return True  # the SSE2 instruction of the same name
    if theirs.mnemonic == Mnemonic.MOV and any(
        theirs.op_kind(n) == OpKind.REGISTER and theirs.op_register(n) in SEGMENTS for n in (0, 1)
    ):
        return True  # MOV to and from segment registers
    kinds = [theirs.op_kind(n) for n in range(theirs.op_count)]
    memory = OpKind.MEMORY in kinds
    return not memory and bool(kinds) and kinds[0] == OpKind.REGISTER  # accumulator or short forms: 04, 05, 40, 91, B0


@pytest.fixture(scope="module")
def referee(hv: HostLibrary) -> Referee:
    return Referee(hv)


def rest(rng: random.Random) -> bytes:
    """Bytes for SIB, displacement and immediate, with extreme values more often than chance has them."""
    return bytes(rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256))) for _ in range(13))


def prefixes() -> Iterator[bytes]:
    """Prefixes in every combination that can matter, in both orders with REX."""
    single = [b"", b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x26", b"\x2e", b"\x36", b"\x3e", b"\x64", b"\x65"]
    rex = [b"", b"\x40", b"\x41", b"\x42", b"\x44", b"\x48", b"\x4f"]
    seen = set()
    for one, two, three in itertools.product(single, single[:6], rex):
        for text in (one + two + three, one + three + two):
            if text not in seen:
                seen.add(text)
                yield text


OPCODES = [bytes([n]) for n in range(256)] + [bytes([0x0F, n]) for n in range(256)]


@pytest.mark.parametrize("mode", MODES)
def test_every_opcode_and_modrm_agrees(referee: Referee, mode: int) -> None:
    rng = random.Random(mode)
    for opcode in OPCODES:
        referee.compare((opcode + bytes([modrm]) + rest(rng) for modrm in range(256)), mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_prefix_and_opcode_agrees(referee: Referee, mode: int) -> None:
    rng = random.Random(mode)
    for prefix in prefixes():
        if mode != 64 and any(0x40 <= byte < 0x50 for byte in prefix):
            continue
        chunks = (prefix + opcode + bytes([rng.randrange(256)]) + rest(rng) for opcode in OPCODES)
        referee.compare((chunk[:SLOT] for chunk in chunks), mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_sib_agrees(referee: Referee, mode: int) -> None:
    rng = random.Random(mode)
    starts = [b"", b"\x67", b"\x64"] + ([bytes([n]) for n in range(0x40, 0x50)] if mode == 64 else [])
    for prefix, mod in itertools.product(starts, range(4)):
        chunks = (prefix + b"\x89" + bytes([mod << 6 | 4, sib]) + rest(rng) for sib in range(256))
        referee.compare((chunk[:SLOT] for chunk in chunks), mode)


@pytest.mark.parametrize("mode", MODES)
def test_random_bytes_agree(referee: Referee, mode: int) -> None:
    rng = random.Random(f"decode {mode}")
    weights = [b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x26", b"\x2e", b"\x36", b"\x3e", b"\x64", b"\x65"]
    weights += [bytes([rng.randrange(0x40, 0x50)]) for _ in range(12)]
    before = sum(referee.seen.values())
    for _ in range(100):
        chunks = []
        for _ in range(1000):
            start = b"".join(rng.choices(weights, k=rng.choice((0, 0, 1, 1, 2, 3, 4, 11, 14, 15))))
            chunks.append((start + rng.choice(OPCODES) + rng.randbytes(SLOT))[:SLOT])
        referee.compare(chunks, mode)
    assert sum(referee.seen.values()) - before == 100_000


def test_every_operation_and_every_refusal_was_met(referee: Referee) -> None:
    """Runs after the comparisons above and says whether they reached everything."""
    if not referee.seen:
        pytest.fail("run the whole file: this test looks at what the others met")
    operations = {name for name in referee.ops.values() if name not in ("HvOpInvalid", "HvOpMax")}
    reasons = {name for name in referee.reasons.values()} - {"HvDecodeOk", "HvDecodeShort", "HvDecodeReasonMax"}
    assert (operations | reasons) - set(referee.seen) == set()


@given(data=st.binary(min_size=1, max_size=15), mode=st.sampled_from(MODES))
def test_missing_bytes_are_asked_for(referee: Referee, data: bytes, mode: int) -> None:
    whole = referee.ours(data.ljust(15, b"\0"), mode)
    length = referee.insn.Length
    for count in range(15):
        status = referee.ours(data.ljust(15, b"\0")[:count], mode)
        if count < length:
            assert status == "BUFFER_TOO_SMALL" and referee.insn.Reason == 1
        else:
            assert status == whole and referee.insn.Length == length


def test_fifteen_bytes_are_the_limit(referee: Referee) -> None:
    assert referee.ours(b"\x66" * 13 + b"\x0f\xa2" + b"\0" * 8, 64) == "SUCCESS"
    assert referee.insn.Length == 15
    assert referee.ours(b"\x66" * 14 + b"\x0f\xa2" + b"\0" * 8, 64) == "UNSUPPORTED"
    assert referee.reasons[referee.insn.Reason] == "HvDecodeTooLong"
    assert referee.ours(b"\x66" * 14, 64) == "BUFFER_TOO_SMALL"


def test_bad_parameters(hv: HostLibrary, referee: Referee) -> None:
    null = hv.ffi.NULL
    assert hv.name(hv.lib.HvDecode(null, 1, 64, referee.insn)) == "INVALID_PARAMETER"
    assert hv.name(hv.lib.HvDecode(b"\x90", 1, 64, null)) == "INVALID_PARAMETER"
    assert hv.name(hv.lib.HvDecode(b"\x90", 1, 8, referee.insn)) == "INVALID_PARAMETER"
    assert hv.name(hv.lib.HvDecode(b"\x90", 0, 64, referee.insn)) == "BUFFER_TOO_SMALL"


U64 = st.integers(0, 2**64 - 1)


@given(gpr=st.lists(U64, min_size=16, max_size=16), rip=U64, addend=U64, data=st.binary(min_size=8, max_size=8))
def test_effective_address(referee: Referee, gpr: list[int], rip: int, addend: int, data: bytes) -> None:
    for mode, size in itertools.product(MODES, (b"", b"\x67")):
        chunk = size + b"\x89" + bytes([data[0] & 0xBF if data[0] >> 6 == 3 else data[0]]) + data[1:] + b"\0" * 8
        assert referee.ours(chunk[:15], mode) == "SUCCESS"
        insn = referee.insn
        offset = referee.hv.lib.HvInsnOffset(insn, referee.hv.ffi.addressof(insn, "Memory"), gpr, rip, addend)
        instruction = iced_x86.Decoder(mode, chunk, ip=rip).decode()
        address = instruction.memory_displacement
        if not instruction.is_ip_rel_memory_operand:
            for register, scale in (
                (instruction.memory_base, 1),
                (instruction.memory_index, instruction.memory_index_scale),
            ):
                if register != Register.NONE:
                    number, width, _ = REGISTERS[register]
                    address += (gpr[number] & (1 << 8 * width) - 1) * scale
        assert offset == (address + addend) & (1 << 8 * insn.AddressSize) - 1


@given(
    gpr=st.lists(U64, min_size=16, max_size=16),
    register=st.integers(0, 15),
    size=st.sampled_from((1, 2, 4, 8)),
    high=st.booleans(),
    value=U64,
)
def test_registers(referee: Referee, gpr: list[int], register: int, size: int, high: bool, value: int) -> None:
    high = high and size == 1 and register < 4
    ffi, lib = referee.hv.ffi, referee.hv.lib
    memory = ffi.new("UINT64[16]", gpr)
    raw = gpr[register].to_bytes(8, "little")
    place = slice(1, 2) if high else slice(0, size)
    assert lib.HvInsnReadRegister(memory, register, high, size) == int.from_bytes(raw[place], "little")
    lib.HvInsnWriteRegister(memory, register, high, size, value)
    wanted = bytearray(bytes(8) if size == 4 else raw)
    wanted[place] = value.to_bytes(8, "little")[:size]
    gpr = [*gpr[:register], int.from_bytes(wanted, "little"), *gpr[register + 1 :]]
    assert list(memory) == gpr

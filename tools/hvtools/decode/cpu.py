# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A processor's registers from a dump: its mode, the instruction it stands at, and what is strange about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from iced_x86 import Decoder, DecoderError, Formatter, FormatterSyntax

from hvtools.decode import pagewalk, words
from hvtools.decode.report import Table
from hvtools.generated import cpuid, msr

_PE, _PG, _PAE, _VM, _IF = (
    cpuid.CONSTANTS[f"HV_{name}"] for name in ("CR0_PE", "CR0_PG", "CR4_PAE", "RFLAGS_VM", "RFLAGS_IF")
)
_LME, _LMA = (msr.CONSTANTS[f"HV_EFER_{name}"] for name in ("LME", "LMA"))
_INSTRUCTION_MAX = 15
_WORDS = (("cr0", "HV_CR0"), ("cr4", "HV_CR4"), ("efer", "HV_EFER"), ("rflags", "HV_RFLAGS"))
_64_BIT = {
    "EIP": "rip",
    "EFL": "rflags",
    "RFL": "rflags",
    **{f"E{name}": f"r{name.lower()}" for name in ("AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP")},
}


def register(name: str) -> str:
    """Give the name of a register as `Processor.values` has it: EAX is rax."""
    return _64_BIT.get(name, name.lower())


@dataclass(frozen=True)
class Segment:
    """A segment register; long and big are bits L and D/B of the descriptor."""

    selector: int
    base: int
    limit: int
    present: bool = True
    big: bool = False
    long: bool = False
    kind: str = ""


@dataclass
class Processor:
    """What a dump says of a processor.

    Attributes:
        heading: Where it is from, for people.
        values: Registers by their lower-case 64-bit names: rax, rip, rflags, cr0, efer, gdt, cpl.
        segments: By their lower-case names.
        code: Bytes from RIP on.
        halted: It waits in HLT.
    """

    heading: str = ""
    values: dict[str, int] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    code: bytes = b""
    halted: bool = False

    def bits(self) -> int:
        """Give the width of code: 16, 32 or 64."""
        cs = self.segments.get("cs", Segment(0, 0, 0))
        if not self.values.get("cr0", 0) & _PE or self.values.get("rflags", 0) & _VM:
            return 16
        if self.values.get("efer", 0) & _LMA and cs.long:
            return 64
        return 32 if cs.big else 16

    def mode(self) -> str:
        """Give the mode in words."""
        cr0, cr4, efer = (self.values.get(name, 0) for name in ("cr0", "cr4", "efer"))
        if not cr0 & _PE:
            return "real mode"
        if efer & _LMA:
            return "64-bit mode" if self.bits() == 64 else f"compatibility mode ({self.bits()}-bit code)"
        name = "virtual-8086 mode" if self.values.get("rflags", 0) & _VM else f"{self.bits()}-bit protected mode"
        if not cr0 & _PG:
            return f"{name} without paging"
        return f"{name} with {'PAE' if cr4 & _PAE else '32-bit'} paging"

    def address(self) -> int:
        """Give the linear address of the instruction."""
        base = 0 if self.bits() == 64 else self.segments.get("cs", Segment(0, 0, 0)).base
        return base + self.values.get("rip", 0)

    def instruction(self) -> str:
        """Give the instruction at RIP; empty when its bytes are not in the dump."""
        if not self.code:
            return ""
        decoder = Decoder(self.bits(), self.code[:_INSTRUCTION_MAX], ip=self.values.get("rip", 0))
        instruction = decoder.decode()
        if instruction.is_invalid:
            why = "cut off" if decoder.last_error == DecoderError.NO_MORE_BYTES else "no instruction"
            return f"{self.code[:_INSTRUCTION_MAX].hex(' ')} ({why})"
        formatter = Formatter(FormatterSyntax.NASM)
        formatter.hex_prefix, formatter.hex_suffix = "0x", ""
        return f"{formatter.format(instruction)} ({self.code[: instruction.len].hex(' ')})"

    def fetch(self, memory: pagewalk.Physical) -> None:
        """Take the code from memory, where the dump does not have it."""
        if not self.code:
            physical = pagewalk.walk(memory, self.values, self.address()).physical
            self.code = (memory.read(physical, _INSTRUCTION_MAX) if physical is not None else None) or b""

    def summary(self) -> str:
        """Give all that fits into a line."""
        text = f"{self.heading}: " if self.heading else ""
        text += f"{self.mode()}, CPL {self.values['cpl']}" if "cpl" in self.values else self.mode()
        text += f", at {self.values.get('rip', 0):#x}"
        if instruction := self.instruction():
            text += f": {instruction}"
        return text

    def oddities(self) -> list[str]:
        """Say what is strange and may be the cause."""
        found = []
        cr0, efer, rip = (self.values.get(name, 0) for name in ("cr0", "efer", "rip"))
        if self.bits() == 64 and not words.canonical(rip, 57):
            found.append(f"RIP {rip:#x} is not canonical: a return or jump went through a corrupted pointer")
        if self.code and not any(self.code):
            found.append("the code at RIP is all zeros: a jump into memory that nobody filled")
        elif len(self.code) > 1 and set(self.code) == {0xFF}:
            found.append("the code at RIP reads all ones: there is no memory, a jump to nowhere")
        if self.halted and not self.values.get("rflags", 0) & _IF:
            found.append("halted with interrupts off: it stops for good, only NMI, SMI or INIT wake it")
        if cr0 & _PG and not cr0 & _PE:
            found.append("CR0.PG is set without PE: no processor enters that")
        if cr0 & _PG and efer & _LME and not efer & _LMA:
            found.append("EFER.LME and CR0.PG are set but LMA is not: the processor itself sets it")
        if efer & _LMA and "cr4" in self.values and not self.values["cr4"] & _PAE:
            found.append("long mode without CR4.PAE: no processor enters that")
        return found

    def tables(self, memory: pagewalk.Physical | None) -> list[Table]:
        """Give the details: control words, segments, and page walks where there is memory."""
        name = self.heading or "processor"
        found = []
        rows = [
            (key.upper(), f"{self.values[key]:#x}", words.word(self.values[key], prefix))
            for key, prefix in _WORDS
            if key in self.values
        ]
        if rows:
            found.append(Table(f"{name}: control", ("register", "value", "in words"), rows))
        if self.segments:
            found.append(Table(f"{name}: segments", ("segment", "selector", "base", "limit", "is"), self._segments()))
        if memory is not None and self.values.get("cr0", 0) & _PG:
            for what, address in self._walked():
                found.append(_walked(f"{name}: page walk for {what} {address:#x}", memory, self.values, address))
        return found

    def _segments(self) -> list[tuple[str, ...]]:
        return [
            (
                key.upper(),
                f"{segment.selector:#06x}",
                f"{segment.base:#x}",
                f"{segment.limit:#x}",
                segment.kind if segment.present else "not usable",
            )
            for key, segment in self.segments.items()
        ]

    def _walked(self) -> list[tuple[str, int]]:
        found = [("RIP", self.address())]
        if self.values.get("cr2", 0):
            found.append(("CR2", self.values["cr2"]))
        return found


def _walked(title: str, memory: pagewalk.Physical, registers: dict[str, int], address: int) -> Table:
    walk = pagewalk.walk(memory, registers, address)
    rows: list[tuple[str, ...]] = [step.text() for step in walk.steps]
    result = f"{walk.physical:#x}" if walk.physical is not None else "none"
    return Table(title, ("entry", "at", "value", "is"), [*rows, ("result", "", result, walk.why)])

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The code of a built image: the bytes of the .efi, the symbols of its .debug, and what calls what."""

import bisect
import re
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind

from hvtools.errors import HvError

_R_X86_64_64 = 1
# What link-time optimization appends to a static object that several of its partitions use.
_PARTITIONED = re.compile(r"\.lto_priv\.\d+$")
_LITERAL = ".L"  # GCC's name for a constant; NASM's local labels have their function before the dot


@dataclass(frozen=True)
class Symbol:
    """A named place."""

    name: str
    address: int
    size: int
    kind: str
    executable: bool

    @property
    def is_code(self) -> bool:
        """Whether it can be the start of code: data that the linker put into .text cannot."""
        label = self.kind == "STT_NOTYPE" and not self.name.startswith(_LITERAL)
        return self.executable and (self.kind == "STT_FUNC" or label)


@dataclass(frozen=True)
class Section:
    """A part of the image."""

    name: str
    address: int
    data: bytes
    executable: bool

    def holds(self, address: int) -> bool:
        """Whether an address is in it."""
        return self.address <= address < self.address + len(self.data)


@dataclass
class Routine:
    """A function's code, and where it leads.

    Attributes:
        symbol: its name and place.
        code: its instructions.
        callees: the starts of code that it calls, jumps to or takes the address of.
        objects: the data that it names, by the name of the symbol.
        indirect: addresses of the calls and jumps whose target is not in the code.
    """

    symbol: Symbol
    code: list[Instruction] = field(default_factory=list)
    callees: set[int] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    indirect: list[int] = field(default_factory=list)


def pe_sections(data: bytes) -> list[Section]:
    """The sections of a PE image, as the loader puts them (addresses from the image's base)."""
    header = struct.unpack_from("<I", data, 0x3C)[0]
    if data[header : header + 4] != b"PE\0\0":
        raise HvError("not a PE image")
    count, optional = struct.unpack_from("<H", data, header + 6)[0], struct.unpack_from("<H", data, header + 20)[0]
    found = []
    for index in range(count):
        at = header + 24 + optional + index * 40
        name = data[at : at + 8].rstrip(b"\0").decode("ascii")
        virtual, address, raw, offset = struct.unpack_from("<IIII", data, at + 8)
        flags = struct.unpack_from("<I", data, at + 36)[0]
        content = data[offset : offset + min(raw, virtual)].ljust(virtual, b"\0")
        found.append(Section(name, address, content, bool(flags & 0x20000000)))
    return found


def _parts(die: DIE) -> Iterator[tuple[str, str]]:
    """The functions that the code of a function comes from."""
    origin = die
    while "DW_AT_abstract_origin" in origin.attributes:
        origin = origin.get_DIE_from_attribute("DW_AT_abstract_origin")
    if "DW_AT_name" in origin.attributes and die.tag in ("DW_TAG_subprogram", "DW_TAG_inlined_subroutine"):
        source = origin.cu.get_top_DIE().attributes["DW_AT_name"].value
        yield origin.attributes["DW_AT_name"].value.decode(), source.decode()
    for child in die.iter_children():
        yield from _parts(child)


class Image:
    """A built image with its symbols.

    Attributes:
        sections: what the processor sees.
        symbols: all symbols of these sections, by address.
        pointers: addresses of 64-bit pointers in the data, and where they point.
    """

    def __init__(self, efi: bytes, debug: Path) -> None:
        """Reads an image.

        Args:
            efi: the content of the .efi: the code that runs.
            debug: the .debug file of the same build.

        Raises:
            HvError: the two do not belong together.
        """
        self._debug = debug
        self.sections = pe_sections(efi)
        self.pointers: dict[int, int] = {}
        symbols = []
        with debug.open("rb") as file:
            elf = ELFFile(file)
            loaded = set()
            for index, section in enumerate(elf.iter_sections()):
                if section.name in (".text", ".data"):
                    loaded.add(index)
                    if self._section(section["sh_addr"]) is None:
                        raise HvError(f"{debug.name} and the image have different sections")
            table = elf.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise HvError(f"{debug.name} has no symbols")
            for entry in table.iter_symbols():
                place = self._section(entry["st_value"])
                # The linker's own symbols for debugging information have offsets, not addresses.
                if entry["st_shndx"] in loaded and place is not None and entry.name:
                    kind = entry["st_info"]["type"]
                    name = _PARTITIONED.sub("", entry.name)
                    symbols.append(Symbol(name, entry["st_value"], entry["st_size"], kind, place.executable))
            for relocations in elf.iter_sections():
                if isinstance(relocations, RelocationSection) and relocations.name in (".rela.text", ".rela.data"):
                    for relocation in relocations.iter_relocations():
                        if relocation["r_info_type"] == _R_X86_64_64:
                            symbol = table.get_symbol(relocation["r_info_sym"])
                            self.pointers[relocation["r_offset"]] = symbol["st_value"] + relocation["r_addend"]
        self.symbols = sorted(symbols, key=lambda symbol: (symbol.address, not symbol.is_code, -symbol.size))
        self._addresses = [symbol.address for symbol in self.symbols]
        self._by_name = {symbol.name: symbol for symbol in reversed(self.symbols)}

    def _section(self, address: int) -> Section | None:
        return next((section for section in self.sections if section.holds(address)), None)

    def named(self, name: str) -> Symbol:
        """The symbol with a name."""
        if name not in self._by_name:
            raise HvError(f"the image has no symbol {name}")
        return self._by_name[name]

    def code_at(self, address: int) -> Symbol | None:
        """The function or label that begins at an address."""
        for symbol in self._at(address):
            if symbol.is_code:
                return symbol
        return None

    def _at(self, address: int) -> Iterator[Symbol]:
        index = bisect.bisect_left(self._addresses, address)
        while index < len(self.symbols) and self.symbols[index].address == address:
            yield self.symbols[index]
            index += 1

    def object_at(self, address: int) -> Symbol | None:
        """The symbol that an address belongs to; one without a size goes on to the next symbol."""
        index = bisect.bisect_right(self._addresses, address) - 1
        while index >= 0:
            symbol = self.symbols[index]
            if address < symbol.address + symbol.size or symbol.size == 0:
                return symbol
            if self._section(symbol.address) is not self._section(address):
                return None
            index -= 1
        return None

    def extent(self, symbol: Symbol) -> range:
        """The addresses of an object."""
        if symbol.size:
            return range(symbol.address, symbol.address + symbol.size)
        section = self._section(symbol.address)
        assert section is not None
        index = bisect.bisect_right(self._addresses, symbol.address)
        end = section.address + len(section.data)
        return range(symbol.address, min(end, self._addresses[index]) if index < len(self._addresses) else end)

    def instruction(self, address: int) -> Instruction:
        """The instruction at an address.

        Raises:
            HvError: there is no code.
        """
        section = self._section(address)
        if section is None or not section.executable:
            raise HvError(f"{address:#x} is not in the code")
        start = address - section.address
        instruction = Decoder(64, section.data[start : start + 15], ip=address).decode()
        if instruction.is_invalid:
            raise HvError(f"{address:#x}: {section.data[start : start + 15].hex()} is no instruction")
        return instruction

    def routine(self, start: Symbol) -> Routine:
        """The code of a function, and where it leads.

        A compiled function has a size and its code no gaps. An assembly routine has neither, so its control flow is
        followed instead, which does not run into data.
        """
        routine = Routine(start)
        if start.kind == "STT_FUNC" and start.size:
            address, end = start.address, start.address + start.size
            while address < end:
                instruction = self.instruction(address)
                routine.code.append(instruction)
                address += instruction.len
            if address != end:
                raise HvError(f"the last instruction of {start.name} goes on behind it")
        else:
            self._follow(routine)
        inside = {instruction.ip for instruction in routine.code}
        for instruction in routine.code:
            self._note(routine, instruction, inside)
        return routine

    def _follow(self, routine: Routine) -> None:
        waiting, seen = deque([routine.symbol.address]), set[int]()
        while waiting:
            address = waiting.popleft()
            while address not in seen:
                seen.add(address)
                instruction = self.instruction(address)
                routine.code.append(instruction)
                flow = instruction.flow_control
                if flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
                    symbol = self.code_at(instruction.near_branch_target)
                    if symbol is None or symbol.kind != "STT_FUNC":
                        waiting.append(instruction.near_branch_target)
                if flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.RETURN):
                    break
                if instruction.mnemonic == Mnemonic.UD2:
                    break
                address += instruction.len
        routine.code.sort(key=lambda instruction: instruction.ip)

    def _note(self, routine: Routine, instruction: Instruction, inside: set[int]) -> None:
        if instruction.op_count and instruction.op0_kind == OpKind.NEAR_BRANCH64:
            if instruction.near_branch_target not in inside:
                routine.callees.add(instruction.near_branch_target)
        elif instruction.flow_control in (FlowControl.INDIRECT_CALL, FlowControl.INDIRECT_BRANCH):
            routine.indirect.append(instruction.ip)
        named = []
        if instruction.is_ip_rel_memory_operand:
            named.append(instruction.ip_rel_memory_address)
        # An address can also stand in the code as a 64-bit immediate.
        named += [
            self.pointers[at] for at in range(instruction.ip, instruction.ip + instruction.len) if at in self.pointers
        ]
        for address in named:
            if self.code_at(address) is not None:
                routine.callees.add(address)
                continue
            symbol = self.object_at(address)
            if symbol is not None:
                routine.objects.add(symbol.name)
                routine.callees |= self.code_in(symbol)

    def code_in(self, table: Symbol) -> set[int]:
        """The functions that an object has pointers to."""
        extent = self.extent(table)
        targets = {target for at, target in self.pointers.items() if at in extent}
        return {target for target in targets if self.code_at(target) is not None}

    def reach(self, starts: list[Symbol]) -> dict[int, tuple[Routine, int | None]]:
        """All routines that control can come to, by address, with who led there first.

        Args:
            starts: where control comes from outside.
        """
        found: dict[int, tuple[Routine, int | None]] = {}
        waiting: deque[tuple[int, int | None]] = deque((symbol.address, None) for symbol in starts)
        while waiting:
            address, caller = waiting.popleft()
            if address in found:
                continue
            symbol = self.code_at(address)
            if symbol is None:
                # The middle of a function, where a part that the compiler split off jumps back to.
                symbol = self.object_at(address)
                if symbol is None or not symbol.is_code or symbol.kind != "STT_FUNC":
                    raise HvError(f"{address:#x} has no name, but control comes there from {caller or 0:#x}")
                if symbol.address in found:
                    continue
                address = symbol.address
            routine = self.routine(symbol)
            found[address] = (routine, caller)
            waiting.extend((callee, address) for callee in sorted(routine.callees))
        return found

    def sources(self) -> dict[int, set[tuple[str, str]]]:
        """What each compiled function is made of: (function, source file) of itself and of all that was inlined."""
        made: dict[int, set[tuple[str, str]]] = {}
        with self._debug.open("rb") as file:
            # The file is linked: relocating it again would change nothing and takes seconds.
            information = ELFFile(file).get_dwarf_info(relocate_dwarf_sections=False)
            for unit in information.iter_CUs():
                for die in unit.iter_DIEs():
                    if die.tag == "DW_TAG_subprogram" and "DW_AT_low_pc" in die.attributes:
                        made.setdefault(die.attributes["DW_AT_low_pc"].value, set()).update(_parts(die))
        return made

    def path(self, found: dict[int, tuple[Routine, int | None]], address: int) -> str:
        """How control comes to a routine, in names."""
        names: list[str] = []
        at: int | None = address
        while at is not None:
            routine, at = found[at]
            names.append(routine.symbol.name)
        return " <- ".join(names)

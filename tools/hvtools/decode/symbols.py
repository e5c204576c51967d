# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Addresses of the hypervisor as function and file:line, from HvDxe.debug."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.dwarf.lineprogram import LineProgram
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from hvtools.errors import UsageError

# What link-time optimization appends to a static object that several of its partitions use.
_PARTITIONED = re.compile(r"\.lto_priv\.\d+$")


class Symbols:
    """The functions and lines of a build, by addresses from the image's base."""

    def __init__(self, debug: Path) -> None:
        """Reads a .debug file.

        Raises:
            UsageError: it is none.
        """
        try:
            with debug.open("rb") as file:
                elf = ELFFile(file)
                self._functions = sorted(_functions(elf))
                # The file is linked: relocating it again would change nothing and takes seconds.
                # Of several rows for an address the last one counts, and an end never.
                self._lines = sorted(_lines(elf), key=lambda row: (row[0], row[1] != ""))
                self._starts = [address for address, _ in self._lines]
        except OSError as error:
            raise UsageError(f"{debug} cannot be read: {error.strerror}") from error
        except Exception as error:  # on a damaged file the library fails in any way, by an assertion too
            reason = str(error) or type(error).__name__
            raise UsageError(f"{debug} is not a .debug file with symbols: {reason}") from error

    def name(self, address: int) -> str:
        """Give an address as `Function+offset (file:line)`; empty where there is no code."""
        index = bisect.bisect_right(self._functions, (address, "\U0010ffff", 0)) - 1
        if index < 0:
            return ""
        start, name, size = self._functions[index]
        if size and address >= start + size:
            return ""
        line = bisect.bisect_right(self._starts, address) - 1
        where = self._lines[line][1] if line >= 0 else ""
        return f"{name}+{address - start:#x}" + (f" ({where})" if where else "")


def _functions(elf: ELFFile) -> Iterator[tuple[int, str, int]]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise ELFError("no symbol table")
    code = {index for index, section in enumerate(elf.iter_sections()) if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR}
    for symbol in table.iter_symbols():
        kind = symbol["st_info"]["type"]
        if symbol["st_shndx"] in code and symbol.name and kind in ("STT_FUNC", "STT_NOTYPE"):
            yield symbol["st_value"], _PARTITIONED.sub("", symbol.name), symbol["st_size"]


def _lines(elf: ELFFile) -> Iterator[tuple[int, str]]:
    """The first address of each line, and of each end of a sequence, which has none."""
    if not elf.has_dwarf_info():
        return
    information = elf.get_dwarf_info(relocate_dwarf_sections=False)
    for unit in information.iter_CUs():
        program = information.line_program_for_CU(unit)
        if program is None:
            continue
        names = _files(program)
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                yield state.address, "" if state.end_sequence else f"{names.get(state.file, '?')}:{state.line}"


def _files(program: LineProgram) -> dict[int, str]:
    """The source files of a unit by number, from the package's folder on."""
    header = program.header
    first = 0 if header.version >= 5 else 1
    folders = [
        folder.decode(errors="replace") if isinstance(folder, bytes) else str(folder) for folder in _folders(header)
    ]
    found = {}
    for number, entry in enumerate(header.file_entry, first):
        name = entry.name.decode(errors="replace")
        index = entry.dir_index - (0 if header.version >= 5 else 1)
        path = f"{folders[index]}/{name}" if 0 <= index < len(folders) and not name.startswith("/") else name
        found[number] = "HvPkg/" + path.rpartition("/HvPkg/")[2] if "/HvPkg/" in path else path
    return found


def _folders(header: object) -> list[bytes]:
    return list(getattr(header, "include_directory", []))

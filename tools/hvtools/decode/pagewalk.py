# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Page walks: over a dump of physical memory, and what is wrong with an entry (SDM volume 3, 4.3 to 4.5; APM2 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hvtools.generated import cpuid, msr
from hvtools.machines.memory import Dump, NoMemoryError

PRESENT, WRITE, USER, LARGE, NX = 1, 2, 4, 1 << 7, 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000
_PAE_RESERVED = 0x1E6 | NX  # in a PDPTE of PAE paging (SDM volume 3, table 4-8)
_WIDTH_MIN = 36  # no processor with long mode has a smaller physical address width
_NAMES = {5: "PML5E", 4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}
_PG, _PAE, _PSE, _LA57 = (cpuid.CONSTANTS[f"HV_{name}"] for name in ("CR0_PG", "CR4_PAE", "CR4_PSE", "CR4_LA57"))
_LMA, _NXE = (msr.CONSTANTS[f"HV_EFER_{name}"] for name in ("LMA", "NXE"))


class Physical(Protocol):
    """Physical memory, or a part of it."""

    def read(self, address: int, size: int) -> bytes | None:
        """Give bytes at a physical address; None for what is not there."""


class Memory:
    """A memory dump."""

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            UsageError: it is none.
        """
        self._dump = Dump(path)

    def read(self, address: int, size: int) -> bytes | None:
        """Give bytes at a physical address, None if they are not in the dump."""
        try:
            return self._dump.read(address, size)
        except NoMemoryError:
            return None


@dataclass(frozen=True)
class Step:
    """One entry of a walk."""

    level: int
    where: int
    entry: int

    def text(self) -> tuple[str, str, str, str]:
        """Give the entry for people: name, its address, value, flags."""
        flags = [name for bit, name in ((WRITE, "writable"), (USER, "user"), (NX, "no execute")) if self.entry & bit]
        if self.level > 1 and self.entry & LARGE:
            flags.append("large page")
        shown = ", ".join(flags or ["read-only, supervisor"]) if self.entry & PRESENT else "not present"
        return _NAMES[self.level], f"{self.where:#x}", f"{self.entry:#x}", shown


@dataclass(frozen=True)
class Walk:
    """How an address is translated.

    Attributes:
        steps: The entries, from the top.
        physical: The result; None when there is none.
        why: What ended the walk without a result.
    """

    steps: list[Step]
    physical: int | None
    why: str = ""


def walk(memory: Physical, registers: dict[str, int], address: int) -> Walk:
    """Translate a linear address.

    Args:
        memory: Physical memory.
        registers: cr0, cr3, cr4 and efer.
        address: The linear address.
    """
    cr0, cr3, cr4, efer = (registers.get(name, 0) for name in ("cr0", "cr3", "cr4", "efer"))
    if not cr0 & _PG:
        return Walk([], address)
    if not cr4 & _PAE:
        return _walk_32(memory, cr3, bool(cr4 & _PSE), address & 0xFFFF_FFFF)
    steps: list[Step] = []
    levels = (5 if cr4 & _LA57 else 4) if efer & _LMA else 3
    table = cr3 & (_ADDRESS if levels > 3 else 0xFFFF_FFE0)
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        where = table + (address >> shift & 0x1FF) * 8
        if why := _look(memory, steps, level, where, 8):
            return Walk(steps, None, why)
        entry = steps[-1].entry
        if levels == level == 3:
            wrong = ["reserved bits are set"] * bool(entry & _PAE_RESERVED)
        else:
            wrong = reserved_bits(entry, level, nx=bool(efer & _NXE))
        if wrong:
            return Walk(steps, None, f"the {_NAMES[level]}: {'; '.join(wrong)}")
        if level == 1 or entry & LARGE and (level == 2 or level == 3 and levels > 3):
            page = (1 << shift) - 1
            return Walk(steps, (entry & _ADDRESS & ~page) | (address & page))
        table = entry & _ADDRESS
    raise AssertionError("level 1 ends every walk")


def _look(memory: Physical, steps: list[Step], level: int, where: int, size: int) -> str:
    """Take the next step of a walk; say why it is the last one, if it is."""
    data = memory.read(where, size)
    if data is None:
        return f"the {_NAMES[level]} at {where:#x} is not in the dump"
    steps.append(Step(level, where, int.from_bytes(data, "little")))
    return "" if steps[-1].entry & PRESENT else f"the {_NAMES[level]} is not present"


def _walk_32(memory: Physical, cr3: int, large: bool, address: int) -> Walk:
    steps: list[Step] = []
    table = cr3 & 0xFFFF_F000
    for level, shift in ((2, 22), (1, 12)):
        where = table + (address >> shift & 0x3FF) * 4
        if why := _look(memory, steps, level, where, 4):
            return Walk(steps, None, why)
        entry = steps[-1].entry
        if level == 2 and large and entry & LARGE:
            return Walk(steps, (entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000 | address & 0x3F_FFFF)
        table = entry & 0xFFFF_F000
    return Walk(steps, table | address & 0xFFF)


def reserved_bits(entry: int, level: int, nx: bool = True) -> list[str]:
    """Say which bits of a present entry of 64 bits are reserved on any processor.

    Args:
        entry: The entry.
        level: 1 for a PTE, 4 for a PML4E.
        nx: EFER.NXE is set, so that bit 63 is not reserved.
    """
    found = []
    if level >= 4 and entry & LARGE:
        found.append(f"level {level} entry has bit 7 set, which is reserved there")
    if level in (2, 3) and entry & LARGE:
        low = entry & (1 << 12 + 9 * (level - 1)) - 1 & ~0x1FFF  # bit 12 is PAT
        if low:
            found.append(f"level {level} entry maps a large page, but has address bits {_bits(low)} set")
    if entry & NX and not nx:
        found.append(f"level {level} entry has bit 63 (no execute) set while EFER.NXE = 0")
    return found


def perhaps_reserved(entry: int, level: int) -> list[str]:
    """Say which bits of a present entry are reserved on some processors, or with some settings."""
    found = []
    if level == 3 and entry & LARGE:
        found.append("level 3 entry has bit 7 set, guest has no pdpe1gb")
    width = (entry & _ADDRESS).bit_length()
    if width > _WIDTH_MIN:
        found.append(f"level {level} entry has bit {width - 1} set, guest has fewer than {width} physical address bits")
    if entry & NX:
        found.append(f"level {level} entry has bit 63 (no execute) set, guest has EFER.NXE = 0")
    return found


def _bits(value: int) -> str:
    return ", ".join(str(bit) for bit in range(value.bit_length()) if value >> bit & 1)

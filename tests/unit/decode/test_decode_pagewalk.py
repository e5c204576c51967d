# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Page walks over memory that is made here: every paging mode, every size of page, every way to end."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hvtools.decode import pagewalk
from hvtools.decode.cpu import Processor, Segment
from hvtools.decode.pagewalk import Walk, perhaps_reserved, reserved_bits, walk

LONG = {"cr0": 1 << 31 | 1, "cr3": 0x1000, "cr4": 1 << 5, "efer": 1 << 8 | 1 << 10 | 1 << 11}
LA57 = LONG | {"cr4": 1 << 5 | 1 << 12}
PAE = {"cr0": 1 << 31 | 1, "cr3": 0x1020, "cr4": 1 << 5, "efer": 0}
OLD = {"cr0": 1 << 31 | 1, "cr3": 0x1000, "cr4": 1 << 4, "efer": 0}
NX = 1 << 63


@dataclass
class Memory:
    """Some words of physical memory; what is not there cannot be read."""

    words: dict[int, int] = field(default_factory=dict)

    def read(self, address: int, size: int) -> bytes | None:
        return self.words[address].to_bytes(8, "little")[:size] if address in self.words else None


def entries(result: Walk) -> list[tuple[int, int]]:
    return [(step.level, step.where) for step in result.steps]


def test_four_levels_to_a_small_page() -> None:
    address = 0xFFFF_8123_4567_89AB
    memory = Memory(
        {
            0x1000 + (address >> 39 & 511) * 8: 0x2003,
            0x2000 + (address >> 30 & 511) * 8: 0x3003,
            0x3000 + (address >> 21 & 511) * 8: 0x4003,
            0x4000 + (address >> 12 & 511) * 8: 0x7654_3000 | 3 | NX,
        }
    )
    result = walk(memory, LONG, address)
    assert result.physical == 0x7654_39AB and [level for level, _ in entries(result)] == [4, 3, 2, 1]
    assert result.steps[-1].text()[3] == "writable, no execute"
    without = walk(memory, LONG | {"efer": 1 << 10}, address)
    assert without.physical is None and "bit 63 (no execute) set while EFER.NXE = 0" in without.why


@pytest.mark.parametrize(
    ("level", "entry", "physical"),
    [(3, 0x4000_0083, 0x4000_0000 | 0x2523_4567), (2, 0x0060_0083, 0x0060_0000 | 0x0003_4567)],
)
def test_large_pages(level: int, entry: int, physical: int) -> None:
    address = 0x2523_4567
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000 + (address >> 21) * 8: entry}
    if level == 3:
        words[0x2000] = entry
    result = walk(Memory(words), LONG, address)
    assert result.physical == physical and result.steps[-1].level == level
    assert "large page" in result.steps[-1].text()[3]


def test_five_levels() -> None:
    memory = Memory({0x1000 + 8: 0x2003, 0x2000: 0x3003, 0x3000: 0x83})
    assert walk(memory, LA57, 1 << 48 | 0x1234).physical == 0x1234


def test_pae_has_four_entries_at_the_top_and_none_of_them_is_large() -> None:
    memory = Memory({0x1020 + 3 * 8: 0x2001, 0x2000: 0x0020_0083})
    assert walk(memory, PAE, 0xC000_0123).physical == 0x0020_0123
    memory.words[0x1020 + 3 * 8] = 0x2081
    result = walk(memory, PAE, 0xC000_0123)
    assert entries(result) == [(3, 0x1038)] and result.why == "the PDPTE: reserved bits are set"


def test_32_bit_tables() -> None:
    memory = Memory({0x1000 + 4: 0x0040_0083, 0x1000 + 8: 0x3003, 0x3000 + 4: 0x9001})
    assert walk(memory, OLD, 0x0040_0321).physical == 0x0040_0321
    assert walk(memory, OLD, 0x0080_1321).physical == 0x9321
    assert walk(memory, OLD | {"cr4": 0}, 0x0040_0321).physical is None, "no PSE: an entry of a table"


def test_without_paging_an_address_is_itself() -> None:
    assert walk(Memory(), LONG | {"cr0": 1}, 0x1234) == Walk([], 0x1234)


def test_what_ends_a_walk_is_named() -> None:
    assert walk(Memory(), LONG, 0).why == "the PML4E at 0x1000 is not in the dump"
    assert walk(Memory({0x1000: 0x2003, 0x2000: 0}), LONG, 0).why == "the PDPTE is not present"
    assert "PML4E: level 4 entry has bit 7 set" in walk(Memory({0x1000: 0x2083}), LONG, 0).why


@pytest.mark.parametrize(
    ("entry", "level", "said"),
    [
        (0x83, 4, "level 4 entry has bit 7 set, which is reserved there"),
        (0x83 | 1 << 13 | 1 << 20, 2, "level 2 entry maps a large page, but has address bits 13, 20 set"),
        (0x83 | 1 << 29, 3, "level 3 entry maps a large page, but has address bits 29 set"),
    ],
)
def test_bits_that_are_reserved_everywhere(entry: int, level: int, said: str) -> None:
    assert reserved_bits(entry, level) == [said]


@pytest.mark.parametrize(
    ("entry", "level"), [(0x83, 2), (0x83 | 1 << 12, 3), (0x3 | 1 << 45, 4), (0xE7, 1), (3 | NX, 1)]
)
def test_bits_that_are_not(entry: int, level: int) -> None:
    assert reserved_bits(entry, level) == []


@pytest.mark.parametrize(
    ("entry", "level", "said"),
    [
        (0x83, 3, "level 3 entry has bit 7 set, guest has no pdpe1gb"),
        (1 << 39 | 3, 1, "level 1 entry has bit 39 set, guest has fewer than 40 physical address bits"),
        (3 | NX, 1, "level 1 entry has bit 63 (no execute) set, guest has EFER.NXE = 0"),
    ],
)
def test_bits_that_are_reserved_for_some(entry: int, level: int, said: str) -> None:
    assert perhaps_reserved(entry, level) == [said]


def test_the_code_of_a_dump_comes_from_memory() -> None:
    memory = Memory({0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x83})

    class Ram:
        def read(self, address: int, size: int) -> bytes | None:
            return b"\x0f\xa2".ljust(size, b"\x90") if address == 0x1234 else memory.read(address, size)

    cpu = Processor(values=LONG | {"rip": 0x1234}, segments={"cs": Segment(8, 0, 0, long=True)})
    cpu.fetch(Ram())
    assert cpu.instruction() == "cpuid (0f a2)"
    assert [table.title for table in cpu.tables(Ram())][-1] == "processor: page walk for RIP 0x1234"


def test_a_memory_dump_ends_where_its_file_ends(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(range(16)))
    memory = pagewalk.Memory(file)
    assert memory.read(8, 8) == bytes(range(8, 16))
    assert memory.read(9, 8) is None and memory.read(1 << 60, 8) is None


def test_an_elf_dump_is_read_by_its_physical_addresses(tmp_path: Path) -> None:
    """As `hv log --save` makes it."""
    header = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 0, 120, 0, 0x100000, 16, 16, 0)
    file = tmp_path / "memory.elf"
    file.write_bytes(header + segment + bytes(range(16)))
    memory = pagewalk.Memory(file)
    assert memory.read(0x100008, 8) == bytes(range(8, 16))
    assert memory.read(8, 8) is None and memory.read(-8, 8) is None

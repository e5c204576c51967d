# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What GDB's commands print, as functions of bytes. Standard library only: GDB's Python loads it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from hvtools.decode.words import exit_name
from hvtools.generated import vmcb, vmcs

_ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51:12 of an entry
_LARGE = 1 << 7

NPT_BITS = ((0, "P"), (1, "RW"), (2, "US"), (3, "PWT"), (4, "PCD"), (5, "A"), (6, "D"), (7, "PS"), (63, "NX"))
EPT_BITS = ((0, "R"), (1, "W"), (2, "X"), (6, "IPAT"), (7, "PS"), (8, "A"), (9, "D"))
_EPT_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}


def words_of(word: str, value: int) -> str:
    """Name the bits of a VMCB word that are set; empty where the table has no names."""
    parts = []
    for name, low, high in vmcb.WORDS.get(word, ()):
        field = value >> low & (1 << high - low + 1) - 1
        if field:
            parts.append(name if low == high else f"{name}={field:#x}")
    return " ".join(parts)


# Which named words the fields of the control area hold.
_FIELD_WORDS = {
    "Intercept3": "HV_SVM_INTERCEPT3",
    "Intercept4": "HV_SVM_INTERCEPT4",
    "Intercept5": "HV_SVM_INTERCEPT5",
    "VIntr": "HV_SVM_VINTR",
    "InterruptShadow": "HV_SVM_SHADOW",
    "NestedControl": "HV_SVM_NP",
    "EventInj": "HV_SVM_EVENT",
    "ExitIntInfo": "HV_SVM_EVENT",
}


def control(page: bytes, name: str) -> int:
    """Give a field of a VMCB's control area."""
    offset, code = next((place, kind) for path, place, kind, _ in vmcb.LAYOUT["HV_VMCB"] if path == f"Control.{name}")
    return int(struct.unpack_from(f"<{code}", page, offset)[0])


def vmcb_lines(page: bytes, everything: bool = False) -> Iterator[str]:
    """Print a VMCB by field.

    Args:
        page: its 4 KiB.
        everything: fields that are 0, too.
    """
    for path, offset, code, count in vmcb.LAYOUT["HV_VMCB"]:
        size = struct.calcsize(code)
        name = path.rpartition(".")[2]
        for number, value in enumerate(struct.unpack_from(f"<{count}{code}", page, offset)):
            if value or everything:
                shown = f"{path}[{number}]" if count > 1 else path
                note = exit_name("svm", value) if name == "ExitCode" else words_of(_FIELD_WORDS.get(name, ""), value)
                yield f"{offset + number * size:03x} {shown:<28} {value:#018x}  {note}".rstrip()


# A VMCS is the processor's own business (SDM 25.2); this is Bochs' (vmcs.cc, 3.0): behind 16 bytes the fields by width,
# type and index, 4 bytes for each encoding.
BOCHS_REVISION = 0x2B
_BOCHS_FIELDS = 0x10
_BOCHS_COUNTS = (0x20, 0x50, 0x30, 0x30)
_WIDTH_BYTES = (2, 8, 4, 8)
_ACCESS_RIGHTS = range(0x4814, 0x4824)  # encodings of the guest's segments; Bochs keeps them rotated


_ENCODINGS = {name: encoding for encoding, (name, _, _) in vmcs.FIELDS.items()}


def vmcs_field(page: bytes, name: str) -> int:
    """Give a field of a VMCS of Bochs'.

    Args:
        page: its 4 KiB.
        name: of the field.
    """
    encoding = _ENCODINGS[name]
    width, kind, index = encoding >> 13 & 3, encoding >> 10 & 3, encoding & 0x3FF
    place = _BOCHS_FIELDS + 4 * (4 * sum(_BOCHS_COUNTS[:width]) + kind * _BOCHS_COUNTS[width] + index)
    value = int.from_bytes(page[place : place + _WIDTH_BYTES[width]], "little")
    return (value >> 8 | value << 24) & 0xFFFF_FFFF if encoding in _ACCESS_RIGHTS else value


def vmcs_lines(page: bytes, everything: bool = False) -> Iterator[str]:
    """Print a VMCS of Bochs' by field.

    Args:
        page: its 4 KiB.
        everything: fields that are 0, too.
    """
    for encoding, (name, _, _) in vmcs.FIELDS.items():
        value = vmcs_field(page, name)
        if value or everything:
            note = exit_name("vmx", value) if name == "EXIT_REASON" else ""
            yield f"{encoding:04x} {name:<32} {value:#018x}  {note}".rstrip()


def flags(entry: int, ept: bool) -> str:
    """Name what an entry of nested tables allows."""
    parts = [name for bit, name in (EPT_BITS if ept else NPT_BITS) if entry >> bit & 1]
    if ept and entry & _LARGE:
        parts.append(_EPT_TYPES.get(entry >> 3 & 7, f"type {entry >> 3 & 7}"))
    return " ".join(parts) or "not present"


def walk_lines(read: Callable[[int], int], root: int, levels: int, ept: bool, address: int) -> Iterator[str]:
    """Walk nested tables (APM2 15.25, SDM 30.3.2).

    Args:
        read: gives the 8 bytes at a physical address.
        root: address of the top table.
        levels: 4 or 5.
        ept: the entries are EPT's.
        address: guest-physical address.
    """
    yield f"{'EPT' if ept else 'NPT'} walk of {address:#x}:"
    table = root
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        place = table + 8 * (address >> shift & 0x1FF)
        entry = read(place)
        yield f"  level {level} entry at {place:#x}: {entry:#018x}  {flags(entry, ept and bool(entry & 7))}"
        if not entry & (7 if ept else 1):
            yield f"  not mapped: a hole of {1 << shift:#x} bytes"
            return
        if level == 1 or (level <= 3 and entry & _LARGE):
            inside = (1 << shift) - 1
            yield f"  host address {entry & _ADDRESS & ~inside | address & inside:#x}, page of {inside + 1:#x} bytes"
            return
        table = entry & _ADDRESS

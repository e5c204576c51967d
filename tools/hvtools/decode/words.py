# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Numbers of the hardware in words, by the generated tables. Standard library only: GDB's Python loads it."""

from __future__ import annotations

from collections.abc import Sequence

from hvtools.generated import cpuid, msr, svm_exit, vmcb, vmcs, vmx_controls, vmx_exit

Fields = Sequence[tuple[str, int, int]]
WORDS: dict[str, Fields] = {
    **cpuid.WORDS,
    **msr.WORDS,
    **vmcb.WORDS,
    **vmcs.WORDS,
    **vmx_controls.WORDS,
    **vmx_exit.WORDS,
}
"""Fields of words by the prefix of their constants: (name, lowest bit, highest bit)."""

VECTORS = {
    value: f"#{name.removeprefix('HV_VECTOR_')}"
    for name, value in cpuid.CONSTANTS.items()
    if name.startswith("HV_VECTOR_")
}
_ERRORS = {
    value: name.removeprefix("HV_VMX_ERROR_").replace("_", " ").lower()
    for name, value in vmx_exit.CONSTANTS.items()
    if name.startswith("HV_VMX_ERROR_")
}
"""VM-instruction errors (SDM 31.4)."""

PAGE_FAULT: Fields = (
    ("present", 0, 0),
    ("write", 1, 1),
    ("user", 2, 2),
    ("reserved bit", 3, 3),
    ("fetch", 4, 4),
    ("protection key", 5, 5),
    ("shadow stack", 6, 6),
    ("SGX", 15, 15),
    ("RMP", 31, 31),
)
"""The error code of #PF (SDM volume 3, 4.7; APM2 8.4.2)."""


def fields(value: int, table: Fields) -> str:
    """Give a word as the names of its bits that are set, with the values of its wider fields, and what has no name."""
    found = []
    rest = value
    for name, low, high in table:
        mask = (1 << high - low + 1) - 1 << low
        part = (value & mask) >> low
        rest &= ~mask
        if part:
            found.append(name if low == high else f"{name}={part:#x}")
    bits = [str(bit) for bit in range(rest.bit_length()) if rest >> bit & 1]
    if bits:
        found.append(f"bit{'s' * (len(bits) > 1)} {' '.join(bits)}")
    return ", ".join(found)


def word(value: int, prefix: str) -> str:
    """Give a word of the tables by the prefix of its constants."""
    return fields(value, WORDS[prefix])


def vector(number: int) -> str:
    """Give the name of an exception."""
    return VECTORS.get(number, f"vector {number}")


def exit_name(vendor: str, code: int) -> str:
    """Give the name of an exit: a reason of VMX, or an exit code of SVM.

    Args:
        vendor: "vmx" or "svm".
        code: as the processor gave it.
    """
    if vendor == "vmx":
        name = vmx_exit.EXITS.get(code & vmx_exit.CONSTANTS["HV_VMX_REASON_BASIC_MASK"], "no such reason")
        failed = code & vmx_exit.CONSTANTS["HV_VMX_REASON_ENTRY_FAILURE"]
        return f"{name}, the entry failed" if failed else name
    if code >> 31 == 1:
        code |= 0xFFFF_FFFF << 32  # a negative one, of which QEMU stores 32 of the 64 bits
    return svm_exit.EXITS.get(code, "no such code")


def instruction_error(number: int) -> str:
    """Give the meaning of a VM-instruction error."""
    return _ERRORS.get(number, "no such VM-instruction error")


_QUALIFICATIONS = {
    "EPT_VIOLATION": "HV_EPT_VIOLATION",
    "CR_ACCESS": "HV_VMX_CR_EXIT",
    "IO": "HV_VMX_IO_EXIT",
    "TASK_SWITCH": "HV_VMX_TASK_EXIT",
}


def exit_details(vendor: str, code: int, info1: int, info2: int) -> str:
    """Give the qualification of an exit in words; empty where it has none.

    Args:
        vendor: "vmx" or "svm".
        code: the reason or exit code.
        info1: the exit qualification, or EXITINFO1.
        info2: EXITINFO2; nothing for VMX.
    """
    name = exit_name(vendor, code)
    if vendor == "vmx":
        return word(info1, _QUALIFICATIONS[name]) if name in _QUALIFICATIONS else ""
    if name == "NPF":
        return f"guest-physical {info2:#x}: {nested_error(info1)}"
    if name == "IOIO":
        return word(info1, "HV_SVM_IO_EXIT")
    if name == "EXCEPTION_14":
        return f"{page_fault(info1)}, address {info2:#x}"
    return ""


def nested_error(code: int) -> str:
    """Give the error code of a nested page fault (APM2 15.25.6) in words."""
    parts = [
        "write" if code & 2 else "fetch" if code & 16 else "read",
        "forbidden by the entry" if code & 1 else "not present",
    ]
    if code & 8:
        parts.append("a reserved bit is set in an entry")
    if code >> 33 & 1:
        parts.append("in the guest's own page walk")
    if code >> 32 & 1:
        parts.append("at the final address")
    return ", ".join(parts)


def page_fault(code: int) -> str:
    """Give the error code of #PF in words."""
    access = "write" if code & 2 else "fetch" if code & 16 else "read"
    return f"{access} {'of a present page' if code & 1 else 'where nothing is mapped'} [{fields(code, PAGE_FAULT)}]"


def canonical(address: int, bits: int = 48) -> bool:
    """Tell whether a linear address is canonical."""
    return address >> (bits - 1) in (0, (1 << 65 - bits) - 1)

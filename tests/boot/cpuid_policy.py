# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the table of CPUID says that the root sees in place of the processor's answers."""

from __future__ import annotations

from hvtools.generated import cpuid

REGISTERS = ("eax", "ebx", "ecx", "edx")
Answers = dict[tuple[int, int], tuple[int, ...]]
"""EAX, EBX, ECX, EDX by leaf and subleaf."""


def as_documented(leaf: int, subleaf: int, bare: Answers) -> tuple[int, ...]:
    """What the table says that the root sees in place of the processor's answer."""
    registers = dict(zip(REGISTERS, bare[leaf, subleaf], strict=True))
    if leaf > bare[leaf & 0x80000000, 0][0]:  # not there: as another leaf
        return tuple(registers.values())
    if leaf in cpuid.NO_LEAVES:
        return (0, 0, 0, 0)
    for number, own, register, _, low, high, policy in cpuid.BITS:
        mask = (1 << high + 1) - (1 << low)
        if number == leaf and own in (None, subleaf) and policy == "clear":
            registers[register] &= ~mask
        elif number == leaf and own in (None, subleaf) and policy == "set":
            registers[register] |= mask
    return tuple(registers.values())

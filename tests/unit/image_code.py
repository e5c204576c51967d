# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What host life's code must be like, as checks of a built image."""

import re
from functools import cache
from pathlib import Path

from iced_x86 import CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, Register

from hvtools import build
from hvtools.elf import Image, Routine, Symbol
from tests.unit import contexts

# Instruction set extensions whose instructions work on general registers, memory and system registers alone.
ALLOWED = {
    *("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CPUID", "MSR", "TSC", "RDTSCP"),
    *("PAUSE", "CX8", "CMPXCHG16B", "SVM", "SKINIT_OR_SVM", "VMX", "INVEPT", "INVVPID", "SMAP", "CLFSH"),
    *("INVPCID", "MULTIBYTENOP", "CET_IBT", "BMI1", "BMI2", "POPCNT", "LZCNT", "MOVBE"),
}
# Fences are listed under SSE and SSE2, but have no operand; XSETBV only writes XCR0.
ALLOWED_BY_NAME = {"LFENCE", "MFENCE", "SFENCE", "XSETBV"}
XSETBV_HOME = "HvHostXsetbvRaw"

UEFI_TABLES = ("gBS", "gRT", "gST", "gImageHandle")
STARTS = ("HvCoreStart", "HvCoreTrace", "HvCoreNoQuick", "HvCoreLaunch")
"""Where boot life hands over. The rest of host life begins in tables."""


def names_of(enumeration: object) -> dict[int, str]:
    """The names of an enumeration of iced-x86, by value."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_FEATURES = names_of(CpuidFeature)
_MNEMONICS = names_of(Mnemonic)
_REGISTERS = names_of(Register)
_VECTOR = re.compile(r"(ST\d|MM\d|[XYZT]MM\d+|K\d|BND\d)")
_FACTORY = InstructionInfoFactory()


def vector_state(instruction: Instruction) -> str | None:
    """What of the x87, MMX, SSE, AVX or mask state an instruction touches, or None."""
    mnemonic = _MNEMONICS[instruction.mnemonic]
    if mnemonic in ALLOWED_BY_NAME:
        return None
    for register in _FACTORY.info(instruction).used_registers():
        if _VECTOR.fullmatch(_REGISTERS[register.register]):
            return f"{mnemonic} ({_REGISTERS[register.register]})"
    foreign = {_FEATURES[feature] for feature in instruction.cpuid_features()} - ALLOWED
    return f"{mnemonic} ({', '.join(sorted(foreign))})" if foreign else None


def load(target: str) -> Image:
    """The built HvDxe."""
    folder = build.image_dir(target)
    return Image((folder / "HvDxe.efi").read_bytes(), folder / "HvDxe.debug")


def boot_members() -> set[int]:
    """Offsets of the entries of HV_BACKEND_OPS that its declaration gives to boot life."""
    text = (contexts.PACKAGE / "Include" / "Library" / "HvCoreLib.h").read_text()
    body = re.search(r"struct _HV_BACKEND_OPS \{(.*?)\n\};", text, re.S)
    assert body is not None
    offset, life, found = 0, "", set()
    for line in body[1].splitlines():
        if comment := re.match(r"\s*///.*?(\b(Boot|Host|Any)\.)?\s*$", line):
            life = comment[2] or life
        elif re.search(r"\(\*(\w+)\)", line):
            if life == "Boot":
                found.add(offset)
            offset += 8
        elif line.strip():
            assert re.search(r"\bCHAR8\s+\*\w+;|\bUINT32\s+\w+;", line), line
            offset += 8  # the UINT32 is padded to the pointer after it
    return found


def host_starts(image: Image) -> list[Symbol]:
    """Where control enters host life: the two calls of boot life, and each backend's table."""
    starts = [image.named(name) for name in STARTS]
    tables = [symbol for symbol in image.symbols if re.fullmatch(r"m\w+Ops", symbol.name)]
    assert tables, "no backend in the image"
    boot = boot_members()
    for table in tables:
        for at in image.extent(table):
            if at in image.pointers and at - table.address not in boot:
                entry = image.code_at(image.pointers[at])
                if entry is not None:
                    starts.append(entry)
    return starts


Reached = dict[int, tuple[Routine, int | None]]


def vector_complaints(image: Image, reached: Reached) -> list[str]:
    """The instructions of host life that touch vector state, and each XSETBV outside its place."""
    found = []
    home = {instruction.ip for instruction in image.routine(image.named(XSETBV_HOME)).code}
    for address, (routine, _) in reached.items():
        for instruction in routine.code:
            if touched := vector_state(instruction):
                found.append(f"{instruction.ip:#x} {touched} in {image.path(reached, address)}")
            if instruction.mnemonic == Mnemonic.XSETBV and instruction.ip not in home:
                found.append(f"{instruction.ip:#x} XSETBV in {image.path(reached, address)}")
    return found


@cache
def boot_functions() -> frozenset[str]:
    """The functions that say that they are boot life's."""
    return frozenset(name for name, context in contexts.contexts().items() if context == "Boot")


def boot_complaints(image: Image, reached: Reached, sources: dict[int, set[tuple[str, str]]]) -> list[str]:
    """What of boot life host life comes to: the firmware's tables, functions of boot life, also inlined ones."""
    found = []
    for address, (routine, _) in reached.items():
        path = image.path(reached, address)
        found += [f"{name} in {path}" for name in sorted(routine.objects & set(UEFI_TABLES))]
        own = {(routine.symbol.name.split(".")[0], "")}
        for name, source in sorted(sources.get(address, set()) | own):
            if name in boot_functions() or "HvDxe" in Path(source).parts:
                found.append(f"{name} in {path}")
    return found

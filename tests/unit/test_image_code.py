# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Host life in the built image: no vector state, and nothing of the firmware."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, Mnemonic

from hvtools import build
from hvtools.elf import Image, Symbol
from hvtools.generated import exits
from tests.unit import image_code
from tests.unit.image_code import Reached


@dataclass(frozen=True)
class Built:
    """An image, and what host life reaches in it."""

    image: Image
    efi: bytes
    debug: Path
    reached: Reached

    def routine(self, name: str) -> Symbol:
        """A routine of host life."""
        found = [routine.symbol for routine, _ in self.reached.values() if routine.symbol.name == name]
        assert len(found) == 1, f"{name} is no part of host life"
        return found[0]


@pytest.fixture(scope="module", params=build.TARGETS)
def built(request: pytest.FixtureRequest) -> Built:
    """The image of each target, built if it is not, or not of these sources."""
    folder = build.ensure_built(request.param).folder
    image = image_code.load(request.param)
    efi, debug = (folder / "HvDxe.efi").read_bytes(), folder / "HvDxe.debug"
    return Built(image, efi, debug, image.reach(image_code.host_starts(image)))


def mutated(built: Built, address: int, code: bytes) -> Image:
    """A copy of the image with other bytes at one place of its code."""
    at = built.efi.index(next(section.data for section in built.image.sections if section.name == ".text"))
    text = next(section for section in built.image.sections if section.name == ".text")
    offset = at + address - text.address
    return Image(built.efi[:offset] + code + built.efi[offset + len(code) :], built.debug)


def test_the_symbols_belong_to_the_image(built: Built) -> None:
    with built.debug.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        assert text is not None
        code = next(section for section in built.image.sections if section.name == ".text")
        assert code.address == text["sh_addr"]
        assert code.data[: text["sh_size"]] == text.data()


def test_host_life_is_found(built: Built) -> None:
    """Not a check of nothing: every handler, every stub, the world switch and the fixups are in what is checked."""
    names = {routine.symbol.name for routine, _ in built.reached.values()}
    image = built.image
    for table, count in (("mHandlers", len(exits.KINDS)), ("HvHostVectors", 256), ("HvHostFixups", 8)):
        symbol = image.named(table)
        pointers = [target for at, target in image.pointers.items() if at in image.extent(symbol)]
        assert len(pointers) == count, table
        assert set(pointers) <= set(built.reached), table
    assert {"HvHostException", "HvSvmSwitch", "HvHostXsetbvRaw", "HvLogEvent", "HvHostJump", "HvCoreReadGuest"} <= names
    assert "TracedEnter" in names, "the trace is host life, too"
    assert sum(len(routine.code) for routine, _ in built.reached.values()) > 5000


def test_boot_life_is_not_taken_for_host_life(built: Built) -> None:
    assert image_code.boot_members() == {0x18, 0x20}
    names = {routine.symbol.name for routine, _ in built.reached.values()}
    assert not names & {"HvDxeEntry", "HvDxeUnload", "SvmProbe", "SvmVmInit", "HvMemoryBuild", "_ModuleEntryPoint"}


def test_host_life_leaves_vector_state_alone(built: Built) -> None:
    assert image_code.vector_complaints(built.image, built.reached) == []


def test_xsetbv_is_where_it_is_meant_to_be(built: Built) -> None:
    found = {
        instruction.ip
        for routine, _ in built.reached.values()
        for instruction in routine.code
        if instruction.mnemonic == Mnemonic.XSETBV
    }
    assert found == {built.image.named("FaultXsetbv").address}


# Each is put over the first bytes of a routine of host life.
VECTOR_CODE = {
    "movaps xmm0, xmm1": "0f28c1",
    "movd mm0, eax": "0f6ec0",
    "fld1": "d9e8",
    "fninit": "dbe3",
    "emms": "0f77",
    "fxsave [rax]": "0fae00",
    "xsave [rax]": "0fae20",
    "xsaves [rax]": "0fc728",
    "ldmxcsr [rax]": "0fae10",
    "vzeroupper": "c5f877",
    "vaddps zmm0, zmm1, zmm2": "62f1744858c2",
    "kmovw k1, eax": "c5f892c8",
    "movnti [rax], ecx": "0fc308",
    "cvtsi2sd xmm0, rax": "f2480f2ac0",
    "tilezero tmm0": "c4e27b49c0",
}


@pytest.mark.parametrize("name", VECTOR_CODE)
def test_the_checker_knows_vector_code(name: str) -> None:
    code = bytes.fromhex(VECTOR_CODE[name])
    instruction = Decoder(64, code).decode()
    assert instruction.len == len(code)
    assert image_code.vector_state(instruction), name


@pytest.mark.parametrize("code", ["0faee8", "0faef0", "f390", "0fa2", "0f01d8", "480fc8", "f0480fb111"])
def test_the_checker_does_not_cry_wolf(code: str) -> None:
    """LFENCE, MFENCE, PAUSE, CPUID, VMRUN, BSWAP and LOCK CMPXCHG touch no vector state."""
    instruction = Decoder(64, bytes.fromhex(code)).decode()
    assert not instruction.is_invalid
    assert image_code.vector_state(instruction) is None


@pytest.mark.parametrize("name", ["HvOnCpuid", "HvSvmSwitch", "NmiStub", "SvmEnter"])
def test_an_sse_instruction_in_a_copy_is_found(built: Built, name: str) -> None:
    address = built.image.named(name).address
    # MOVAPS XMM0, XMM1 and single-byte NOPs up to the end of what it overwrites.
    covered, instruction = 0, built.image.instruction(address)
    while covered < 3:
        covered += instruction.len
        instruction = built.image.instruction(address + covered)
    image = mutated(built, address, bytes.fromhex("0f28c1") + b"\x90" * (covered - 3))
    complaints = image_code.vector_complaints(image, image.reach(image_code.host_starts(image)))
    assert complaints
    assert all(f"{address:#x} MOVAPS" in complaint for complaint in complaints)


def test_another_xsetbv_in_a_copy_is_found(built: Built) -> None:
    address = built.image.named("HvHostWaitNmi").address
    image = mutated(built, address, bytes.fromhex("0f01d1"))
    complaints = image_code.vector_complaints(image, image.reach(image_code.host_starts(image)))
    assert any(f"{address:#x} XSETBV" in complaint for complaint in complaints)


def test_host_life_and_boot_life_are_two(built: Built) -> None:
    assert image_code.boot_complaints(built.image, built.reached, built.image.sources()) == []


def test_inlined_code_is_seen(built: Built) -> None:
    """The run loop is inlined into the launch: the check that looks into routines must see it there."""
    made = built.image.sources()
    parts = {name for name, _ in made[built.image.named("HvCoreLaunch").address]}
    assert {"HvCoreLaunch", "HvCoreRun"} <= parts
    compiled = [a for a, (routine, _) in built.reached.items() if routine.symbol.kind == "STT_FUNC"]
    assert len(set(compiled) & set(made)) > 60


def test_boot_life_called_from_host_life_is_found(built: Built) -> None:
    """A call in a handler, turned towards a function that uses the firmware's tables."""
    handler = built.image.routine(built.image.named("HvOnHypercall"))
    call = next(i for i in handler.code if i.len == 5 and i.mnemonic == Mnemonic.CALL)
    target = built.image.named("HvLaunchUndo").address
    image = mutated(built, call.ip, b"\xe8" + (target - call.next_ip).to_bytes(4, "little", signed=True))
    reached = image.reach(image_code.host_starts(image))
    complaints = image_code.boot_complaints(image, reached, image.sources())
    assert any(
        complaint.startswith("gBS in ") and complaint.endswith("<- HvOnHypercall <- HvCoreLaunch")
        for complaint in complaints
    )
    assert any(complaint.startswith("HvLaunchUndo in HvLaunchUndo <- HvOnHypercall") for complaint in complaints)


def test_a_table_of_the_firmware_read_by_host_life_is_found(built: Built) -> None:
    reader = built.image.routine(built.image.named("HvLogEvent"))
    access = next(
        i
        for i in reader.code
        if i.is_ip_rel_memory_operand
        and built.image.object_at(i.ip_rel_memory_address) == built.image.named("mRing")
        and i.len == 7
    )
    target = built.image.named("gRT").address - access.next_ip
    text = next(section for section in built.image.sections if section.name == ".text")
    start = access.ip - text.address
    code = text.data[start : start + 3] + target.to_bytes(4, "little", signed=True)
    image = mutated(built, access.ip, code)
    complaints = image_code.boot_complaints(image, image.reach(image_code.host_starts(image)), {})
    assert any(complaint.startswith("gRT in HvLogEvent") for complaint in complaints)


def test_an_inlined_function_of_boot_life_is_found(built: Built) -> None:
    address = built.image.named("HvOnCpuid").address
    made = {address: {("HvOnCpuid", "HvPkg/Library/HvCoreLib/Cpuid.c"), ("PrintLine", "HvPkg/HvDxe/HvDxe.c")}}
    complaints = image_code.boot_complaints(built.image, built.reached, made)
    assert [complaint.split(" in ")[0] for complaint in complaints] == ["PrintLine"]
    made = {address: {("HvConsoleInit", "HvPkg/Library/HvConsoleLib/Console.c")}}
    complaints = image_code.boot_complaints(built.image, built.reached, made)
    assert [complaint.split(" in ")[0] for complaint in complaints] == ["HvConsoleInit"]

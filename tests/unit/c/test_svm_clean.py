# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvSvmLib clears the VMCB clean bit of each field that it changes, and no other (APM2 15.15.3)."""

import ctypes
import re

import pytest

from hvtools.generated import vmcb
from tests.unit.c.host import HERE, ROOT, run_gcc

SVM = ROOT / "HvPkg" / "Library" / "HvSvmLib"
C = vmcb.CONSTANTS
CLEAN = {name.removeprefix("HV_SVM_CLEAN_"): value for name, value in C.items() if name.startswith("HV_SVM_CLEAN_")}
CLEAN_AT = vmcb.OFFSETS["HV_VMCB_CONTROL_CLEAN_BITS"]
BITS = int(re.search(r"#define SVM_CLEAN +(0x[0-9A-F]+)", (SVM / "SvmAsm.h").read_text())[1], 16)  # type: ignore[index]

# APM2 table 15-8, first and last byte of what a bit stands for. What is in none of them is read by every VMRUN.
GROUPS = (
    (0x000, 0x017, "INTERCEPTS"), (0x03C, 0x03F, "INTERCEPTS"), (0x050, 0x057, "INTERCEPTS"),
    (0x040, 0x04F, "PERMISSION_MAPS"), (0x058, 0x05B, "ASID"), (0x060, 0x067, "VINTR"),
    (0x090, 0x097, "NP"), (0x0B0, 0x0B7, "NP"), (0x668, 0x66F, "NP"),
    (0x4D0, 0x4D7, "CR"), (0x548, 0x55F, "CR"), (0x560, 0x56F, "DR"),
    (0x460, 0x46F, "DT"), (0x480, 0x48F, "DT"),
    (0x400, 0x43F, "SEG"), (0x4CB, 0x4CB, "SEG"), (0x640, 0x647, "CR2"),
)  # fmt: skip
# TLB_CONTROL, interrupt shadow, EVENTINJ; RFLAGS, RIP, RSP, RAX.
ALWAYS_READ = ((0x05C, 0x05C), (0x068, 0x06F), (0x0A8, 0x0AF), (0x570, 0x57F), (0x5D8, 0x5DF), (0x5F8, 0x5FF))
# VMRUN does not load these: VMLOAD does.
VMLOAD = ((0x440, 0x45F), (0x470, 0x47F), (0x490, 0x49F), (0x600, 0x63F))


@pytest.fixture(scope="module")
def svm(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("svm") / "libsvm.so"
    flags = ["-DMDEPKG_NDEBUG", "-DHV_HOST_FAKE", "-include", "Base.h", f"-I{SVM}", "-Wno-implicit-fallthrough"]
    run_gcc("-shared", "-Wl,-z,lazy", "-o", target, *flags, SVM / "Svm.c", HERE / "svm_fake.c", HERE / "shim.c")
    return ctypes.CDLL(str(target), mode=0x00001)  # RTLD_LAZY: what is not called need not be there


def change(svm: ctypes.CDLL, what: str, mask: int, pattern: int) -> tuple[set[int], set[str]]:
    """The offsets that one change wrote to, and the names of the bits that it cleared."""
    block = (ctypes.c_uint8 * vmcb.OFFSETS["HV_VMCB_SIZE"])()
    ctypes.memset(block, 0xFF ^ pattern, len(block))
    ctypes.memmove(ctypes.addressof(block) + CLEAN_AT, BITS.to_bytes(4, "little"), 4)
    before = bytes(block)
    svm.HvTestChange(block, what.encode(), mask, pattern)
    after = bytes(block)
    written = {at for at in range(len(after)) if after[at] != before[at] and not CLEAN_AT <= at < CLEAN_AT + 4}
    left = int.from_bytes(after[CLEAN_AT : CLEAN_AT + 4], "little")
    return written, {name for name, bit in CLEAN.items() if bit & BITS & ~left}


def bit_of(at: int) -> str | None:
    """The bit that a byte of the VMCB belongs to; None where every VMRUN reads it, or none does."""
    for first, last, name in GROUPS:
        if first <= at <= last:
            return name
    assert any(first <= at <= last for first, last in (*ALWAYS_READ, *VMLOAD)), hex(at)
    return None


CHANGES = [("s", 1 << bit) for bit in (0, 1, 2, 3, 4, 5, 6, 7)] + [("s", 0xFF)]
CHANGES += [(what, on) for what in "id" for on in (0, 1)] + [("t", 0), ("f", 0), ("g", 0)]


@pytest.mark.parametrize(("what", "mask"), CHANGES)
def test_each_field_that_is_changed_clears_its_bit(svm: ctypes.CDLL, what: str, mask: int) -> None:
    for pattern in (0xA5, 0x5A):
        written, cleared = change(svm, what, mask, pattern)
        needed = {name for name in map(bit_of, written) if name is not None}
        assert needed <= cleared
        if what == "s":
            assert written and cleared == needed


# APM2 15.16, Software Rule: what a VMM changes only together with a flush. Offset and bit of each.
PAGING = {
    "CR0": (16, 29, 30, 31), "CR3": tuple(range(12, 52)), "CR4": (4, 5, 7), "EFER": (8, 10, 11),
}  # fmt: skip


@pytest.mark.parametrize("register", PAGING)
def test_what_changes_paging_flushes_the_guests_translations(svm: ctypes.CDLL, register: str) -> None:
    for bit in range(64):
        block = (ctypes.c_uint8 * vmcb.OFFSETS["HV_VMCB_SIZE"])()
        svm.HvTestFlip(block, register.encode(), bit)
        flushed = block[vmcb.OFFSETS["HV_VMCB_CONTROL_TLB_CONTROL"]] == C["HV_SVM_TLB_FLUSH_ALL"]
        assert flushed or bit not in PAGING[register], bit
        assert not flushed or bit in PAGING[register] or register == "CR3", bit


def test_the_bits_are_those_of_the_table() -> None:
    assert {name for name, bit in CLEAN.items() if bit & BITS} == {name for _, _, name in GROUPS}
    by_name = {"NP": ("CONTROL_NCR3", "SAVE_GPAT"), "CR": ("SAVE_EFER", "SAVE_CR4", "SAVE_CR3", "SAVE_CR0")}
    by_name |= {"DR": ("SAVE_DR6", "SAVE_DR7"), "CR2": ("SAVE_CR2",), "SEG": ("SAVE_ES", "SAVE_CPL")}
    by_name |= {"DT": ("SAVE_GDTR", "SAVE_IDTR"), "INTERCEPTS": ("CONTROL_INTERCEPT3", "CONTROL_TSC_OFFSET")}
    for name, fields in by_name.items():
        for each in fields:
            assert bit_of(vmcb.OFFSETS[f"HV_VMCB_{each}"]) == name

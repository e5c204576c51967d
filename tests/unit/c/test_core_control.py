# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Writes to CR0 and CR4 that exit, by the conditions of SDM volume 2, and writes to the MTRRs, which EPT follows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import Core

PE, MP, EM, TS, ET, NE, WP, AM = 1, 2, 4, 8, 16, 32, 1 << 16, 1 << 18
NW, CD, PG = 1 << 29, 1 << 30, 1 << 31
DEFINED = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG
PAE, PCIDE, CET, VMXE, SMXE = 1 << 5, 1 << 17, 1 << 23, 1 << 13, 1 << 14
LME, LMA = 1 << 8, 1 << 10
LONG, CODE = 1 << 9, 0x9B
HOST_CR0 = PE | MP | ET | NE | WP | PG
RIP, LENGTH, GP = 0x1000, 3, 13

BITS = (PE, MP, EM, TS, NE, WP, AM, NW, CD, PG)


def word(bits: set[int]) -> int:
    return sum(bits)


def consistent(cr0: int) -> bool:
    """Whether a processor can hold it."""
    return not (cr0 & PG and not cr0 & PE) and not (cr0 & NW and not cr0 & CD)


def write(core: Core, value: int, number: int = 0) -> bool:
    """The guest writes; FALSE when it gets #GP(0)."""
    fake = core.lib.gFake
    fake.Vcpu[0].Regs.Rip = RIP
    fake.Fake[0].Event.Type = core.lib.HvEventNone
    core.run(core.exit("CrAccess", CrNumber=number, CrValue=value, NextRip=RIP + LENGTH))
    event = fake.Fake[0].Event
    if event.Type == core.lib.HvEventNone:
        assert fake.Vcpu[0].Regs.Rip == RIP + LENGTH
        return True
    assert (event.Type, event.Vector, event.HasErrorCode, event.ErrorCode) == (core.lib.HvEventException, GP, 1, 0)
    assert fake.Vcpu[0].Regs.Rip == RIP
    return False


@given(
    old=st.sets(st.sampled_from(BITS)).map(word).filter(consistent),
    value=st.sets(st.sampled_from((*BITS, 1 << 6, 1 << 28, 1 << 32, 1 << 63))).map(word),
    cr4=st.sets(st.sampled_from((PAE, PCIDE, CET))).map(word),
    lme=st.booleans(),
    code64=st.booleans(),
    tss16=st.booleans(),
)
def test_cr0(core: Core, old: int, value: int, cr4: int, lme: bool, code64: bool, tss16: bool) -> None:
    fake = core.reset()
    state = fake.Fake[0].State
    fake.Cr0 = HOST_CR0
    long_before = bool(old & PG and lme)
    state.Cr0, state.Cr4, state.Cr3 = old | ET, cr4, int(core.lib.HvFakeRam(0x1000))
    state.Efer = (LME if lme else 0) | (LMA if long_before else 0)
    state.Segment[core.lib.HvSegmentCs].Attributes = CODE | (LONG if code64 else 0)
    state.Segment[core.lib.HvSegmentTr].Attributes = 0x83 if tss16 else 0x8B

    enters, leaves = not old & PG and value & PG, old & PG and not value & PG
    good = not (
        value >> 32
        or (value & PG and not value & PE)
        or (value & NW and not value & CD)
        or (not value & WP and cr4 & CET)
        or (enters and lme and (not cr4 & PAE or code64 or tss16))
        or (leaves and (cr4 & PCIDE or (long_before and code64)))
    )
    assert write(core, value) == good
    if not good:
        assert (state.Cr0, fake.Cr0) == (old | ET, HOST_CR0)
        assert bool(state.Efer & LMA) == long_before
        return
    assert state.Cr0 == value & DEFINED | ET
    assert state.Efer == (LME if lme else 0) | (LMA if lme and value & PG else 0)
    # An entry does not move these two, so the host's register has them.
    changed = (old ^ value) & (CD | NW)
    assert fake.Cr0 == (HOST_CR0 | value & (CD | NW) if changed else HOST_CR0)


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        (0x1001, True),
        (0x1002, True),  # not present: nothing is looked at
        (0x1003, False),
        (0x1021, False),
        (0x1000000000001001, False),
        (0x8000000000001001, False),
    ],
)
def test_pae_paging_loads_the_pdptes(core: Core, entry: int, good: bool) -> None:
    fake = core.reset()
    state = fake.Fake[0].State
    table = int(core.lib.HvFakeRam(0x1000)) + 0x40
    entries = [0x1001, 0, 0x2009, entry]
    core.ffi.memmove(core.ffi.cast("char *", table), b"".join(e.to_bytes(8, "little") for e in entries), 32)
    state.Cr0, state.Cr4, state.Cr3, state.Efer = PE | ET, PAE, table | 0x18, 0
    state.Segment[core.lib.HvSegmentCs].Attributes = CODE
    assert write(core, PG | PE | NE) == good
    assert state.Cr0 == (PG | PE | NE | ET if good else PE | ET)
    assert list(state.Pdpte) == (entries if good else [0] * 4)


def test_pdptes_outside_memory_are_refused(core: Core) -> None:
    fake = core.reset()
    state = fake.Fake[0].State
    state.Cr0, state.Cr4, state.Cr3, state.Efer = PE | ET, PAE, 0xFEC00000, 0
    state.Segment[core.lib.HvSegmentCs].Attributes = CODE
    assert not write(core, PG | PE)


@pytest.mark.parametrize("bit", [VMXE, SMXE])
def test_cr4_has_no_vmx_and_no_smx(core: Core, bit: int) -> None:
    fake = core.reset()
    before = int(fake.Fake[0].State.Cr4)
    assert not write(core, before | bit, number=4)
    assert fake.Fake[0].State.Cr4 == before


# The MTRRs.

MTRR_CAP, DEF_TYPE, BASE0, MASK0, BASE1, MASK1 = 0xFE, 0x2FF, 0x200, 0x201, 0x202, 0x203
UC, WT, WB, ENABLE, VALID = 0, 4, 6, 1 << 11, 1 << 11
MIB, GIB, READ, WRITE, EXECUTE = 1 << 20, 1 << 30, 1, 2, 4
ADDRESS_MASK = (1 << 40) - 1
ALL = READ | WRITE | EXECUTE


def mask_of(size: int) -> int:
    """PHYSMASK of a range with this size."""
    return ADDRESS_MASK & ~(size - 1) | VALID


def leaf(core: Core, address: int) -> tuple[int, int, int]:
    """Memory type, rights and level of the root's leaf at an address."""
    found = core.ffi.new("HV_PAGING_LEAF *")
    nested = core.ffi.addressof(core.lib.gFake.Host.Root, "Nested")
    assert core.lib.HvPagingQuery(nested, address, found) == 0
    assert found.Present
    return int(found.Attributes) >> 8 & 7, int(found.Attributes) & 7, int(found.Level)


def machine(core: Core, host_base: int) -> None:
    """Two processors under EPT, 4 GiB mapped, write-back but for the upper half of it."""
    fake = core.reset(2)
    host = fake.Host
    row = fake.Leaf[fake.LeafCount]
    row.Leaf, row.SubLeaf, row.Registers = 1, 0, [0, 0, 0, 1 << 12]
    fake.LeafCount += 1
    values = {MTRR_CAP: 2, DEF_TYPE: ENABLE | WB, BASE0: 2 * GIB | UC, MASK0: mask_of(2 * GIB), BASE1: 0, MASK1: 0}
    for number, value in values.items():
        row = fake.Msr[fake.MsrCount]
        row.Msr, row.Value, row.Refused = number, value, 0
        fake.MsrCount += 1
    host.AddressBits = 40
    host.Base, host.Bytes = host_base, MIB
    core.lib.HvCoreReadMtrrs(core.ffi.addressof(host, "Mtrrs"))
    pool = core.ffi.addressof(host, "Pool")
    nested = core.ffi.addressof(host.Root, "Nested")
    assert core.lib.HvPagePoolInit(pool, core.lib.HvFakeRam(64 << 12), 64) == 0
    assert core.lib.HvPagingInit(nested, core.lib.HvPagingEpt4, pool, 3, 40) == 0
    root = core.ffi.addressof(host, "Root")
    assert core.lib.HvCoreMapIdentity(core.ffi.addressof(fake, "Host"), root, 0, 4 * GIB) == 0
    assert core.lib.HvPagingProtect(nested, host_base, MIB, READ | EXECUTE | WB << 8) == 0


def set_msr(core: Core, number: int, value: int) -> None:
    fake = core.lib.gFake
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rdx = number, value & 0xFFFFFFFF, value >> 32
    fake.Fake[0].Event.Type = core.lib.HvEventNone
    core.run(core.exit("Wrmsr", NextRip=RIP))
    assert fake.Fake[0].Event.Type == core.lib.HvEventNone


def test_nested_types_follow_the_mtrrs(core: Core) -> None:
    host_base, there = 0x30000000, 0x10000000
    machine(core, host_base)
    fake = core.lib.gFake
    assert leaf(core, there) == (WB, ALL, 2)
    assert leaf(core, 3 * GIB)[0] == UC
    flushes = int(fake.Fake[0].Flushes)

    # Off, changed, on: the tables follow at the end, and all processors forget what they had.
    set_msr(core, DEF_TYPE, WB)
    set_msr(core, BASE1, there | WT)
    set_msr(core, MASK1, mask_of(MIB))
    assert leaf(core, there)[0] == WB
    assert fake.Fake[0].Flushes == flushes and core.writes("Nmi") == []
    set_msr(core, DEF_TYPE, ENABLE | WB)
    assert leaf(core, there) == (WT, ALL, 1)
    assert leaf(core, there + MIB - 1)[0] == WT
    assert leaf(core, there + MIB) == (WB, ALL, 1)
    assert leaf(core, there - 1) == (WB, ALL, 2)
    assert fake.Fake[0].Flushes == flushes + 1
    assert core.writes("Nmi") == [(0, int(fake.Cpu[1].Apic.ApicId))]
    assert fake.Cpu[1].Mailbox.Word & 0x10000
    assert [event for event, _ in core.log()][-1] == "MemoryTypes"

    # Rights stay, and the host's block is what it was.
    assert leaf(core, host_base) == (WB, READ | EXECUTE, 1)
    set_msr(core, DEF_TYPE, ENABLE | UC)
    assert leaf(core, GIB)[:2] == (UC, ALL)
    assert leaf(core, host_base) == (WB, READ | EXECUTE, 1)
    assert fake.BadAccesses == 0 and fake.Host.Root.Lock == 0


def test_the_same_value_again_changes_nothing(core: Core) -> None:
    machine(core, 0x30000000)
    fake = core.lib.gFake
    before = int(fake.Fake[0].Flushes)
    set_msr(core, DEF_TYPE, WB)
    set_msr(core, DEF_TYPE, ENABLE | WB)
    assert fake.Fake[0].Flushes == before + 1, "the change may be another processor's, and its kick on the way"
    assert core.writes("Nmi") == [] and core.log() == []

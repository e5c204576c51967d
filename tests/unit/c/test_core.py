# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The core's policy on a machine without hardware: CPUID, XSETBV, MSRs, INIT state, retirement, host memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvtools.generated import exits
from hvtools.generated.cpuid import BITS, NO_LEAVES
from hvtools.generated.cpuid import CONSTANTS as CPUID_CONSTANTS
from hvtools.generated.msr import MSRS
from hvtools.generated.msr import ROOT as MSR_POLICY
from tests.unit.c.core_host import CData, Core

CPUID_CODE = b"\x0f\xa2"
XSETBV_CODE = b"\x0f\x01\xd1"
GP, UD, DB = 13, 6, 1
RF = 1 << 16
OSXSAVE, PKE = 1 << 18, 1 << 22
REGISTERS = ("Rax", "Rcx", "Rdx", "Rbx", "Rsp", "Rbp", "Rsi", "Rdi", *(f"R{n}" for n in range(8, 16)), "Rip", "Rflags")


def registers(core: Core, cpu: int = 0) -> dict[str, int]:
    return {name: int(getattr(core.lib.gFake.Vcpu[cpu].Regs, name)) for name in REGISTERS}


def faulted(before: dict[str, int]) -> dict[str, int]:
    """What a fault finds: nothing has changed, but the flags that it pushes have RF (SDM volume 3, 18.3.1.1)."""
    return before | {"Rflags": before["Rflags"] | RF}


def exception(core: Core, cpu: int = 0) -> tuple[int, int | None] | None:
    """The exception of the next entry: vector and error code."""
    event = core.lib.gFake.Fake[cpu].Event
    if event.Type != core.lib.HvEventException:
        return None
    return int(event.Vector), int(event.ErrorCode) if event.HasErrorCode else None


def test_every_kind_has_a_handler_and_is_counted(core: Core) -> None:
    kinds = core.lib.HvExitKindCount
    assert kinds == len(exits.KINDS)
    assert all(core.lib.HvFakeHasHandler(kind) for kind in range(kinds))
    for kind in range(kinds):
        fake = core.reset(1, virtual_nmis=True)
        made = core.exit("None", code=b"\x90", FaultFlags=1)
        made.Kind = kind
        core.run(made)
        assert sum(fake.Cpu[0].Exits[0:32]) == 1


def test_unexpected_kinds_are_logged_and_refused(core: Core) -> None:
    for kind in ("None", "Hlt", "Pause", "DrAccess", "Exception", "Unknown"):
        core.reset()
        assert core.run(core.exit(kind, Code=0x77, Info1=1, Info2=2)) == core.lib.HvFakeDone
        assert exception(core) == (GP, 0)
        assert [name for name, _ in core.log()] == ["ExitUnknown", "GuestState"]
        assert core.log()[0][1] == [0x77, 1, 2, 0]


def test_an_smi_is_taken_by_the_host_and_the_guest_goes_on(core: Core) -> None:
    fake = core.reset()
    assert core.run(core.exit("Smi")) == core.lib.HvFakeDone
    assert fake.Fake[0].Signals == 1
    assert exception(core) is None
    assert core.log() == []


def test_a_refused_entry_parks_and_a_triple_fault_shuts_down(core: Core) -> None:
    fake = core.reset()
    fake.EnterStatus = 1 << 63 | 21
    assert core.run(core.exit("EntryFailed", Code=0xFFFFFFFF)) == core.lib.HvFakeParked
    assert [name for name, _ in core.log()] == ["EntryFailed", "GuestState", "HostPark"]
    core.reset()
    assert core.run(core.exit("Shutdown")) == core.lib.HvFakeShutdown


def test_the_first_entry_may_fail_and_then_says_so(core: Core) -> None:
    fake = core.reset()
    fake.EnterStatus = 1 << 63 | 21
    fake.Cpu[0].Entered = 0
    assert core.run(core.exit("EntryFailed", Code=0x1234)) == core.lib.HvFakeReturned
    assert fake.Cpu[0].LaunchDetail == 0x1234
    assert fake.Cpu[0].LaunchReason != core.ffi.NULL


# CPUID.


def cpuid(core: Core, leaf: int, subleaf: int = 0, cpu: int = 0) -> tuple[int, int, int, int]:
    regs = core.lib.gFake.Vcpu[cpu].Regs
    # The upper halves are not looked at.
    regs.Rax, regs.Rcx = 0xDEAD << 32 | leaf, 0xBEEF << 32 | subleaf
    rip = regs.Rip
    assert core.run(core.exit("Cpuid", code=CPUID_CODE), cpu=cpu) == core.lib.HvFakeDone
    assert regs.Rip == rip + 2
    return int(regs.Rax), int(regs.Rbx), int(regs.Rcx), int(regs.Rdx)


def leaf(core: Core, number: int, subleaf: int, *values: int) -> None:
    fake = core.lib.gFake
    row = fake.Leaf[fake.LeafCount]
    row.Leaf, row.SubLeaf = number, subleaf
    row.Registers = list(values)
    fake.LeafCount += 1


def prepared(core: Core) -> list[int]:
    """The leaves of the rows that are made for a processor with these leaves."""
    host = core.lib.gFake.Host
    core.lib.HvCoreCpuidPrepare(core.ffi.addressof(host))
    rows = [host.CpuidRow[index].Leaf for index in range(len(host.CpuidRow))]
    return rows[: rows.index(0xFFFFFFFF)]


def test_leaves_of_the_hypervisor(core: Core) -> None:
    fake = core.reset(3)
    fake.Host.SharedBytes = 0x23000
    signature = b"HvPkgHvPkgHv"
    top, *text = cpuid(core, 0x40000000)
    assert top == 0x40000002
    assert b"".join(value.to_bytes(4, "little") for value in text) == signature
    for index in range(3):
        assert cpuid(core, 0x40000001, cpu=index) == (1, 3, 7, index)
    status = int(core.ffi.cast("uint64_t", fake.Host.Status))
    assert cpuid(core, 0x40000002) == (status & 0xFFFFFFFF, status >> 32, 0x23000, 0)


@given(leaf_number=st.integers(0x40000003, 0x4FFFFFFF), subleaf=st.integers(0, 2**32 - 1))
def test_what_a_hypervisor_below_offers_is_hidden(core: Core, leaf_number: int, subleaf: int) -> None:
    core.reset()
    leaf(core, leaf_number, subleaf, *[0xFFFFFFFF] * 4)
    assert cpuid(core, leaf_number, subleaf) == (0, 0, 0, 0)


@given(
    ecx1=st.integers(0, 2**32 - 1),
    ecx7=st.integers(0, 2**32 - 1),
    amd=st.integers(0, 2**32 - 1),
    cr4=st.integers(0, 2**32 - 1),
)
def test_virtualization_is_hidden_and_cr4_is_mirrored(core: Core, ecx1: int, ecx7: int, amd: int, cr4: int) -> None:
    fake = core.reset()
    fake.Fake[0].State.Cr4 = cr4
    leaf(core, 1, 0, 11, 22, ecx1, 1 << 21 | 33)
    leaf(core, 7, 0, 1, 2, ecx7, 3)
    leaf(core, 7, 1, ecx7, 2, ecx7, 3)
    leaf(core, 0x80000001, 0, 5, 6, amd, 7)
    leaf(core, 0x8000000A, 0, 1, 2, 3, 4)
    # VMX (5), SMX (6) and the debug store (2, 4, EDX 21) are off, the hypervisor bit (31) is on, OSXSAVE (27) is CR4's.
    expected = ecx1 & ~(1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 27) | 1 << 31 | (1 << 27 if cr4 & OSXSAVE else 0)
    assert cpuid(core, 1) == (11, 22, expected, 33 & ~(1 << 21))
    assert cpuid(core, 7, 0) == (1, 2, ecx7 & ~(1 << 4) | (1 << 4 if cr4 & PKE else 0), 3)
    assert cpuid(core, 7, 1) == (ecx7 & ~(1 << 17 | 1 << 27), 2, ecx7, 3), "FRED and RDMSRLIST"
    assert cpuid(core, 0x80000001) == (5, 6, amd & ~(1 << 2 | 1 << 12), 7)
    assert cpuid(core, 0x8000000A) == (0, 0, 0, 0)


def test_what_a_missing_control_would_break_is_hidden(core: Core) -> None:
    fake = core.reset()
    for fake.Host.HiddenCount, gate in enumerate([(0xD, 1, 0, 0b1000), (7, 0, 1, 1 << 10), (7, 1, 0, 1)], 1):
        row = fake.Host.Hidden[fake.Host.HiddenCount - 1]
        row.Leaf, row.SubLeaf, row.Register, row.Bits = gate
    leaf(core, 0, 0, 20, 0, 0, 0)
    leaf(core, 0xD, 1, 0b1111, 2, 3, 4)
    leaf(core, 0xD, 0, 0b1111, 2, 3, 4)
    leaf(core, 7, 0, 15, 0xFFF, 3, 4)
    leaf(core, 7, 1, 15, 0xFFF, 3, 4)
    core.lib.HvCoreCpuidPrepare(core.ffi.addressof(fake.Host))
    assert cpuid(core, 0xD, 1) == (0b0111, 2, 3, 4)
    assert cpuid(core, 0xD, 0) == (0b1111, 2, 3, 4)
    assert cpuid(core, 7, 0) == (15, 0xBFF, 3, 4)
    assert cpuid(core, 7, 1) == (14, 0xFFF, 3, 4)
    # A bit that the processor does not have needs no row.
    leaf(core, 7, 1, 14, 0xFFF, 3, 4)
    assert prepared(core).count(7) == 1
    leaf(core, 7, 1, 15, 0xFFF, 3, 4)
    assert prepared(core).count(7) == 2


def test_every_row_of_the_policy_is_prepared(core: Core) -> None:
    host = core.reset().Host
    rows = [host.CpuidRow[index].Leaf for index in range(len(host.CpuidRow))]
    used = rows.index(0xFFFFFFFF)
    changed = {number for number, _, _, _, _, _, policy in BITS if policy != "pass"} | {0x14, 0x8000000A}
    assert changed == set(rows[:used])
    for index, number in enumerate(rows[:used]):
        first = host.CpuidFirst[32 * (number >> 31) + number % 32]
        assert rows[first - 1] == number and rows.index(number) == first - 1 <= index


def test_processor_trace_is_hidden_where_there_is_any(core: Core) -> None:
    core.reset()
    # Without it, and without its leaf: that one then gives what the last leaf gives.
    leaf(core, 0, 0, 13, 0, 0, 0)
    leaf(core, 7, 0, 2, 0xFFFFFFFF ^ 1 << 25, 3, 4)
    leaf(core, 0x14, 0, 1, 2, 3, 4)
    rows = core.lib.gFake.Host.CpuidRow
    assert rows[prepared(core).index(7)].Keep[1] == 0xFFFFFFFF, "OSPKE alone"
    assert cpuid(core, 0x14, 0) == (1, 2, 3, 4)
    core.reset()
    leaf(core, 0, 0, 20, 0, 0, 0)
    leaf(core, 7, 0, 2, 0xFFFFFFFF, 3, 4)
    leaf(core, 7, 1, 2, 0xFFFFFFFF, 3, 4)
    for subleaf in (0, 1):
        leaf(core, 0x14, subleaf, 1, 2, 3, 4)
    assert prepared(core).count(7) == 1 and rows[prepared(core).index(7)].Keep[1] == 0xFFFFFFFF ^ 1 << 25
    assert cpuid(core, 7, 0) == (2, 0xFFFFFFFF ^ 1 << 25, 3, 4)
    assert cpuid(core, 7, 1) == (2, 0xFFFFFFFF, 3, 4)
    assert cpuid(core, 0x14, 0) == cpuid(core, 0x14, 1) == (0, 0, 0, 0)


# The exits that are dealt with before the guest's state is left.


def quick(core: Core, kind: str, *more: int, **regs: int) -> bool:
    vcpu = core.lib.gFake.Vcpu[0]
    for name, value in regs.items():
        setattr(vcpu.Regs, name, value)
    pointer = core.ffi.addressof(vcpu)
    if kind in ("Call", "Wrmsr"):
        # The backend asks first, and the answer does not change anything.
        return bool(getattr(core.lib, f"HvFakeIsQuick{kind}")(pointer, *more)) and bool(
            getattr(core.lib, f"HvCoreQuick{kind}")(pointer)
        )
    return bool(getattr(core.lib, f"HvCoreQuick{kind}")(pointer, *more))


KEPT = ("Rsp", "Rbp", "R12", "R13", "R14", "R15", "Rip", "Rflags")


@given(number=st.sampled_from([0, 1, 7, 0xD, 0x40000000, 0x40000001, 0x40000003, 0x80000001, 0x8000000A, 0xFFFFFFFF]))
def test_a_quick_cpuid_is_the_same_as_a_slow_one(core: Core, number: int) -> None:
    core.reset()
    leaf(core, number, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    slow = cpuid(core, number)
    fake = core.reset()
    leaf(core, number, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    for index, name in enumerate(KEPT):
        setattr(fake.Vcpu[0].Regs, name, 0x1000 + index)
    assert quick(core, "Cpuid", fake.Fake[0].State.Cr4, Rax=number, Rcx=0)
    regs = registers(core)
    assert (regs["Rax"], regs["Rbx"], regs["Rcx"], regs["Rdx"]) == slow
    assert [regs[name] for name in KEPT] == [0x1000 + index for index in range(len(KEPT))]
    assert fake.Cpu[0].Exits[core.lib.HvExitCpuid] == 1 and sum(fake.Cpu[0].Exits[0:32]) == 1


def test_a_quick_hypercall_is_the_same_as_a_slow_one(core: Core) -> None:
    magic = 0x48760000
    for call in (magic, magic + 1, magic + 2, magic + 3, magic + 0xFFFF, 0, 0xFFFFFFFF_00000000 + magic):
        for cpl in (0, 3):
            fake = core.reset()
            fake.Fake[0].State.Cpl = cpl
            before = registers(core) | {"Rax": call}
            done = quick(core, "Call", cpl, Rax=call)
            if not done:
                assert registers(core) == before and sum(fake.Cpu[0].Exits[0:32]) == 0 and exception(core) is None
                assert core.log() == []
                continue
            result = registers(core)["Rax"]
            fake = core.reset()
            fake.Fake[0].State.Cpl = cpl
            fake.Vcpu[0].Regs.Rax = call
            core.run(core.exit("Hypercall", NextRip=3))
            assert registers(core)["Rax"] == result and exception(core) is None and cpl == 0


@pytest.mark.parametrize(
    ("icr", "done"),
    [
        (0x00000003_00004055, True),
        (0x00000003_00000855, True),
        (0x00000000_000C0055, True),
        (0x00000003_00004500, False),  # INIT
        (0x00000003_00004608, False),  # SIPI
        (0x00000003_00004400, False),  # NMI
        (0x00000003_00008055, False),  # level-triggered
        (0x00000003_80000055, False),  # reserved: #GP
    ],
)
def test_a_quick_ipi_is_an_ordinary_one(core: Core, icr: int, done: bool) -> None:
    fake = core.reset(2, x2apic=True)
    assert quick(core, "Wrmsr", Rcx=0x830, Rax=icr & 0xFFFFFFFF, Rdx=icr >> 32) == done
    assert core.writes("Icr") == ([(0, icr)] if done else [])
    assert fake.Cpu[0].Exits[core.lib.HvExitWrmsr] == int(done)
    # In xAPIC mode, or to another MSR, it is not for here.
    core.reset(2, x2apic=False)
    assert not quick(core, "Wrmsr", Rcx=0x830, Rax=icr & 0xFFFFFFFF, Rdx=icr >> 32)
    core.reset(2, x2apic=True)
    assert not quick(core, "Wrmsr", Rcx=0x1B, Rax=icr & 0xFFFFFFFF, Rdx=icr >> 32)


CHANGED_LEAVES = {*NO_LEAVES, *(row[0] for row in BITS if row[-1] != "pass")}


@given(number=st.integers(0, 2**32 - 1) | st.integers(0, 0x40), subleaf=st.integers(0, 2**32 - 1))
def test_other_leaves_are_the_processors(core: Core, number: int, subleaf: int) -> None:
    core.reset()
    if number not in CHANGED_LEAVES and number >> 28 != 4:
        leaf(core, number, subleaf, 0x11111111, 0x22222222, 0x33333333, 0x44444444)
        assert cpuid(core, number, subleaf) == (0x11111111, 0x22222222, 0x33333333, 0x44444444)


# XSETBV.

# SDM volume 1, 13.3, and SDM volume 2, XSETBV: what a component's bit needs.
NEEDS = {2: {1}, 3: {4}, 4: {3}, 5: {2, 6, 7}, 6: {2, 5, 7}, 7: {2, 5, 6}, 17: {18}, 18: {17}}
COMPONENTS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 17, 18, 62)


def bits(value: int) -> set[int]:
    return {bit for bit in range(64) if value >> bit & 1}


def xcr0_valid(register: int, value: int, supported: int) -> bool:
    chosen = bits(value)
    return (
        register == 0
        and 0 in chosen
        and chosen <= bits(supported)
        and all(need in chosen for bit in chosen for need in NEEDS.get(bit, ()))
        and (2 not in chosen or 1 in chosen)
    )


def mask(chosen: set[int]) -> int:
    return sum(1 << bit for bit in chosen)


components = st.one_of(
    st.sets(st.sampled_from(COMPONENTS)).map(mask),
    st.sets(st.sampled_from(COMPONENTS)).map(lambda chosen: mask(chosen | {0, 1, 2})),
    st.integers(0, 2**64 - 1),
    st.sampled_from([1, 3, 7, 0xE7, 0xFF, 0x2E7, 0x602E7, 0x202E7, 0x1F, 0xF]),
)
supported_values = st.one_of(components, st.just(2**64 - 1), st.just(0x602FF))


@given(register=st.sampled_from([0, 0, 0, 1, 2**32 - 1]), value=components, supported=supported_values)
def test_xcr0_is_checked_as_the_processor_does(core: Core, register: int, value: int, supported: int) -> None:
    assert bool(core.lib.HvCoreXcr0IsValid(register, value, supported)) == xcr0_valid(register, value, supported)


@given(register=st.sampled_from([0, 0, 1]), value=components, supported=supported_values, faults=st.booleans())
def test_xsetbv(core: Core, register: int, value: int, supported: int, faults: bool) -> None:
    fake = core.reset()
    fake.XsetbvFaults = faults
    leaf(core, 0xD, 0, supported & 0xFFFFFFFF, 0, 0, supported >> 32)
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rdx = 1 << 32 | register, 1 << 32 | value & 0xFFFFFFFF, 1 << 32 | value >> 32
    before = registers(core)
    core.run(core.exit("Xsetbv", code=XSETBV_CODE))
    valid = xcr0_valid(register, value, supported)
    assert core.writes("Xsetbv") == ([(0, value)] if valid else [])
    if valid and not faults:
        assert exception(core) is None
        assert registers(core) == before | {"Rip": before["Rip"] + 3}
    else:
        assert exception(core) == (GP, 0)
        assert registers(core) == faulted(before)


# INIT.

# SDM volume 3, table 10-1, column INIT, and APM2 tables 14-1 and 14-2. Attributes: descriptor bits 47:40, 55:52.
INIT_SEGMENTS = {
    "Cs": (0xF000, 0xFFFF0000, 0xFFFF, 0x9B),
    **{name: (0, 0, 0xFFFF, 0x93) for name in ("Es", "Ss", "Ds", "Fs", "Gs")},
    "Ldtr": (0, 0, 0xFFFF, 0x82),
    "Tr": (0, 0, 0xFFFF, 0x8B),
}
INIT_STATE = {
    "GdtBase": 0,
    "GdtLimit": 0xFFFF,
    "IdtBase": 0,
    "IdtLimit": 0xFFFF,
    "Cpl": 0,
    "InterruptShadow": 0,
    "Cr2": 0,
    "Cr3": 0,
    "Cr4": 0,
    "Efer": 0,
    "Dr6": 0xFFFF0FF0,
    "Dr7": 0x400,
    "NmiBlocked": 0,
    "Activity": 0,
}
INIT_KEEPS_MSRS = (
    "Pat",
    "Star",
    "Lstar",
    "Cstar",
    "SfMask",
    "KernelGsBase",
    "SysenterCs",
    "SysenterEsp",
    "SysenterEip",
)
INIT_KEEPS = (*INIT_KEEPS_MSRS, "PdpteLoaded", "Pdpte")
"""What INIT leaves alone; PDPTEs mean nothing while paging is off."""


@given(content=st.binary(min_size=512, max_size=512), cr0=st.integers(0, 2**32 - 1), model=st.integers(0, 2**32 - 1))
def test_init_state(core: Core, content: bytes, cr0: int, model: int) -> None:
    ffi = core.ffi
    state, regs = ffi.new("HV_VCPU_STATE *"), ffi.new("HV_REGS *")
    ffi.memmove(state, content, ffi.sizeof("HV_VCPU_STATE"))
    ffi.memmove(regs, content, ffi.sizeof("HV_REGS"))
    state.Cr0 = cr0
    kept = {name: list(value) if name == "Pdpte" else value for name in INIT_KEEPS for value in [getattr(state, name)]}
    core.lib.HvCoreInitState(state, regs, model)
    for name, expected in INIT_SEGMENTS.items():
        segment = state.Segment[getattr(core.lib, f"HvSegment{name}")]
        assert (segment.Selector, segment.Base, segment.Limit, segment.Attributes) == expected, name
    # CD (30) and NW (29) stay, ET (4) is always 1.
    assert state.Cr0 == cr0 & 0x60000000 | 0x10
    assert {name: getattr(state, name) for name in INIT_STATE} == INIT_STATE
    for name, value in kept.items():
        assert (list(getattr(state, name)) if name == "Pdpte" else getattr(state, name)) == value, name
    expected_registers = dict.fromkeys(REGISTERS, 0) | {"Rdx": model, "Rip": 0xFFF0, "Rflags": 2}
    assert {name: getattr(regs, name) for name in REGISTERS} == expected_registers


def test_the_table_of_init_has_every_field(core: Core) -> None:
    """A field that is added to the state is decided on here too."""
    fields = {name for name, _ in core.ffi.typeof("HV_VCPU_STATE").fields}
    assert fields == set(INIT_STATE) | set(INIT_KEEPS) | {"Segment", "Cr0"}
    assert len(INIT_SEGMENTS) == core.lib.HvSegmentCount


# MSRs.

EFER, APIC_BASE, VM_CR, VM_HSAVE_PA, SVM_KEY = 0xC0000080, 0x1B, 0xC0010114, 0xC0010117, 0xC0010118
SCE, LME, LMA, NXE, SVME = 1 << 0, 1 << 8, 1 << 10, 1 << 11, 1 << 12
HOST_EFER = SVME | NXE | LMA | LME
WRMSR_CODE, RDMSR_CODE = b"\x0f\x30", b"\x0f\x32"


def msr(core: Core, number: int, value: int, refused: int = 0) -> CData:
    fake = core.lib.gFake
    row = fake.Msr[fake.MsrCount]
    row.Msr, row.Value, row.Refused = number, value, refused
    fake.MsrCount += 1
    return row


def wrmsr(core: Core, number: int, value: int, length: int = 2) -> bool:
    """Writes an MSR as the guest; whether it was taken. What #GP must not change is checked."""
    regs = core.lib.gFake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rdx = 5 << 32 | number, 6 << 32 | value & 0xFFFFFFFF, 7 << 32 | value >> 32
    before = registers(core)
    core.run(core.exit("Wrmsr", NextRip=before["Rip"] + length))
    if exception(core) is None:
        assert registers(core) == before | {"Rip": before["Rip"] + length, "Rflags": before["Rflags"] & ~RF}
        return True
    assert exception(core) == (GP, 0)
    assert registers(core) == faulted(before)
    assert core.log()[-1] == ("MsrGp", [number, 1, value, before["Rip"]])
    return False


def rdmsr(core: Core, number: int) -> int | None:
    """Reads an MSR as the guest; None for #GP."""
    regs = core.lib.gFake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rdx = 5 << 32 | number, 2**64 - 1, 2**64 - 1
    before = registers(core)
    core.run(core.exit("Rdmsr", code=RDMSR_CODE))
    if exception(core) is None:
        after = registers(core)
        value = after["Rax"] | after["Rdx"] << 32
        assert after == before | {"Rip": before["Rip"] + 2, "Rax": value & 0xFFFFFFFF, "Rdx": value >> 32}
        return value
    assert exception(core) == (GP, 0)
    assert registers(core) == faulted(before)
    assert core.log()[-1] == ("MsrGp", [number, 0, 0, before["Rip"]])
    return None


UNDEFINED_EFER = ~(SCE | LME | LMA | NXE | SVME | 1 << 14) & 2**64 - 1


@given(
    value=st.one_of(st.integers(0, 2**64 - 1), st.sets(st.sampled_from([0, 8, 10, 11, 12, 14, 63])).map(mask)),
    paging=st.booleans(),
    old=st.sampled_from([0, SCE, LME, LME | LMA | NXE]),
)
def test_efer(core: Core, value: int, paging: bool, old: int) -> None:
    fake = core.reset()
    state = fake.Fake[0].State
    host = msr(core, EFER, HOST_EFER, UNDEFINED_EFER)
    state.Efer = old
    state.Cr0 = 0x80000011 if paging else 0x11
    # APM2 3.1.7: a bit that is not there, LME while paging is on. SVME is the host's, whatever the root writes.
    good = not value & UNDEFINED_EFER and not (paging and (value ^ old) & LME)
    assert wrmsr(core, EFER, value) == good
    assert state.Efer == (value & ~(LMA | SVME) | old & LMA if good else old)
    assert host.Value == HOST_EFER
    assert fake.BadAccesses == 0


@pytest.mark.parametrize("number", [VM_CR, VM_HSAVE_PA, SVM_KEY, 0x480, 0x48B, 0x491, 0x560, 0x570, 0x587])
def test_msrs_of_virtualization_do_not_exist(core: Core, number: int) -> None:
    core.reset()
    msr(core, number, 0)
    assert rdmsr(core, number) is None
    core.reset()
    msr(core, number, 0)
    assert not wrmsr(core, number, 0)
    assert core.writes("MsrWrite") == []


VMX, SVM = "VMX", "SVM"


_OPS: list[CData] = []
"""Keeps what the host points to."""


def backend(core: Core, name: str) -> None:
    """The fake backend by another name: some MSRs are one vendor's."""
    host = core.lib.gFake.Host
    ops = core.ffi.new("HV_BACKEND_OPS *", host.Ops[0])
    ops.Id = CPUID_CONSTANTS[f"HV_CPUID_BACKEND_{name}"]
    _OPS[:] = [ops]
    host.Ops = ops


@pytest.mark.parametrize("name", ["SMM_MONITOR_CTL", "SMBASE", "SMRR_PHYSBASE", "SMRR_PHYSMASK", "SMM_BASE", "SMM_CTL"])
@pytest.mark.parametrize("vendor", [VMX, SVM])
def test_what_smm_is_made_of_is_read_and_not_written(core: Core, name: str, vendor: str) -> None:
    (number,) = [number for number, known in MSRS.items() if known == name]
    core.reset()
    backend(core, vendor)
    msr(core, number, 0x1234)
    assert rdmsr(core, number) == 0x1234
    assert not wrmsr(core, number, 0x1234)
    assert core.writes("MsrWrite") == []


@pytest.mark.parametrize("number", [0xC0010016, 0xC001001A, 0xC001001D, 0xC0010132, 0x982])
@pytest.mark.parametrize("there", [False, True])
def test_what_decides_where_memory_is_keeps_its_value(core: Core, number: int, there: bool) -> None:
    core.reset()
    backend(core, SVM)
    if there:
        msr(core, number, 0x80000000)
    assert not wrmsr(core, number, 0x40000000)
    core.lib.gFake.Fake[0].Event.Type = core.lib.HvEventNone
    assert wrmsr(core, number, 0x80000000) == there
    assert core.writes("MsrWrite") == ([(number, 0x80000000)] if there else [])


@pytest.mark.parametrize("vendor", [SVM, VMX])
def test_each_msr_with_a_plain_rule_is_under_it(core: Core, vendor: str) -> None:
    rules = {number: rule[vendor == VMX] for number, rule in MSR_POLICY.items()}
    plain = {number: rule for number, rule in rules.items() if rule in ("deny", "read-only", "frozen", "drop")}
    assert len(plain) > 40
    for number, rule in plain.items():
        core.reset()
        backend(core, vendor)
        msr(core, number, 5)
        assert rdmsr(core, number) == (None if rule == "deny" else 5), MSRS[number]
        core.lib.gFake.Fake[0].Event.Type = core.lib.HvEventNone
        assert wrmsr(core, number, 4) == (rule == "drop"), MSRS[number]
        assert core.writes("MsrWrite") == []


@pytest.mark.parametrize(("number", "drops"), [(0x79, VMX), (0xC0010020, SVM)])
@pytest.mark.parametrize("vendor", [VMX, SVM])
def test_microcode_is_the_firmwares(core: Core, number: int, drops: str, vendor: str) -> None:
    core.reset()
    backend(core, vendor)
    assert wrmsr(core, number, 0x1000) == (vendor == drops), "the other vendor's is not there"
    assert core.writes("MsrWrite") == []


def test_the_switch_of_vmx_is_not_written(core: Core) -> None:
    core.reset()
    backend(core, VMX)
    msr(core, 0x3A, 5)
    assert rdmsr(core, 0x3A) == 5
    assert not wrmsr(core, 0x3A, 5)
    core.lib.gFake.Fake[0].Event.Type = core.lib.HvEventNone
    assert core.writes("MsrWrite") == []


@given(value=st.integers(0, 2**32 - 1))
def test_syscfg_may_change_the_fixed_mtrrs_only(core: Core, value: int) -> None:
    core.reset()
    backend(core, SVM)
    old = 1 << 21 | 1 << 20
    msr(core, 0xC0010010, old)
    good = (value ^ old) & ~(3 << 18) == 0
    assert wrmsr(core, 0xC0010010, value) == good
    assert core.writes("MsrWrite") == ([(0xC0010010, value)] if good else [])


@pytest.mark.parametrize(
    ("number", "old", "value", "good"),
    [
        (0x33, 0, 1 << 29, True),
        (0x33, 0, 1 << 28, False),
        (0x33, 1 << 28, 1 << 28 | 1 << 29, True),
        (0x33, 1 << 28, 0, False),
        (0x1A0, 1 << 34 | 1 << 22 | 1, 1, True),
        (0x1A0, 1, 1 << 34 | 1, False),
        (0x1A0, 1, 1 << 22 | 1, False),
        (0x1A0, 1 << 34, 1 << 34 | 1 << 18, True),
    ],
)
def test_bits_that_the_host_needs_stay_as_they_are(core: Core, number: int, old: int, value: int, good: bool) -> None:
    core.reset()
    backend(core, VMX)
    msr(core, number, old)
    assert wrmsr(core, number, value) == good
    assert core.writes("MsrWrite") == ([(number, value)] if good else [])


@pytest.mark.parametrize("change", [1 << 18, 1 << 19, 3 << 18, 1 << 20, 1 << 21, 1 << 23, 1 << 24, 0])
def test_each_bit_of_syscfg(core: Core, change: int) -> None:
    core.reset()
    backend(core, SVM)
    msr(core, 0xC0010010, 1 << 21)
    assert wrmsr(core, 0xC0010010, 1 << 21 ^ change) == (change & ~(3 << 18) == 0)


@pytest.mark.parametrize(("page", "good"), [(-17, True), (-16, True), (-15, False), (0, False), (3, False), (4, True)])
def test_the_hardware_feedback_table_is_not_in_the_host(core: Core, page: int, good: bool) -> None:
    fake = core.reset()
    fake.Host.Base, fake.Host.Bytes = 0x800000, 4 * 4096
    address = 0x800000 + page * 4096
    msr(core, 0x17D0, 0)
    assert wrmsr(core, 0x17D0, address | 1) == good
    core.lib.gFake.Fake[0].Event.Type = core.lib.HvEventNone
    assert wrmsr(core, 0x17D0, 1 << fake.Host.AddressBits | address | 1) == good, "bits above do not hide it"


@given(number=st.integers(0x10000, 0x20000), value=st.integers(0, 2**64 - 1), there=st.booleans())
def test_other_msrs_are_the_processors(core: Core, number: int, value: int, there: bool) -> None:
    core.reset()
    if there:
        msr(core, number, value ^ 5, 1 << 63)
    assert rdmsr(core, number) == (value ^ 5 if there else None)
    core.lib.gFake.Fake[0].Event.Type = core.lib.HvEventNone
    assert wrmsr(core, number, value) == (there and not value >> 63)
    assert core.writes("MsrWrite") == ([(number, value)] if there and not value >> 63 else [])


def test_apic_base(core: Core) -> None:
    base, bsp, extd, enabled = 0xFEE00000, 1 << 8, 1 << 10, 1 << 11
    fake = core.reset()
    msr(core, APIC_BASE, base | enabled | bsp, 1 << 9)
    assert not wrmsr(core, APIC_BASE, 0xFEC00000 | enabled | bsp)
    fake.Fake[0].Event.Type = core.lib.HvEventNone
    assert not wrmsr(core, APIC_BASE, base | enabled | bsp | 1 << 9)
    fake.Fake[0].Event.Type = core.lib.HvEventNone
    assert core.writes("MsrWrite") == []
    assert not fake.Cpu[0].X2Apic
    assert wrmsr(core, APIC_BASE, base | enabled | extd | bsp)
    assert fake.Cpu[0].X2Apic and fake.Cpu[0].Bsp
    assert wrmsr(core, APIC_BASE, base | enabled)
    assert not fake.Cpu[0].X2Apic
    assert not fake.Cpu[0].Bsp, "another one is the boot processor now"


# Events on top of events.

# SDM volume 3, tables 6-4 and 6-5.
CONTRIBUTORY = {0, 10, 11, 12, 13, 21}
PAGE_FAULTS = {14, 20}
ERROR_CODES = {8, 10, 11, 12, 13, 14, 17, 21}


def combined(core: Core, kind: str, first: int, second: int) -> int:
    """Table 6-5, and the shutdown that the text below it describes."""
    if kind != "Exception":
        return int(core.lib.HvCombinedSecond)
    serious = second in CONTRIBUTORY | PAGE_FAULTS
    if first == 8 and serious:
        return int(core.lib.HvCombinedShutdown)
    if (first in CONTRIBUTORY and second in CONTRIBUTORY) or (first in PAGE_FAULTS and serious):
        return int(core.lib.HvCombinedDoubleFault)
    return int(core.lib.HvCombinedSecond)


@pytest.mark.parametrize("kind", ["Exception", "Nmi", "Interrupt"])
def test_an_exception_during_the_delivery_of_an_event(core: Core, kind: str) -> None:
    event = core.ffi.new("HV_EVENT *")
    event.Type = getattr(core.lib, f"HvEvent{kind}")
    for first in range(32 if kind == "Exception" else 256):
        event.Vector = first
        for second in range(32):
            assert core.lib.HvCoreCombine(event, second) == combined(core, kind, first, second), (first, second)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (("Interrupt", 0xEF), (GP, 1)),
        (("Nmi", 2), (GP, 1)),
        (("Exception", 6), (GP, 1)),
        (("Exception", 1), (GP, 1)),
        (("Exception", 13), (8, 0)),
        (("Exception", 14), (8, 0)),
        (("Exception", 8), None),
    ],
)
@pytest.mark.parametrize("exit_", [("NestedFault", 1 << 50), ("HostMemory", 0x70000000), ("ApicWrite", 0xFEE00000)])
def test_a_fault_of_the_host_that_cuts_off_a_delivery(
    core: Core, first: tuple[str, int], expected: tuple[int, int] | None, exit_: tuple[str, int]
) -> None:
    """The stack for the event is nowhere, or where no guest may write: no instruction may be carried out for it."""
    fake = core.reset()
    own = fake.Fake[0]
    own.Event.Type, own.Event.Vector = getattr(core.lib, f"HvEvent{first[0]}"), first[1]
    own.Event.ErrorCode = 0x77
    kind, address = exit_
    end = core.run(core.exit(kind, Gpa=address, FaultFlags=3, code=b"\x89\x08"))
    if expected is None:
        assert end == core.lib.HvFakeShutdown
        assert core.log()[-1][0] == "Shutdown"
    else:
        assert end == core.lib.HvFakeDone
        assert exception(core) == expected
    assert fake.Vcpu[0].Regs.Rip == 0
    assert core.writes("ApicWrite") == []


def test_an_exception_without_error_code_gets_none(core: Core) -> None:
    core.reset()
    core.run(core.exit("VirtInstruction"))
    assert exception(core) == (UD, None)


# What a guest can do to the log.


@pytest.mark.parametrize(
    ("exit_", "event"),
    [
        (("NestedFault", {"Gpa": 1 << 50, "FaultFlags": 3}), "NpfUnexpected"),
        (("HostMemory", {"Gpa": 0x70000000, "code": b"\x0f\x0b\xc3"}), "DecodeFailed"),
        (("HostMemory", {"Gpa": 0x70000000, "code": b"\x48\x89\x08"}), "HostWriteDropped"),
        (("ApicWrite", {"Gpa": 0xFEE00000, "FaultFlags": 3, "code": b"\x8f\x00"}), "DecodeFailed"),
        (("Unknown", {}), "ExitUnknown"),
        (("Unknown", {}), "GuestState"),
        (("Rdmsr", {}), "MsrGp"),
    ],
)
def test_no_guest_floods_the_log(core: Core, exit_: tuple[str, dict[str, CData]], event: str) -> None:
    fake = core.reset(2)
    kind, fields = exit_
    for cpu in (1, 0):
        for _ in range(40):
            fake.Fake[cpu].Event.Type = core.lib.HvEventNone
            core.run(core.exit(kind, **fields), cpu=cpu)
            fake.Lines, before = 0, fake.Lines
        assert before == 0
    fresh = core.reset(2)
    for _ in range(20):
        fresh.Fake[1].Event.Type = core.lib.HvEventNone
        core.run(core.exit(kind, **fields), cpu=1)
    assert [name for name, _ in core.log()].count(event) == 16


# Retirement.


@given(
    flags=st.integers(0, 2**22 - 1),
    shadow=st.booleans(),
    length=st.sampled_from([0, 2, 3]),
    stepping=st.booleans(),
    guest_tf=st.booleans(),
)
def test_retirement(core: Core, flags: int, shadow: bool, length: int, stepping: bool, guest_tf: bool) -> None:
    fake = core.reset()
    vcpu, state = fake.Vcpu[0], fake.Fake[0].State
    vcpu.Regs.Rip, vcpu.Regs.Rflags = 0x1000, flags
    vcpu.NmiStepping, vcpu.StepGuestTf = stepping, guest_tf
    state.InterruptShadow = shadow
    exit_ = core.exit("Cpuid", NextRip=0x1000 + length) if length else core.exit("Cpuid", code=CPUID_CODE)
    core.run(exit_)
    assert vcpu.Regs.Rip == 0x1000 + (length or 2)
    assert vcpu.Regs.Rflags == flags & ~RF
    assert not state.InterruptShadow
    # TF traps after the instruction, unless it is the host's own single step.
    if flags >> 8 & 1 and (not stepping or guest_tf):
        assert exception(core) == (DB, None)
        assert state.Dr6 == 0xFFFF4FF0
    else:
        assert exception(core) is None
        assert state.Dr6 == 0xFFFF0FF0


@pytest.mark.parametrize("by_processor", [False, True])
@pytest.mark.parametrize(
    ("lma", "long", "after"),
    [(True, True, 0x1_0000_0000), (True, False, 0), (False, False, 0), (False, True, 0)],
    ids=["64-bit", "compatibility", "32-bit", "32-bit, reserved L"],
)
def test_eip_wraps_where_it_is_not_rip(core: Core, by_processor: bool, lma: bool, long: bool, after: int) -> None:
    """CPUID at FFFFFFFEh, where a user program can be: outside of 64-bit code no entry takes a RIP above 4 GiB."""
    fake = core.reset()
    vcpu, state = fake.Vcpu[0], fake.Fake[0].State
    state.Efer = LMA | LME if lma else 0
    state.Segment[core.lib.HvSegmentCs].Attributes = 0xC9B & ~(0x400 if long else 0) | (0x200 if long else 0)
    vcpu.Regs.Rip = 0xFFFFFFFE
    core.run(core.exit("Cpuid", NextRip=0x1_0000_0000) if by_processor else core.exit("Cpuid", code=CPUID_CODE))
    assert vcpu.Regs.Rip == after


def test_an_instruction_that_cannot_be_decoded_is_refused(core: Core) -> None:
    fake = core.reset()
    fake.Vcpu[0].Regs.Rip = 0x1234
    before = registers(core)
    made = core.exit("HostMemory", Gpa=0x70000000, code=b"\x0f\x0b\xc3")
    core.run(made)
    assert exception(core) == (GP, 0)
    assert registers(core) == faulted(before)
    name, (rip, raw, reason) = core.log()[-1]
    assert (name, rip, raw, core.text(reason)) == ("DecodeFailed", 0x1234, 0x0F0BC3, "unknown instruction")


def test_an_instruction_that_cannot_be_read_is_refused(core: Core) -> None:
    """No page of the tables is RAM: nothing of it may be touched."""
    fake = core.reset()
    fake.Fake[0].State.Cr3 = 0xFEE00000
    core.run(core.exit("Cpuid"))
    assert exception(core) == (GP, 0)
    assert core.log()[-1][0] == "DecodeFailed"
    assert core.text(core.log()[-1][1][2]) == "the instruction cannot be read"


def test_an_instruction_is_read_from_memory(core: Core) -> None:
    fake = core.reset()
    ram = int(core.lib.HvFakeRam(0x2000))
    assert ram
    state, regs = fake.Fake[0].State, fake.Vcpu[0].Regs
    # Real mode: CS base and IP; the instruction ends at the last byte of the page.
    state.Cr0, state.Efer = 0x10, 0
    state.Segment[core.lib.HvSegmentCs].Attributes = 0x9B
    state.Segment[core.lib.HvSegmentCs].Base = ram
    core.ffi.memmove(core.ffi.cast("char *", ram + 0xFFC), b"\x66\x66\x0f\xa2", 4)
    regs.Rip = 0xFFC
    core.run(core.exit("Cpuid"))
    assert exception(core) is None
    assert regs.Rip == 0x1000


def code_page(core: Core, code: bytes, offset: int = 0x100) -> tuple[CData, int]:
    """A page of code of a guest in long mode, and the address of its instruction."""
    ram = int(core.lib.HvFakeRam(0x2000))
    memory = core.ffi.cast("uint8_t *", ram)
    core.ffi.memmove(memory + offset, code, len(code))
    core.lib.gFake.Vcpu[0].Regs.Rip = ram + offset
    return memory, ram + offset


def runs(core: Core, rip: int) -> int:
    """Executes the instruction at an address, which CPUID's exit does not say: by how much RIP goes on."""
    regs = core.lib.gFake.Vcpu[0].Regs
    regs.Rip = rip
    core.run(core.exit("Cpuid"))
    return int(regs.Rip) - rip


def test_code_of_more_than_eight_bytes_is_decoded_each_time(core: Core) -> None:
    core.reset()
    memory, rip = code_page(core, b"\x66" * 13 + CPUID_CODE)
    assert runs(core, rip) == 15
    memory[0x100 + 5] = 0x67
    assert runs(core, rip) == 15
    memory[0x100 + 0] = 0xCC
    core.lib.gFake.Vcpu[0].Regs.Rip = rip
    assert runs(core, rip) == 1


def test_code_on_two_pages_is_decoded_each_time(core: Core) -> None:
    fake = core.reset()
    _, rip = code_page(core, CPUID_CODE + b"\x90" * 13, 0xFF8)
    assert runs(core, rip) == 2
    assert not any(fake.Vcpu[0].Known[index].CsAttributes for index in range(8))


APIC = 0xFEE00000


def store(core: Core, code: bytes, offset: int, base: int = APIC, **regs: int) -> tuple[bool, list[tuple[int, int]]]:
    """A quick store, and what was written."""
    fake = core.lib.gFake
    insn = core.ffi.new("HV_INSN *")
    assert core.lib.HvDecode(code, len(code), 64, insn) == 0
    done = quick(core, "Store", base + offset, insn, **regs)
    return done, [(int(w.Where), int(w.Value)) for w in fake.ApicWrite[0 : fake.ApicWrites]]


STORES = {
    "mov [rdi], esi": b"\x89\x37",
    "mov [rdi], eax": b"\x89\x07",
    "mov [rdi], r11d": b"\x44\x89\x1f",
    "mov dword [rdi], 0x87654321": b"\xc7\x07\x21\x43\x65\x87",
}


@pytest.mark.parametrize("code", STORES.values(), ids=STORES.keys())
def test_a_quick_store_is_the_same_as_a_slow_one(core: Core, code: bytes) -> None:
    for offset in (0xB0, 0x80, 0x380, 0x310, 0x300):
        regs = {"Rax": 0xABC00000055, "Rsi": 0x56, "R11": 0xFFF00000040}
        if offset == 0x300 and code[0] == 0xC7:
            continue  # reserved bits
        core.reset(2)
        done, quickly = store(core, code, offset, **regs)
        assert done and core.lib.gFake.Cpu[0].Exits[core.lib.HvExitApicWrite] == 1
        fake = core.reset(2)
        for name, value in regs.items():
            setattr(fake.Vcpu[0].Regs, name, value)
        core.run(core.exit("NestedFault", Gpa=APIC + offset, FaultFlags=3, code=code))
        assert core.writes("ApicWrite") == quickly and fake.Vcpu[0].Regs.Rip == len(code)


@pytest.mark.parametrize(
    ("code", "offset", "base"),
    [
        (b"\x89\x37", 0xD0, APIC),  # LDR and DFR are kept account of
        (b"\x89\x37", 0xE0, APIC),
        (b"\x89\x37", 0xB0, APIC + 0x1000),  # another page
        (b"\x89\x37", 0xFB0, APIC - 0x1000),
        (b"\x44\x89\x27", 0xB0, APIC),  # R12 and RBP are not there
        (b"\x89\x2f", 0xB0, APIC),
        (b"\x48\x89\x37", 0xB0, APIC),  # 64, 16 and 8 bits
        (b"\x66\x89\x37", 0xB0, APIC),
        (b"\x88\x07", 0xB0, APIC),
        (b"\x87\x37", 0xB0, APIC),  # XCHG, OR
        (b"\x09\x37", 0xB0, APIC),
        (b"\x0f\xa2", 0xB0, APIC),
    ],
)
def test_a_store_that_is_not_plain_is_not_quick(core: Core, code: bytes, offset: int, base: int) -> None:
    core.reset(2)
    assert store(core, code, offset, base) == (False, [])


@pytest.mark.parametrize("icr", [0x4500, 0x4600, 0x8500, 0xC4500, 0x4400, 0x2000])
def test_an_interrupt_command_that_is_no_ordinary_ipi_is_not_quick(core: Core, icr: int) -> None:
    fake = core.reset(2)
    assert store(core, b"\x89\x37", 0x300, Rsi=icr) == (False, [])
    assert store(core, b"\x89\x37", 0x300, Rsi=0xFFFFFFFF_00000840) == (True, [(0x300, 0x840)])
    fake = core.reset(2, x2apic=True)
    assert not quick(core, "Store", APIC + 0xB0, core.ffi.new("HV_INSN *")) and fake.ApicWrites == 0


class Paged:
    """64-bit code at the linear address 0, behind four levels of tables; all of it in the guest's memory."""

    TABLES, CODE, OTHER = 0, 0x4000, 0x5000

    def __init__(self, core: Core) -> None:
        self.core, self.fake = core, core.reset()
        self.ram = int(core.lib.HvFakeRam(0x10000))
        assert self.ram
        self.state, self.regs = self.fake.Fake[0].State, self.fake.Vcpu[0].Regs
        self.state.Cr3 = self.ram
        for level in range(4):
            self.entry(level, self.ram + 0x1000 * (level + 1))

    def entry(self, level: int, frame: int, flags: int = 0x27) -> None:
        """Sets the entry of the top table (0) to the last one (3): present, writable, user, accessed."""
        self.put(0x1000 * level, (frame | flags).to_bytes(8, "little"))

    def put(self, offset: int, data: bytes) -> None:
        self.core.ffi.memmove(self.core.ffi.cast("char *", self.ram + offset), data, len(data))

    def step(self, rip: int = 0x10) -> int | None:
        """CPUID at RIP; gives the length that it was taken to have, None for a fault."""
        self.regs.Rip = rip
        self.fake.Fake[0].Event.Type = self.core.lib.HvEventNone
        self.core.run(self.core.exit("Cpuid"))
        return None if exception(self.core) else int(self.regs.Rip) - rip

    @property
    def known(self) -> bool:
        state = self.state
        code = state.Segment[self.core.lib.HvSegmentCs].Attributes
        vcpu = self.core.ffi.addressof(self.fake.Vcpu[0])
        found = self.core.lib.HvFakeKnown(vcpu, 0x10, state.Cr3, state.Cr4, state.Efer | 1 << 12, code)
        return bool(found)


def test_a_known_instruction_is_not_decoded_again(core: Core) -> None:
    machine = Paged(core)
    machine.put(Paged.CODE + 0x10, b"\x0f\xa2\x90\x90\x90\x90\x90\x90")
    machine.put(Paged.CODE + 0x21, b"\x66\x0f\xa2\x90\x90\x90\x90\x90")
    assert machine.step() == 2
    machine.fake.Vcpu[0].Known[0].Insn.Length = 9  # shows whether it is
    assert machine.step() == 9
    assert machine.step(0x21) == 3
    assert machine.step() == 9


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_a_walk_may_end_in_a_large_page(core: Core, levels: int) -> None:
    machine = Paged(core)
    ram = machine.ram
    # Large pages begin at 0: RIP is the physical address of the code.
    rip = ram + Paged.CODE + 0x10
    shifts = (39, 30, 21, 12)
    for level in range(levels):
        last = level == levels - 1
        index = (rip >> shifts[level]) & 511
        frame = rip >> shifts[level] << shifts[level] if last else ram + 0x1000 * (level + 1)
        machine.put(0x1000 * level + 8 * index, (frame | (0xA7 if last and level < 3 else 0x27)).to_bytes(8, "little"))
    machine.put(Paged.CODE + 0x10, b"\x0f\xa2\x90\x90\x90\x90\x90\x90")
    known = machine.fake.Vcpu[0].Known[rip % 8]
    for level in range(levels):
        assert machine.step(rip) == 2
        known.Insn.Length = 9
        assert machine.step(rip) == 9
        # A change of any entry, here one of a bit that is ignored, and it is decoded again.
        at = machine.core.ffi.cast("UINT64 *", ram + 0x1000 * level)
        at[(rip >> shifts[level]) & 511] ^= 1 << 9
        assert machine.step(rip) == 2


def test_a_known_instruction_is_one_that_a_fetch_would_give_again(core: Core) -> None:
    machine = Paged(core)
    machine.put(Paged.CODE + 0x10, b"\x0f\xa2\x90\x90\x90\x90\x90\x90")
    machine.put(Paged.OTHER + 0x10, b"\x66\x66\x0f\xa2\x90\x90\x90\x90")
    assert not machine.known
    assert machine.step() == 2 and machine.known
    assert machine.step() == 2 and machine.known
    # What comes behind the instruction is no part of it.
    machine.put(Paged.CODE + 0x12, b"\xcc")
    assert machine.known
    # The page, the bytes, and each level of the tables.
    machine.entry(3, machine.ram + Paged.OTHER)
    assert not machine.known and machine.step() == 4 and machine.known
    machine.entry(3, machine.ram + Paged.CODE)
    assert machine.step() == 2
    machine.put(Paged.CODE + 0x10, b"\x66\x0f\xa2")
    assert not machine.known and machine.step() == 3
    for level in range(4):
        machine.entry(level, 0, 0)
        assert not machine.known and machine.step() is None
        machine.entry(level, machine.ram + 0x1000 * (level + 1))
        assert machine.step() == 3 and machine.known


@pytest.mark.parametrize(("name", "value"), [("Cr3", 0x8000), ("Cr4", 0x100020), ("Efer", 0xD00), ("Cs", 0x2FB)])
def test_a_known_instruction_is_one_of_the_same_state(core: Core, name: str, value: int) -> None:
    machine = Paged(core)
    machine.put(Paged.CODE + 0x10, b"\x0f\xa2\x90\x90\x90\x90\x90\x90")
    assert machine.step() == 2 and machine.known
    if name == "Cs":
        machine.state.Segment[core.lib.HvSegmentCs].Attributes = value
    else:
        setattr(machine.state, name, value + (machine.ram if name == "Cr3" else 0))
    assert not machine.known


def test_what_cannot_be_looked_at_again_is_not_known(core: Core) -> None:
    machine = Paged(core)
    # It may end in another page; more than eight bytes; 32-bit code; a conforming segment.
    machine.put(Paged.CODE + 0xFF8, b"\x0f\xa2")
    assert machine.step(0xFF8) == 2
    assert not any(machine.fake.Vcpu[0].Known[index].CsAttributes for index in range(8))
    machine.put(Paged.CODE + 0x10, b"\x66" * 7 + b"\x0f\xa2")
    assert machine.step() == 9 and not machine.known
    machine.put(Paged.CODE + 0x10, b"\x0f\xa2")
    for attributes in (0x49B, 0x29F):
        machine.state.Segment[core.lib.HvSegmentCs].Attributes = attributes
        assert machine.step() == 2 and not machine.known


# The hypervisor's own memory.


def test_writes_to_host_memory_are_dropped(core: Core) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rcx = 0x1122334455667788
    for count in range(1, 8):
        rip = regs.Rip
        # As the backend gives it: the core tells by the address whose memory it is.
        core.run(core.exit("NestedFault", Gpa=0x70000000 + 0x1FFFF8, FaultFlags=3, code=b"\x48\x89\x08"))
        assert exception(core) is None
        assert (regs.Rip, regs.Rcx) == (rip + 3, 0x1122334455667788)
        assert fake.Cpu[0].Exits[core.lib.HvExitHostMemory] == count


HOST = 0x70000000
ARITHMETIC = 0x8D5


def host_write(core: Core, code: bytes, gpa: int = HOST) -> None:
    core.run(core.exit("NestedFault", Gpa=gpa, FaultFlags=3, code=code))


def test_an_exchange_with_host_memory_reads_ones(core: Core) -> None:
    regs = core.reset().Vcpu[0].Regs
    regs.Rcx, regs.Rax = 5, HOST
    host_write(core, b"\x48\x87\x08")
    assert (regs.Rcx, regs.Rip) == (2**64 - 1, 3)
    assert exception(core) is None


def test_flags_are_those_of_memory_that_reads_ones(core: Core) -> None:
    regs = core.reset().Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rflags = 1, HOST, 2
    host_write(core, b"\x01\x08")  # add [rax], ecx: FFFFFFFF + 1
    assert (regs.Rip, regs.Rflags & ARITHMETIC) == (2, 0x55)  # CF PF AF ZF


def test_a_string_of_stores_to_host_memory_ends_with_its_page(core: Core) -> None:
    regs = core.reset().Vcpu[0].Regs
    regs.Rcx, regs.Rdi, regs.Rip, regs.Rflags = 5000, HOST + 0x100, 0x7000, 2 | 1 << 16
    host_write(core, b"\xf3\xaa", HOST + 0x100)
    assert (regs.Rcx, regs.Rdi, regs.Rip, regs.Rflags) == (5000 - 1024, HOST + 0x500, 0x7000, 2)
    for _ in range(3):
        host_write(core, b"\xf3\xaa", int(regs.Rdi))
    assert (regs.Rcx, regs.Rdi, regs.Rip) == (5000 - 0xF00, HOST + 0x1000, 0x7000)
    host_write(core, b"\xf3\xaa", int(regs.Rdi))
    host_write(core, b"\xf3\xaa", int(regs.Rdi))
    assert (regs.Rcx, regs.Rip) == (0, 0x7002)
    assert exception(core) is None


def test_each_element_of_a_string_traps_when_the_guest_steps(core: Core) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rdi, regs.Rip, regs.Rflags = 50, HOST + 0x100, 0x7000, 2 | 1 << 8
    host_write(core, b"\xf3\xaa", HOST + 0x100)
    assert (regs.Rcx, regs.Rip) == (49, 0x7000)
    assert exception(core) == (DB, None)


@pytest.mark.parametrize("code", [b"\x89\x08", b"\x87\x08"])
@pytest.mark.parametrize("gpa", [0x1FFE, 0x2000])
def test_the_part_of_an_operand_that_is_not_host_memory_is_written(core: Core, code: bytes, gpa: int) -> None:
    """The fault is at the first byte of host memory: the one that the processor met first."""
    fake = core.reset()
    ram = int(core.lib.HvFakeRam(0x4000))
    fake.Host.Base, fake.Host.Bytes = (ram + 0x2000, 0x1000) if gpa == 0x2000 else (ram + 0x1000, 0x1000)
    other = 0x1FFE if gpa == 0x2000 else 0x2000
    memory = core.ffi.cast("uint8_t *", ram)
    regs = fake.Vcpu[0].Regs
    regs.Rax, regs.Rcx = ram + 0x1FFE, 0x44332211
    host_write(core, code, ram + gpa)
    assert exception(core) is None
    assert bytes(memory[other : other + 2]) == (b"\x11\x22" if other == 0x1FFE else b"\x33\x44")
    assert bytes(memory[gpa : gpa + 2]) == b"\0\0"
    if code == b"\x87\x08":
        assert regs.Rcx == (0xFFFF0000 if gpa == 0x2000 else 0x0000FFFF)


def tables(core: Core) -> CData:
    """The guest's PML4, and from index 512 on its PDPT with pages of 1 GiB."""
    return core.ffi.cast("UINT64 *", core.lib.gFake.Fake[0].State.Cr3)


@pytest.mark.parametrize(
    ("entry", "cpl", "error"), [(0, 0, 2), (5 | 1 << 7, 3, 7), (3 | 1 << 7, 3, 7), (0x27 | 1 << 7 | 1 << 40, 0, 11)]
)
def test_what_the_guests_own_tables_forbid_is_its_page_fault(core: Core, entry: int, cpl: int, error: int) -> None:
    """The exit came before the other processor changed the tables, or the operand has a second page."""
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rax, regs.Rcx, regs.Rip = HOST, 5, 0x7000
    fake.Fake[0].State.Cpl = cpl
    kept = tables(core)[512 + 1]
    tables(core)[512 + 1] = entry | (1 << 30 if entry else 0)
    before = registers(core)
    host_write(core, b"\x87\x08")
    tables(core)[512 + 1] = kept
    assert exception(core) == (14, error)
    assert fake.Fake[0].State.Cr2 == HOST
    assert registers(core) == before | {"Rflags": before["Rflags"] | 1 << 16}


@pytest.mark.parametrize(
    ("address", "code", "vector"), [(1 << 47, b"\x87\x08", GP), (1 << 47, b"\x48\x87\x4d\x00", 12)]
)
def test_an_address_that_is_not_canonical_is_refused(core: Core, address: int, code: bytes, vector: int) -> None:
    regs = core.reset().Vcpu[0].Regs
    regs.Rax = regs.Rbp = address
    host_write(core, code)
    assert exception(core) == (vector, 0)


def test_a_segment_limit_is_kept(core: Core) -> None:
    fake = core.reset()
    state = fake.Fake[0].State
    state.Segment[core.lib.HvSegmentCs].Attributes = 0x49B  # 32-bit code
    data = state.Segment[core.lib.HvSegmentDs]
    data.Attributes, data.Limit, data.Base = 0x493, 0x1FFF, HOST - 0x1000
    regs = fake.Vcpu[0].Regs
    regs.Rax, regs.Rcx = 0x1000, 5
    host_write(core, b"\x87\x08")
    assert (exception(core), regs.Rcx) == (None, 0xFFFFFFFF)
    regs.Rax = 0x1FFD
    host_write(core, b"\x87\x08")
    assert exception(core) == (GP, 0)


def test_an_operand_that_reaches_a_device_is_refused(core: Core) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rax, regs.Rcx = HOST - 2, 5
    before = registers(core)
    host_write(core, b"\x87\x08")
    assert exception(core) == (GP, 0)
    assert registers(core) == before | {"Rflags": before["Rflags"] | 1 << 16}
    assert core.text(core.log()[-1][1][2]) == "an access that is not carried out"


def test_page_tables_in_host_memory_are_refused(core: Core) -> None:
    core.reset()
    core.run(core.exit("NestedFault", Gpa=0x70000000, FaultFlags=11, code=b"\x48\x89\x08"))
    assert exception(core) == (GP, 0)


@pytest.mark.parametrize(("address", "own"), [(0x6FFFFFFF, 0), (0x70000000, 1), (0x701FFFFF, 1), (0x70200000, 0)])
def test_where_host_memory_ends(core: Core, address: int, own: int) -> None:
    fake = core.reset()
    core.run(core.exit("NestedFault", Gpa=address, FaultFlags=3, code=b"\x48\x89\x08"))
    assert fake.Cpu[0].Exits[core.lib.HvExitHostMemory] == own
    assert fake.Cpu[0].Exits[core.lib.HvExitNestedFault] == 1 - own


def test_the_registers_of_an_iommu_are_host_memory_while_it_protects(core: Core) -> None:
    fake = core.reset()
    unit = fake.Host.Iommu[0]
    unit.Base, unit.End = 0xFED80000, 0xFED84000
    for count, address, own in ((0, 0xFED80018, 0), (1, 0xFED80018, 1), (1, 0xFED83FFF, 1), (1, 0xFED84000, 0)):
        fake.Host.IommuCount = count
        before = fake.Cpu[0].Exits[core.lib.HvExitHostMemory]
        core.run(core.exit("NestedFault", Gpa=address, FaultFlags=3, code=b"\x48\x89\x08"))
        assert fake.Cpu[0].Exits[core.lib.HvExitHostMemory] == before + own, hex(address)


# Hypercalls.


HC_OK, HC_DENIED, HC_BAD_ARGUMENT = 0, 2**64 - 2, 2**64 - 3


@pytest.mark.parametrize(
    ("call", "result"),
    [(0x48760000, 0), (0x48760003, 1), (0x48760001, 0), (0x4876FFFF, 2**64 - 1), (0x48760002, 2**64 - 2)],
)
def test_hypercalls(core: Core, call: int, result: int) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rax, regs.Rip = call, 0x5000
    before = registers(core)
    assert core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9")) == core.lib.HvFakeDone
    assert registers(core) == before | {"Rip": 0x5003, "Rax": result}


@pytest.mark.parametrize(("call", "cpl"), [(0x48760000, 3), (0, 0), (0x148760000, 0), (1, 0)])
def test_what_is_no_hypercall_is_an_invalid_opcode(core: Core, call: int, cpl: int) -> None:
    fake = core.reset()
    fake.Fake[0].State.Cpl = cpl
    fake.Vcpu[0].Regs.Rax = call
    before = registers(core)
    core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9"))
    assert exception(core) == (UD, None)
    assert registers(core) == faulted(before)


def test_only_the_driver_itself_leaves_and_only_before_boot_is_done(core: Core) -> None:
    for rip, done, ended in (
        (0x5000, False, True),
        (0x6000, False, False),
        (0x4FFF, False, False),
        (0x5000, True, False),
    ):
        fake = core.reset(2)
        fake.Host.BootTextBase, fake.Host.BootTextEnd = 0x5000, 0x6000
        if done:
            fake.Vcpu[1].Regs.Rax = 0x48760001
            core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9"), cpu=1)
        regs = fake.Vcpu[0].Regs
        regs.Rax, regs.Rip = 0x48760002, rip
        end = core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9"))
        assert end == (core.lib.HvFakeLeft if ended else core.lib.HvFakeDone)
        assert (fake.Cpu[0].State == core.lib.HvMpNative) == ended
        assert fake.Host.Status.Virtualised == (1 if ended else 2)


SLEEP_PORTS = 0x48760006


def sleep_ports(core: Core, first: int, second: int, cpu: int = 0, rip: int = 0x5000) -> int:
    regs = core.lib.gFake.Vcpu[cpu].Regs
    regs.Rax, regs.R8, regs.R9, regs.Rip = SLEEP_PORTS, first, second, rip
    assert core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9"), cpu=cpu) == core.lib.HvFakeDone
    return int(regs.Rax)


def marked(core: Core) -> list[int]:
    return [port for port in range(1 << 16) if core.lib.gFake.Ports[port // 8] >> port % 8 & 1]


def ready_for_ports(core: Core) -> None:
    host = core.reset(3).Host
    host.BootTextBase, host.BootTextEnd = 0x5000, 0x6000


def test_ports_that_are_found_late_exit_on_every_processor(core: Core) -> None:
    ready_for_ports(core)
    fake = core.lib.gFake
    assert sleep_ports(core, 0x200605, 0x013FFF) == HC_OK
    assert marked(core) == [0x605, 0x3FFF]
    sleep = fake.Host.Sleep
    assert [(sleep.Port[row].Port, sleep.Port[row].Allowed) for row in range(sleep.Count)] == [
        (0x605, 0x20),
        (0x3FFF, 1),
    ]
    assert [(name, values[:2]) for name, values in core.log()] == [("Sleep", [0x605, 0x20]), ("Sleep", [0x3FFF, 1])]
    # The others do it themselves, from their mail.
    assert [fake.Fake[cpu].Guarded for cpu in range(3)] == [True, False, False]
    for cpu in (1, 2):
        core.run(core.exit("Kick"), cpu=cpu)
    assert [fake.Fake[cpu].Guarded for cpu in range(3)] == [True, True, True]
    # Now the map is in use.
    assert sleep_ports(core, 0x200701, 0) == HC_DENIED
    assert marked(core) == [0x605, 0x3FFF]


def test_ports_come_from_the_driver_alone(core: Core) -> None:
    for first, second, cpu, rip, result in (
        (0x200605, 0, 0, 0x6000, HC_DENIED),
        (0x200605, 0, 0, 0x4FFF, HC_DENIED),
        (0x200605, 0, 1, 0x5000, HC_DENIED),
        (0x1200605, 0, 0, 0x5000, HC_BAD_ARGUMENT),
        (0x200605, 1 << 63, 0, 0x5000, HC_BAD_ARGUMENT),
    ):
        ready_for_ports(core)
        assert sleep_ports(core, first, second, cpu, rip) == result
        assert marked(core) == [] and core.lib.gFake.Host.Sleep.Count == 0
    ready_for_ports(core)
    core.lib.gFake.Host.BootDone = 1
    assert sleep_ports(core, 0x200605, 0) == HC_DENIED


def test_boot_done_notes_the_counters_once(core: Core) -> None:
    fake = core.reset(2)
    cpuid(core, 0)
    for _ in range(2):
        fake.Vcpu[0].Regs.Rax = 0x48760001
        core.run(core.exit("Hypercall", code=b"\x0f\x01\xd9"))
        cpuid(core, 0)
    status = core.ffi.cast("UINT64 *", fake.Host.Status)
    noted, counted = status[16:48], status[16 + 64 : 48 + 64]
    assert (noted[core.lib.HvExitCpuid], noted[core.lib.HvExitHypercall]) == (1, 1)
    assert (counted[core.lib.HvExitCpuid], counted[core.lib.HvExitHypercall]) == (3, 2)
    assert fake.Host.Status.BootDone == 1


def test_virtualization_instructions_do_not_exist(core: Core) -> None:
    core.reset()
    core.run(core.exit("VirtInstruction"))
    assert exception(core) == (UD, None)


def test_a_processor_that_stops_takes_all_others_with_it(core: Core) -> None:
    fake = core.reset(4)
    fake.Cpu[2].State = core.lib.HvMpNative
    core.lib.HvMailboxPost(core.ffi.addressof(fake.Cpu[3], "Mailbox"), 0x10000)
    assert core.run(core.exit("EntryFailed"), cpu=1) == core.lib.HvFakeParked
    assert fake.Cpu[1].State == core.lib.HvMpShutdown
    # The third one has mail already, so that somebody has kicked it.
    assert core.writes("Nmi") == [(1, 0)] and not fake.Cpu[2].Mailbox.Word
    assert core.log()[-1][0] == "HostPark"
    for cpu in (0, 3):
        fake.Fake[cpu].PendingNmis = 1
        fake.Cpu[cpu].KickPending = 1
        assert core.run(core.exit("Nmi"), cpu=cpu) == core.lib.HvFakeParked
        assert fake.Cpu[cpu].State == core.lib.HvMpShutdown
        assert core.text(core.log()[-1][1][0]) == "another processor stopped"
    assert core.writes("Nmi") == [(1, 0)], "those that stopped already are left alone"


def test_invd_writes_back(core: Core) -> None:
    fake = core.reset()
    core.run(core.exit("Invd", code=b"\x0f\x08"))
    assert (fake.Wbinvds, fake.Vcpu[0].Regs.Rip) == (1, 2)

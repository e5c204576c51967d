# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvVmxCheckLib: valid states have no finding, and each rule of the table is broken by one field of a valid state."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtools.generated import vmcs
from hvtools.generated.vmx_checks import CORRUPTIONS, RULES
from hvtools.generated.vmx_controls import CONSTANTS as CONTROLS
from tests.unit.c.findings import Finding, read_findings
from tests.unit.c.host import HostLibrary

INDEX = {name: number for number, (name, *_) in enumerate(vmcs.FIELDS.values())}
BITS = {name: {"16": 16, "32": 32}.get(width, 64) for name, width, _ in vmcs.FIELDS.values()}
PARTS = {"control": 1, "host": 2, "guest": 4}
ALL = 7
ONES = (1 << 64) - 1
FAR = 1 << 62
"""Not canonical, and above any physical address width."""

PIN, PROC, PROC2, PROC3, EXIT, ENTRY = (
    {name.removeprefix(prefix): value for name, value in CONTROLS.items() if name.startswith(prefix)}
    for prefix in (
        "HV_VMX_PIN_",
        "HV_VMX_PROC_",
        "HV_VMX_PROC2_",
        "HV_VMX_PROC3_",
        "HV_VMX_EXIT_CTL_",
        "HV_VMX_ENTRY_CTL_",
    )
)
CET, PCIDE, PAE, WP = 1 << 23, 1 << 17, 1 << 5, 1 << 16
PE, PG, NE = 1, 1 << 31, 1 << 5
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
IF, TF, VM = 1 << 9, 1 << 8, 1 << 17
PAT = 0x0007_0406_0007_0406
VALID, ERROR = 1 << 31, 1 << 11
EXTERNAL, NMI, EXCEPTION, SOFTWARE, PRIVILEGED, SOFTWARE_EXCEPTION, OTHER = (
    kind << 8 for kind in (0, 2, 3, 4, 5, 6, 7)
)
STI, MOV_SS, SMI, BLOCK_NMI, ENCLAVE = 1, 2, 4, 8, 16
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")
DATA = ("ES", "DS", "FS", "GS")

State = dict[str, int]


@dataclass(frozen=True)
class Env:
    """A processor with almost all controls."""

    basic: int = 0x00D8_1000_0000_002B
    pin: int = 0xFF_0000_0016
    proc: int = 0xFFFF_FFFE_0400_6172
    proc2: int = 0xFFFF_FFFF_0000_0000
    proc3: int = 0xDF
    exit: int = 0xF7FF_FFFF_0003_6DFB
    exit2: int = 0x8
    entry: int = 0x007D_FFFF_0000_11FB
    misc: int = 0x2004_01E0
    cr0_fixed0: int = PG | NE | PE
    cr0_fixed1: int = 0xFFFF_FFFF
    cr4_fixed0: int = 0x2000
    cr4_fixed1: int = 0x00F7_3FFF
    ept_vpid_cap: int = 0xF01_0673_4141
    vm_func: int = 1
    efer: int = LME | LMA | NXE | 1
    debug_ctl: int = 0xFFC3
    perf_global: int = 0x7_0000_00FF
    bits: int = 40
    linear: int = 48
    host_long: bool = True
    sgx: bool = False


def with_segments(names: tuple[str, ...], rights: int, limit: int, **bases: int) -> State:
    state: State = {}
    for name in names:
        state |= {
            f"GUEST_{name}_ACCESS_RIGHTS": rights,
            f"GUEST_{name}_LIMIT": limit,
            f"GUEST_{name}_BASE": bases.get(name, 0),
        }
    return state


HOST: State = {
    "PINBASED_CTLS": 0x16 | PIN["NMI"] | PIN["VIRTUAL_NMI"],
    "PROCBASED_CTLS": 0x0400_6172 | PROC["SECONDARY"] | PROC["MSR_BITMAPS"],
    "PROCBASED_CTLS2": PROC2["EPT"] | PROC2["VPID"] | PROC2["UNRESTRICTED_GUEST"] | PROC2["RDTSCP"],
    "EXIT_CTLS": 0x0003_6DFB | EXIT["HOST_64"] | EXIT["LOAD_EFER"] | EXIT["LOAD_PAT"] | EXIT["SAVE_DEBUG"],
    "ENTRY_CTLS": 0x11FB | ENTRY["LOAD_EFER"] | ENTRY["LOAD_PAT"] | ENTRY["LOAD_DEBUG"],
    "MSR_BITMAP": 0x3000,
    "VPID": 1,
    "EPT_POINTER": 0x101E,
    "LINK_POINTER": ONES,
    "HOST_CR0": 0x8001_0033,
    "HOST_CR3": 0x4000,
    "HOST_CR4": 0x2668,
    "HOST_EFER": LME | LMA | NXE,
    "HOST_PAT": PAT,
    "HOST_CS_SELECTOR": 0x08,
    "HOST_SS_SELECTOR": 0x10,
    "HOST_TR_SELECTOR": 0x18,
    "HOST_GDTR_BASE": 0x5000,
    "HOST_GS_BASE": ONES << 47 & ONES,
    "HOST_RIP": 0x10_0000,
    "GUEST_PAT": PAT,
    "GUEST_DR7": 0x400,
    "GUEST_RFLAGS": 2,
    "GUEST_CR0": PE | NE | 0x10,
    "GUEST_CR4": 0x2000,
    "GUEST_LDTR_ACCESS_RIGHTS": 0x10000,
    "GUEST_TR_ACCESS_RIGHTS": 0x8B,
    "GUEST_TR_LIMIT": 0x67,
    "GUEST_GDTR_LIMIT": 0xFFFF,
    "GUEST_IDTR_LIMIT": 0xFFF,
    "GUEST_RIP": 0x1000,
}
FLAT = with_segments(SEGMENTS, 0xC093, 0xFFFF_FFFF)
LONG = (
    HOST
    | FLAT
    | {
        "ENTRY_CTLS": HOST["ENTRY_CTLS"] | ENTRY["GUEST_64"],
        "GUEST_EFER": LME | LMA | NXE | 1,
        "GUEST_CR0": 0x8001_0033,
        "GUEST_CR3": 0x1000,
        "GUEST_CR4": 0x2668,
        "GUEST_CS_ACCESS_RIGHTS": 0xA09B,
        "GUEST_CS_SELECTOR": 0x38,
        "GUEST_SS_SELECTOR": 0x30,
        "GUEST_RIP": ONES << 32 & ONES,
    }
)
CLASSIC = LONG | {"PROCBASED_CTLS2": PROC2["EPT"] | PROC2["VPID"]}
PROTECTED = HOST | FLAT | {"GUEST_CS_ACCESS_RIGHTS": 0xC09B, "GUEST_CS_SELECTOR": 0x8, "GUEST_SS_SELECTOR": 0x10}
PAE_PAGING = PROTECTED | {
    "GUEST_CR0": PG | PE | NE,
    "GUEST_CR4": 0x2000 | PAE,
    "GUEST_PDPTE0": 0x1001,
    "GUEST_PDPTE1": 0x2019,
    "GUEST_PDPTE2": ONES & ~1,
}
REAL = (
    HOST
    | with_segments(SEGMENTS, 0x93, 0xFFFF, CS=0xFFFF_0000)
    | {
        "GUEST_CR0": 0x6000_0030,
        "GUEST_CS_ACCESS_RIGHTS": 0x9B,
        "GUEST_CS_SELECTOR": 0xF000,
        "GUEST_LDTR_ACCESS_RIGHTS": 0x82,
        "GUEST_LDTR_LIMIT": 0xFFFF,
        "GUEST_TR_LIMIT": 0xFFFF,
        "GUEST_RIP": 0xFFF0,
    }
)
VIRTUAL_8086 = (
    PROTECTED
    | with_segments(SEGMENTS, 0xF3, 0xFFFF)
    | {"GUEST_RFLAGS": 2 | VM, "GUEST_CS_SELECTOR": 0x1234, "GUEST_CS_BASE": 0x12340, "GUEST_SS_SELECTOR": 0}
)
USER = LONG | {
    "GUEST_CS_ACCESS_RIGHTS": 0xA0FB,
    "GUEST_SS_ACCESS_RIGHTS": 0xC0F3,
    "GUEST_CS_SELECTOR": 0x33,
    "GUEST_SS_SELECTOR": 0x2B,
}
EVERYTHING = LONG | {
    "PINBASED_CTLS": 0xFF,
    "PROCBASED_CTLS": HOST["PROCBASED_CTLS"] | PROC["IO_BITMAPS"] | PROC["TPR_SHADOW"] | PROC["TERTIARY"],
    "PROCBASED_CTLS2": HOST["PROCBASED_CTLS2"]
    | PROC2["APIC_ACCESSES"]
    | PROC2["VIRTUAL_INTERRUPTS"]
    | PROC2["PML"]
    | PROC2["MODE_BASED_EXECUTE"]
    | PROC2["SUB_PAGE"]
    | PROC2["PT_GUEST_PHYSICAL"]
    | PROC2["VMFUNC"]
    | PROC2["VMCS_SHADOWING"]
    | PROC2["VE"]
    | PROC2["TSC_SCALING"],
    "EXIT_CTLS": HOST["EXIT_CTLS"]
    | EXIT["ACKNOWLEDGE"]
    | EXIT["CLEAR_RTIT_CTL"]
    | EXIT["SAVE_PREEMPTION_TIMER"]
    | EXIT["LOAD_PERF_GLOBAL_CTRL"]
    | EXIT["LOAD_CET"]
    | EXIT["LOAD_PKRS"]
    | EXIT["SECONDARY"],
    "ENTRY_CTLS": LONG["ENTRY_CTLS"]
    | ENTRY["LOAD_RTIT_CTL"]
    | ENTRY["LOAD_PERF_GLOBAL_CTRL"]
    | ENTRY["LOAD_BNDCFGS"]
    | ENTRY["LOAD_UINV"]
    | ENTRY["LOAD_CET"]
    | ENTRY["LOAD_PKRS"],
    "IO_BITMAP_A": 0x1000,
    "IO_BITMAP_B": (1 << 40) - 0x1000,
    "POSTED_INTERRUPT_VECTOR": 0xFF,
    "POSTED_INTERRUPT_DESCRIPTOR": 0x40,
    "VM_FUNCTION_CONTROLS": 1,
    "TSC_MULTIPLIER": 1 << 48,
    "TPR_THRESHOLD": 0xFF,
    "EPT_POINTER": 0x105E,
    "EXIT_CTLS2": 8,
    "PROCBASED_CTLS3": 0,
    "EXIT_MSR_STORE_ADDRESS": (1 << 40) - 0x20,
    "EXIT_MSR_STORE_COUNT": 2,
    "EXIT_MSR_LOAD_ADDRESS": 0x1010,
    "EXIT_MSR_LOAD_COUNT": 3,
    "ENTRY_MSR_LOAD_ADDRESS": 0x1010,
    "ENTRY_MSR_LOAD_COUNT": 3,
    "HOST_PERF_GLOBAL_CTRL": 0x7_0000_00FF,
    "GUEST_PERF_GLOBAL_CTRL": 0x7_0000_00FF,
    "CR3_TARGET_COUNT": 4,
    "GUEST_BNDCFGS": (ONES << 47 & ONES) | 3,
}
LEGACY_HOST = PROTECTED | {
    "EXIT_CTLS": HOST["EXIT_CTLS"] & ~EXIT["HOST_64"],
    "HOST_EFER": 0,
    "HOST_CR4": 0x2000,
}
INJECTS_NMI = LONG | {"ENTRY_INTERRUPTION_INFO": VALID | NMI | 2}
INJECTS_EXTERNAL = LONG | {"ENTRY_INTERRUPTION_INFO": VALID | EXTERNAL | 0x40, "GUEST_RFLAGS": 2 | IF}
INJECTS_GP = LONG | {"ENTRY_INTERRUPTION_INFO": VALID | EXCEPTION | ERROR | 13, "ENTRY_EXCEPTION_ERROR": 0xFFFF}
INJECTS_INT = LONG | {"ENTRY_INTERRUPTION_INFO": VALID | SOFTWARE | 0x80, "ENTRY_INSTRUCTION_LENGTH": 2}
STATES: dict[str, State] = {
    "64-bit": LONG,
    "64-bit, null selectors": LONG | with_segments((*DATA, "SS"), 0x10000, 0),
    "64-bit user": USER,
    "64-bit, without unrestricted guest": CLASSIC,
    "compatibility": LONG | {"GUEST_CS_ACCESS_RIGHTS": 0xC09B, "GUEST_RIP": 0x1000},
    "32-bit": PROTECTED,
    "32-bit, PAE paging": PAE_PAGING,
    "16-bit": PROTECTED | with_segments(SEGMENTS, 0x93, 0xFFFF) | {"GUEST_CS_ACCESS_RIGHTS": 0x9B},
    "after INIT": REAL,
    "waits for SIPI": REAL | {"GUEST_ACTIVITY": 3},
    "unreal": REAL | with_segments(DATA, 0xC093, 0xFFFF_FFFF),
    "data in CS": REAL | {"GUEST_CS_ACCESS_RIGHTS": 0x93},
    "virtual-8086": VIRTUAL_8086,
    "everything": EVERYTHING,
    "32-bit host": LEGACY_HOST,
    "halted": LONG | {"GUEST_ACTIVITY": 1, "GUEST_RFLAGS": 2 | IF},
    "halted, interrupt": INJECTS_EXTERNAL | {"GUEST_ACTIVITY": 1},
    "shut down": LONG | {"GUEST_ACTIVITY": 2},
    "NMI": INJECTS_NMI,
    "interrupt": INJECTS_EXTERNAL,
    "#GP": INJECTS_GP,
    "INT n": INJECTS_INT,
    "after STI": LONG | {"GUEST_INTERRUPTIBILITY": STI, "GUEST_RFLAGS": 2 | IF},
    "after MOV SS, stepping": LONG
    | {"GUEST_INTERRUPTIBILITY": MOV_SS, "GUEST_RFLAGS": 2 | TF, "GUEST_PENDING_DEBUG": 0x4000},
    "no event": LONG | {"ENTRY_INTERRUPTION_INFO": 0x7FFF_FFFF},
}
HOSTS = {"32-bit host": Env(host_long=False)}
"""Where a state needs another processor than the usual one."""

ENV_FIELDS = {
    "basic": "Basic",
    "pin": "Pin",
    "proc": "Proc",
    "proc2": "Proc2",
    "proc3": "Proc3",
    "exit": "Exit",
    "exit2": "Exit2",
    "entry": "Entry",
    "misc": "Misc",
    "cr0_fixed0": "Cr0Fixed0",
    "cr0_fixed1": "Cr0Fixed1",
    "cr4_fixed0": "Cr4Fixed0",
    "cr4_fixed1": "Cr4Fixed1",
    "ept_vpid_cap": "EptVpidCap",
    "vm_func": "VmFunc",
    "efer": "EferValid",
    "debug_ctl": "DebugCtlValid",
    "perf_global": "PerfGlobalValid",
    "bits": "AddressBits",
    "linear": "LinearBits",
    "host_long": "HostLong",
    "sgx": "Sgx",
}


class Checker:
    """The library over states by field name."""

    def __init__(self, hv: HostLibrary) -> None:
        self.hv = hv
        self.image: Any = hv.ffi.new("HV_VMCS_IMAGE *")

    def __call__(self, state: State, env: Env | None = None, parts: int = ALL) -> list[Finding]:
        chosen = env or Env()
        where = self.hv.ffi.new("HV_VMX_CHECK_ENV *")
        for mine, theirs in ENV_FIELDS.items():
            setattr(where, theirs, getattr(chosen, mine))
        where.Cr3Valid = (1 << chosen.bits) - 1
        self.hv.ffi.memmove(self.image, bytes(self.hv.ffi.sizeof("HV_VMCS_IMAGE")), self.hv.ffi.sizeof("HV_VMCS_IMAGE"))
        for name, value in state.items():
            self.image.Value[INDEX[name]] = value
        count = self.hv.lib.HvVmxCheck(self.image, where, parts, self.hv.ffi.NULL, 0)
        found = self.hv.ffi.new("HV_FINDING[]", count + 1)
        found[count].Value = 0x5A5A
        assert self.hv.lib.HvVmxCheck(self.image, where, parts, found, count) == count
        assert found[count].Value == 0x5A5A, "written beyond Max"
        for item in found[0:count]:
            assert vmcs.FIELDS[item.Field][0] == self.hv.ffi.string(item.FieldName).decode()
        return read_findings(self.hv, found[0:count], RULES)


@pytest.fixture(scope="module")
def check(hv: HostLibrary) -> Checker:
    return Checker(hv)


@dataclass(frozen=True)
class Mutation:
    """One field of a valid state that breaks one rule, blamed on `blamed` (the field itself by default)."""

    path: str
    new: Callable[[int], int]
    state: str = "64-bit"
    blamed: str = ""
    change: State = field(default_factory=dict)
    env: Env = field(default_factory=Env)


def to(path: str, value: int, state: str = "64-bit", **rest: Any) -> Mutation:  # noqa: ANN401
    return Mutation(path, lambda _: value, state, **rest)


def plus(path: str, bits: int, state: str = "64-bit", **rest: Any) -> Mutation:  # noqa: ANN401
    return Mutation(path, lambda old: old | bits, state, **rest)


def minus(path: str, bits: int, state: str = "64-bit", **rest: Any) -> Mutation:  # noqa: ANN401
    return Mutation(path, lambda old: old & ~bits, state, **rest)


def page(*paths: str, alignment: int = 0x1000) -> list[Mutation]:
    """An address that is not aligned, one that is above the width."""
    return [to(path, value, "everything") for path in paths for value in (alignment >> 1, 1, 1 << 40, FAR)]


def rights(names: tuple[str, ...], state: str, change: Callable[[str, str], Mutation]) -> list[Mutation]:
    """The same change of the access rights of several segments."""
    return [change(f"GUEST_{name}_ACCESS_RIGHTS", state) for name in names]


def without(name: str, *controls: str) -> State:
    """A change of `everything`: some secondary controls are off."""
    value = EVERYTHING["PROCBASED_CTLS2"]
    for control in controls:
        value &= ~PROC2[control]
    return {"PROCBASED_CTLS2": value | PROC2.get(name, 0)}


NEED_EPT = ("EPT", "PML", "MODE_BASED_EXECUTE", "SUB_PAGE", "PT_GUEST_PHYSICAL", "UNRESTRICTED_GUEST", "VMFUNC")
LOAD_CET = {"ENTRY_CTLS": LONG["ENTRY_CTLS"] | ENTRY["LOAD_CET"]}
EVENT = "ENTRY_INTERRUPTION_INFO"
BLOCKING = "GUEST_INTERRUPTIBILITY"


def event(info: int, state: str = "64-bit", **rest: Any) -> Mutation:  # noqa: ANN401
    return to(EVENT, VALID | info, state, **rest)


MUTATIONS: dict[str, list[Mutation]] = {
    # SDM 27.2.1.1
    "pin-allowed": [minus("PINBASED_CTLS", 2), plus("PINBASED_CTLS", 1 << 8)],
    "proc-allowed": [minus("PROCBASED_CTLS", 2), plus("PROCBASED_CTLS", 1)],
    "proc2-allowed": [plus("PROCBASED_CTLS2", PROC2["RDRAND"], env=Env(proc2=0xAA_0000_0000))],
    "proc3-allowed": [to("PROCBASED_CTLS3", 1 << bit, "everything") for bit in (5, 8, 63)],
    "cr3-target-count": [to("CR3_TARGET_COUNT", count) for count in (5, 0xFFFF_FFFF)],
    "io-bitmaps": page("IO_BITMAP_A", "IO_BITMAP_B"),
    "msr-bitmap": [*page("MSR_BITMAP"), to("MSR_BITMAP", 1 << 32, env=Env(basic=Env.basic | 1 << 48))],
    "virtual-apic-page": page("VIRTUAL_APIC_ADDRESS"),
    "tpr-threshold": [
        to("TPR_THRESHOLD", 0x10, change={"PROCBASED_CTLS": HOST["PROCBASED_CTLS"] | PROC["TPR_SHADOW"]})
    ],
    "virtual-nmi": [minus("PINBASED_CTLS", PIN["NMI"])],
    "nmi-window": [
        plus("PROCBASED_CTLS", PROC["NMI_WINDOW"], change={"PINBASED_CTLS": 0x16}),
        minus(
            "PINBASED_CTLS",
            PIN["VIRTUAL_NMI"],
            change={"PROCBASED_CTLS": HOST["PROCBASED_CTLS"] | PROC["NMI_WINDOW"]},
            blamed="PROCBASED_CTLS",
        ),
    ],
    "apic-access-page": page("APIC_ACCESS_ADDRESS"),
    "apic-tpr-shadow": [
        *(plus("PROCBASED_CTLS2", PROC2[name]) for name in ("X2APIC", "APIC_REGISTERS")),
        minus("PROCBASED_CTLS", PROC["TPR_SHADOW"], "everything", blamed="PROCBASED_CTLS2"),
    ],
    "apic-modes": [plus("PROCBASED_CTLS2", PROC2["X2APIC"], "everything")],
    "virtual-interrupt-exiting": [
        minus("PINBASED_CTLS", PIN["EXTERNAL_INTERRUPT"], "everything", blamed="PROCBASED_CTLS2")
    ],
    "posted-delivery": [
        minus(
            "PROCBASED_CTLS2",
            PROC2["VIRTUAL_INTERRUPTS"],
            "everything",
            blamed="PINBASED_CTLS",
            change={"TPR_THRESHOLD": 0},
        )
    ],
    "posted-acknowledge": [minus("EXIT_CTLS", EXIT["ACKNOWLEDGE"], "everything")],
    "posted-vector": [to("POSTED_INTERRUPT_VECTOR", 0x100, "everything")],
    "posted-descriptor": page("POSTED_INTERRUPT_DESCRIPTOR", alignment=64),
    "vpid-zero": [to("VPID", 0)],
    "ept-memory-type": [
        *(to("EPT_POINTER", 0x1018 | kind) for kind in (1, 2, 3, 4, 5, 7)),
        to("EPT_POINTER", 0x1018, env=Env(ept_vpid_cap=Env.ept_vpid_cap & ~(1 << 8))),
    ],
    "ept-walk-length": [to("EPT_POINTER", 0x1006 | length << 3) for length in (0, 2, 4, 7)],
    "ept-accessed-dirty": [plus("EPT_POINTER", 1 << 6, env=Env(ept_vpid_cap=Env.ept_vpid_cap & ~(1 << 21)))],
    "ept-shadow-stack": [plus("EPT_POINTER", 1 << 7)],
    "ept-reserved": [plus("EPT_POINTER", 1 << bit) for bit in (8, 11, 40, 63)],
    "pml-ept": [plus("PROCBASED_CTLS2", PROC2["PML"], "everything", change=without("", *NEED_EPT))],
    "pml-address": page("PML_ADDRESS"),
    "unrestricted-ept": [
        plus("PROCBASED_CTLS2", PROC2["UNRESTRICTED_GUEST"], "everything", change=without("", *NEED_EPT))
    ],
    "mode-based-execute-ept": [
        plus("PROCBASED_CTLS2", PROC2["MODE_BASED_EXECUTE"], "everything", change=without("", *NEED_EPT))
    ],
    "sub-page-ept": [plus("PROCBASED_CTLS2", PROC2["SUB_PAGE"], "everything", change=without("", *NEED_EPT))],
    "sub-page-pointer": page("SPPT_POINTER"),
    "trace-guest-physical": [
        plus("PROCBASED_CTLS2", PROC2["PT_GUEST_PHYSICAL"], "everything", change=without("", *NEED_EPT)),
        minus("ENTRY_CTLS", ENTRY["LOAD_RTIT_CTL"], "everything", blamed="PROCBASED_CTLS2"),
        minus("EXIT_CTLS", EXIT["CLEAR_RTIT_CTL"], "everything", blamed="PROCBASED_CTLS2"),
    ],
    "vm-functions": [to("VM_FUNCTION_CONTROLS", 3, "everything"), to("VM_FUNCTION_CONTROLS", FAR, "everything")],
    "eptp-switching-ept": [
        plus(
            "PROCBASED_CTLS2",
            PROC2["VMFUNC"],
            "everything",
            blamed="VM_FUNCTION_CONTROLS",
            change=without("", *NEED_EPT),
        ),
        to("VM_FUNCTION_CONTROLS", 1, "everything", change=without("VMFUNC", *NEED_EPT) | {"VM_FUNCTION_CONTROLS": 0}),
    ],
    "eptp-list": page("EPTP_LIST_ADDRESS"),
    "shadow-bitmaps": page("VMREAD_BITMAP", "VMWRITE_BITMAP"),
    "ve-information": page("VE_INFORMATION_ADDRESS"),
    "tsc-multiplier": [to("TSC_MULTIPLIER", 0, "everything")],
    # SDM 27.2.1.2
    "exit-allowed": [minus("EXIT_CTLS", 1), plus("EXIT_CTLS", 1 << 27)],
    "exit2-allowed": [to("EXIT_CTLS2", 1 << bit, "everything") for bit in (0, 4, 63)],
    "exit-preemption-timer": [
        plus("EXIT_CTLS", EXIT["SAVE_PREEMPTION_TIMER"]),
        minus("PINBASED_CTLS", PIN["PREEMPTION_TIMER"], "everything", blamed="EXIT_CTLS"),
    ],
    "exit-msr-store": [
        to("EXIT_MSR_STORE_ADDRESS", (1 << 40) - 0x10, "everything"),
        to("EXIT_MSR_STORE_COUNT", 3, "everything", blamed="EXIT_MSR_STORE_ADDRESS"),
        *page("EXIT_MSR_STORE_ADDRESS", alignment=16),
    ],
    "exit-msr-load": page("EXIT_MSR_LOAD_ADDRESS", alignment=16),
    # SDM 27.2.1.3
    "entry-allowed": [minus("ENTRY_CTLS", 1), plus("ENTRY_CTLS", 1 << 17)],
    "entry-msr-load": page("ENTRY_MSR_LOAD_ADDRESS", alignment=16),
    "entry-smm": [plus("ENTRY_CTLS", ENTRY[name]) for name in ("SMM", "DEACTIVATE_DUAL_MONITOR")],
    "event-type": [event(1 << 8), event(OTHER, env=Env(proc=Env.proc & ~(PROC["MONITOR_TRAP_FLAG"] << 32)))],
    "event-vector": [event(NMI | 3), event(EXCEPTION | 32), event(OTHER | 1)],
    "event-error": [
        *(event(EXCEPTION | vector) for vector in (8, 10, 11, 12, 13, 14, 17, 21)),
        *(event(EXCEPTION | ERROR | vector) for vector in (0, 1, 6, 16, 18)),
        event(EXCEPTION | ERROR | 21, env=Env(cr4_fixed1=Env.cr4_fixed1 & ~CET)),
        event(NMI | ERROR | 2),
        event(EXCEPTION | ERROR | 13, "after INIT"),
        event(NMI | ERROR | 2, env=Env(basic=Env.basic | 1 << 56)),
    ],
    "event-reserved": [event(NMI | 2 | 1 << bit) for bit in (12, 13, 30)],
    "event-error-code": [to("ENTRY_EXCEPTION_ERROR", value, "#GP") for value in (0x10000, 0xFFFF_FFFF)],
    "event-length": [
        *(to("ENTRY_INSTRUCTION_LENGTH", length, "INT n") for length in (0, 16)),
        *(
            event(kind | 3, change={"ENTRY_INSTRUCTION_LENGTH": 16}, blamed="ENTRY_INSTRUCTION_LENGTH")
            for kind in (SOFTWARE, PRIVILEGED, SOFTWARE_EXCEPTION)
        ),
    ],
    # SDM 27.2.2
    "host-cr0": [minus("HOST_CR0", bit) for bit in (PE, NE, PG)] + [plus("HOST_CR0", 1 << 32)],
    "host-cr4": [minus("HOST_CR4", 0x2000), plus("HOST_CR4", 1 << 15), plus("HOST_CR4", FAR)],
    "host-cet": [
        plus("HOST_CR4", CET, change={"HOST_CR0": PG | NE | PE}),
        minus("HOST_CR0", WP, change={"HOST_CR4": HOST["HOST_CR4"] | CET}, blamed="HOST_CR4"),
    ],
    "host-cr3": [plus("HOST_CR3", 1 << 40), plus("HOST_CR3", 1 << 63)],
    "host-sysenter": [to("HOST_SYSENTER_ESP", FAR), to("HOST_SYSENTER_EIP", 1 << 47)],
    "host-perf-global-ctrl": [plus("HOST_PERF_GLOBAL_CTRL", 1 << bit, "everything") for bit in (8, 35, 63)],
    "host-pat": [to("HOST_PAT", kind << 8 * entry) for kind in (2, 3, 8, 0x80) for entry in range(8)],
    "host-efer-reserved": [plus("HOST_EFER", 1 << bit) for bit in (1, 12, 63)],
    "host-efer-mode": [
        minus("HOST_EFER", LME),
        minus("HOST_EFER", LMA),
        to("HOST_EFER", LMA, "32-bit host", env=Env(host_long=False)),
    ],
    "host-s-cet": [to("HOST_S_CET", value, "everything") for value in (1 << 6, 1 << 9, 3 << 10, FAR)],
    "host-ssp": [to("HOST_SSP", value, "everything") for value in (1, 2, FAR)],
    "host-isst": [to("HOST_ISST_ADDR", FAR, "everything")],
    "host-pkrs": [to("HOST_PKRS", 1 << 32, "everything")],
    # SDM 27.2.3
    "host-selector": [plus(f"HOST_{name}_SELECTOR", bit) for name in (*SEGMENTS, "TR") for bit in (1, 2, 4)],
    "host-selector-null": [to("HOST_CS_SELECTOR", 0), to("HOST_TR_SELECTOR", 0)],
    "host-ss-null": [to("HOST_SS_SELECTOR", 0, "32-bit host", env=Env(host_long=False))],
    "host-base": [to(f"HOST_{name}_BASE", FAR) for name in ("FS", "GS", "GDTR", "IDTR", "TR")],
    # SDM 27.2.4
    "host-long-mode": [
        minus("EXIT_CTLS", EXIT["HOST_64"]),
        plus("EXIT_CTLS", EXIT["HOST_64"], "32-bit host", env=Env(host_long=False)),
    ],
    "guest-long-mode": [
        plus(
            "ENTRY_CTLS",
            ENTRY["GUEST_64"],
            "32-bit host",
            env=Env(host_long=False),
            change={"GUEST_CR0": PG | PE | NE, "GUEST_CR4": 0x2000 | PAE, "ENTRY_CTLS": 0x11FB},
        )
    ],
    "host-pae": [minus("HOST_CR4", PAE)],
    "host-pcide": [plus("HOST_CR4", PCIDE, "32-bit host", env=Env(host_long=False))],
    "host-rip": [
        to("HOST_RIP", FAR),
        to("HOST_RIP", 1 << 47),
        to("HOST_RIP", 1 << 32, "32-bit host", env=Env(host_long=False)),
    ],
    # SDM 27.3.1.1
    "guest-cr0": [
        minus("GUEST_CR0", NE),
        plus("GUEST_CR0", 1 << 32),
        minus("GUEST_CR0", PG, "32-bit", change={"PROCBASED_CTLS2": PROC2["EPT"], "GUEST_CR0": PG | PE | NE}),
    ],
    "guest-cr0-pg": [minus("GUEST_CR0", PE), plus("GUEST_CR0", PG, "after INIT")],
    "guest-cr4": [minus("GUEST_CR4", 0x2000), plus("GUEST_CR4", 1 << 15), plus("GUEST_CR4", FAR)],
    "guest-cet": [
        plus("GUEST_CR4", CET, change={"GUEST_CR0": PG | NE | PE}),
        minus("GUEST_CR0", WP, change={"GUEST_CR4": LONG["GUEST_CR4"] | CET}, blamed="GUEST_CR4"),
    ],
    "guest-debugctl": [to("GUEST_DEBUGCTL", 1 << bit) for bit in (3, 5, 16, 63)],
    "guest-ia32e-paging": [minus("GUEST_CR0", PG)],
    "guest-ia32e-pae": [minus("GUEST_CR4", PAE)],
    "guest-pcide": [plus("GUEST_CR4", PCIDE, "32-bit")],
    "guest-cr3": [plus("GUEST_CR3", 1 << 40), plus("GUEST_CR3", 1 << 63)],
    "guest-dr7": [plus("GUEST_DR7", 1 << 32)],
    "guest-sysenter": [to("GUEST_SYSENTER_ESP", FAR), to("GUEST_SYSENTER_EIP", 1 << 47)],
    "guest-s-cet": [to("GUEST_S_CET", value, change=LOAD_CET) for value in (1 << 6, 1 << 9, 3 << 10, FAR)],
    "guest-ssp": [to("GUEST_SSP", value, change=LOAD_CET) for value in (1, 2, FAR)],
    "guest-isst": [to("GUEST_ISST_ADDR", FAR, change=LOAD_CET)],
    "guest-perf-global-ctrl": [plus("GUEST_PERF_GLOBAL_CTRL", 1 << bit, "everything") for bit in (8, 35, 63)],
    "guest-pat": [to("GUEST_PAT", kind << 8 * entry) for kind in (2, 3, 8, 0x80) for entry in range(8)],
    "guest-efer-reserved": [plus("GUEST_EFER", 1 << bit) for bit in (1, 12, 63)],
    "guest-efer-lma": [plus("GUEST_EFER", LMA, "32-bit"), plus("GUEST_EFER", LMA, "after INIT")],
    "guest-efer-lme": [minus("GUEST_EFER", LME), plus("GUEST_EFER", LME, "32-bit, PAE paging")],
    "guest-bndcfgs": [to("GUEST_BNDCFGS", value, "everything") for value in (4, 0x800, FAR)],
    "guest-uinv": [to("GUEST_UINV", 0x100, "everything")],
    "guest-pkrs": [to("GUEST_PKRS", 1 << 32, "everything")],
    # SDM 27.3.1.2
    "guest-tr-selector": [plus("GUEST_TR_SELECTOR", 4)],
    "guest-ldtr-selector": [plus("GUEST_LDTR_SELECTOR", 4, "after INIT")],
    "guest-ss-rpl": [
        plus("GUEST_CS_SELECTOR", 3, "64-bit, without unrestricted guest", blamed="GUEST_SS_SELECTOR"),
    ],
    "guest-v86-base": [
        *(plus(f"GUEST_{name}_BASE", 1 << 20, "virtual-8086") for name in SEGMENTS),
        to("GUEST_DS_SELECTOR", 1, "virtual-8086", blamed="GUEST_DS_BASE"),
    ],
    "guest-v86-limit": [to(f"GUEST_{name}_LIMIT", 0xFFFE, "virtual-8086") for name in SEGMENTS],
    "guest-v86-rights": rights(SEGMENTS, "virtual-8086", lambda path, state: to(path, 0x93, state)),
    "guest-base-canonical": [
        *(to(f"GUEST_{name}_BASE", FAR) for name in ("FS", "GS", "TR")),
        to("GUEST_LDTR_BASE", FAR, "after INIT"),
    ],
    "guest-base-high": [to(f"GUEST_{name}_BASE", 1 << 32) for name in ("ES", "CS", "SS", "DS")],
    "guest-cs-type": [
        *(to("GUEST_CS_ACCESS_RIGHTS", 0xA090 | kind) for kind in (0, 2, 4, 7, 8, 10, 14)),
        to("GUEST_CS_ACCESS_RIGHTS", 0xA093, "64-bit, without unrestricted guest"),
    ],
    "guest-ss-type": [to("GUEST_SS_ACCESS_RIGHTS", 0xC090 | kind) for kind in (0, 1, 2, 5, 9, 11, 15)],
    "guest-data-accessed": rights(DATA, "64-bit", lambda path, state: minus(path, 1, state)),
    "guest-data-readable": rights(DATA, "64-bit", lambda path, state: to(path, 0xC099, state)),
    "guest-segment-s": rights(SEGMENTS, "64-bit", lambda path, state: minus(path, 0x10, state)),
    "guest-cs-dpl": [
        to("GUEST_CS_ACCESS_RIGHTS", 0xA0BB),
        to("GUEST_CS_ACCESS_RIGHTS", 0xA0FF),
        to("GUEST_CS_ACCESS_RIGHTS", 0xB3, "data in CS"),
        to("GUEST_SS_ACCESS_RIGHTS", 0xC0B3, blamed="GUEST_CS_ACCESS_RIGHTS"),
    ],
    "guest-ss-dpl": [
        to(
            "GUEST_SS_ACCESS_RIGHTS",
            0xC0B3,
            "64-bit, without unrestricted guest",
            change={"GUEST_CS_ACCESS_RIGHTS": 0xA09F},
        ),
    ],
    "guest-ss-dpl-real": [to("GUEST_SS_ACCESS_RIGHTS", 0xB3, "after INIT", change={"GUEST_CS_ACCESS_RIGHTS": 0x9F})],
    "guest-data-dpl": [
        *(
            plus(
                f"GUEST_{name}_SELECTOR", 3, "64-bit, without unrestricted guest", blamed=f"GUEST_{name}_ACCESS_RIGHTS"
            )
            for name in DATA
        ),
    ],
    "guest-segment-p": rights(SEGMENTS, "64-bit", lambda path, state: minus(path, 0x80, state)),
    "guest-segment-reserved": [
        plus(f"GUEST_{name}_ACCESS_RIGHTS", 1 << bit) for name in SEGMENTS for bit in (8, 11, 17, 31)
    ],
    "guest-cs-d": [plus("GUEST_CS_ACCESS_RIGHTS", 0x4000)],
    "guest-segment-g": [
        *(to(f"GUEST_{name}_LIMIT", 0xFFFF_FFFE, blamed=f"GUEST_{name}_ACCESS_RIGHTS") for name in SEGMENTS),
        *rights(SEGMENTS, "64-bit", lambda path, state: minus(path, 0x8000, state)),
    ],
    "guest-tr-type": [
        *(to("GUEST_TR_ACCESS_RIGHTS", 0x80 | kind) for kind in (0, 2, 3, 9, 15)),
        to("GUEST_TR_ACCESS_RIGHTS", 0x81, "32-bit"),
    ],
    "guest-tr-usable": [plus("GUEST_TR_ACCESS_RIGHTS", 0x10000)],
    "guest-ldtr-type": [to("GUEST_LDTR_ACCESS_RIGHTS", 0x80 | kind, "after INIT") for kind in (0, 3, 11)],
    "guest-system-s": [plus("GUEST_TR_ACCESS_RIGHTS", 0x10), plus("GUEST_LDTR_ACCESS_RIGHTS", 0x10, "after INIT")],
    "guest-system-p": [minus("GUEST_TR_ACCESS_RIGHTS", 0x80), minus("GUEST_LDTR_ACCESS_RIGHTS", 0x80, "after INIT")],
    "guest-system-reserved": [
        *(plus("GUEST_TR_ACCESS_RIGHTS", 1 << bit) for bit in (8, 11, 17, 31)),
        plus("GUEST_LDTR_ACCESS_RIGHTS", 1 << 8, "after INIT"),
    ],
    "guest-system-g": [
        plus("GUEST_TR_ACCESS_RIGHTS", 0x8000),
        to("GUEST_TR_LIMIT", 1 << 20, blamed="GUEST_TR_ACCESS_RIGHTS"),
        to("GUEST_LDTR_LIMIT", 1 << 20, "after INIT", blamed="GUEST_LDTR_ACCESS_RIGHTS"),
    ],
    # SDM 27.3.1.3
    "guest-table-base": [to("GUEST_GDTR_BASE", FAR), to("GUEST_IDTR_BASE", 1 << 47)],
    "guest-table-limit": [plus("GUEST_GDTR_LIMIT", 1 << 16), plus("GUEST_IDTR_LIMIT", 1 << 31)],
    # SDM 27.3.1.4
    "guest-rip": [
        to("GUEST_RIP", FAR),
        to("GUEST_RIP", ONES << 49 & ONES),
        to("GUEST_RIP", 1 << 32, "32-bit"),
        to("GUEST_RIP", 1 << 32, "compatibility"),
    ],
    "guest-rflags-reserved": [*(plus("GUEST_RFLAGS", 1 << bit) for bit in (3, 5, 15, 22, 63)), to("GUEST_RFLAGS", 0)],
    "guest-rflags-vm": [plus("GUEST_RFLAGS", VM), plus("GUEST_RFLAGS", VM, "after INIT")],
    "guest-rflags-if": [minus("GUEST_RFLAGS", IF, "interrupt"), event(EXTERNAL | 0x40, blamed="GUEST_RFLAGS")],
    # SDM 27.3.1.5
    "activity-value": [
        to("GUEST_ACTIVITY", 4),
        *(to("GUEST_ACTIVITY", 1 + bit, env=Env(misc=Env.misc & ~(1 << 6 + bit))) for bit in range(3)),
    ],
    "activity-hlt": [to("GUEST_ACTIVITY", 1, "64-bit user")],
    "activity-blocking": [to("GUEST_ACTIVITY", state, "after STI") for state in (1, 2, 3)],
    "activity-event": [
        to("GUEST_ACTIVITY", 2, "interrupt"),
        to("GUEST_ACTIVITY", 3, "NMI"),
        to("GUEST_ACTIVITY", 1, "#GP"),
        to("GUEST_ACTIVITY", 1, "INT n"),
    ],
    "blocking-reserved": [plus(BLOCKING, 1 << bit) for bit in (5, 31)],
    "blocking-both": [plus(BLOCKING, MOV_SS, "after STI")],
    "blocking-sti": [plus(BLOCKING, STI), minus("GUEST_RFLAGS", IF, "after STI", blamed=BLOCKING)],
    "blocking-external": [
        plus(BLOCKING, STI, "interrupt"),
        plus(BLOCKING, MOV_SS, "interrupt"),
        event(EXTERNAL | 0x40, "after STI", blamed=BLOCKING),
    ],
    "blocking-nmi-event": [plus(BLOCKING, MOV_SS, "NMI")],
    "blocking-smi": [plus(BLOCKING, SMI)],
    "blocking-virtual-nmi": [plus(BLOCKING, BLOCK_NMI, "NMI")],
    "blocking-enclave": [
        plus(BLOCKING, ENCLAVE),
        plus(BLOCKING, ENCLAVE, env=Env(sgx=True), change={BLOCKING: MOV_SS}),
    ],
    "pending-debug-reserved": [to("GUEST_PENDING_DEBUG", 1 << bit) for bit in (4, 10, 13, 15, 17, 63)],
    "pending-debug-step": [
        to("GUEST_PENDING_DEBUG", 0x4000, "after STI"),
        to("GUEST_PENDING_DEBUG", 0x4000, "halted"),
        to("GUEST_PENDING_DEBUG", 0, "after MOV SS, stepping"),
        to("GUEST_DEBUGCTL", 2, "after MOV SS, stepping", blamed="GUEST_PENDING_DEBUG"),
    ],
    "link-pointer": [to("LINK_POINTER", value) for value in (1, 0x800, 1 << 40, ONES - 1)],
    # SDM 27.3.1.6
    "guest-pdpte": [
        to(f"GUEST_PDPTE{entry}", 1 | 1 << bit, "32-bit, PAE paging")
        for entry in range(4)
        for bit in (1, 2, 5, 8, 40, 63)
    ],
}


def test_every_rule_has_a_mutation() -> None:
    assert list(MUTATIONS) == list(RULES)


@pytest.mark.parametrize("state", STATES)
def test_valid_states_have_no_finding(check: Checker, state: str) -> None:
    assert check(STATES[state], HOSTS.get(state)) == []


@pytest.mark.parametrize(
    ("rule", "mutation"),
    [(rule, mutation) for rule, mutations in MUTATIONS.items() for mutation in mutations],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
def test_one_changed_field_breaks_exactly_its_rule(check: Checker, rule: str, mutation: Mutation) -> None:
    state = STATES[mutation.state] | mutation.change
    assert check(state, mutation.env) == []
    broken = state | {mutation.path: mutation.new(state.get(mutation.path, 0))}
    blamed = mutation.blamed or mutation.path
    expected = [Finding(rule, blamed, broken.get(blamed, 0))]
    assert check(broken, mutation.env) == expected
    assert mutation.path in RULES[rule].fields or mutation.path in ENABLES
    part = PARTS[RULES[rule].part]
    assert check(broken, mutation.env, part) == expected
    assert check(broken, mutation.env, ALL & ~part) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_breaks_exactly_its_rule(check: Checker, name: str) -> None:
    item = CORRUPTIONS[name]
    firmware = LONG | {"GUEST_RIP": 0x1000}
    old = firmware.get(item.field, 0)
    new = old & ~item.clear | item.set
    assert new != old
    assert check(firmware | {item.field: new}) == [Finding(item.rule, item.field, new)]


def test_there_are_enough_corruptions_of_each_part() -> None:
    parts = [RULES[item.rule].part for item in CORRUPTIONS.values()]
    assert len(parts) >= 20 and min(parts.count(part) for part in PARTS) >= 8


ENABLES = {"PINBASED_CTLS", "PROCBASED_CTLS", "PROCBASED_CTLS2", "EXIT_CTLS", "ENTRY_CTLS", EVENT}
"""Fields that decide whether others are looked at at all."""
MODE = (
    ENABLES
    | {"GUEST_CR0", "GUEST_CR4", "GUEST_RFLAGS", "VM_FUNCTION_CONTROLS", "GUEST_ACTIVITY", BLOCKING}
    | {f"GUEST_{name}_ACCESS_RIGHTS" for name in (*SEGMENTS, "LDTR", "TR")}
)
"""Fields that, beside these, select the rules for others: modes, events, usable segments, the type of CS."""


@settings(max_examples=3000)
@given(data=st.data())
def test_a_random_field_is_blamed_by_itself_or_by_what_is_tied_to_it(check: Checker, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(sorted(STATES)))
    state = STATES[chosen]
    name = data.draw(st.sampled_from(sorted(INDEX)))
    flips = st.integers(0, BITS[name] - 1).map(lambda bit: state.get(name, 0) ^ 1 << bit)
    new = data.draw(st.integers(0, (1 << BITS[name]) - 1) | flips)
    for finding in check(state | {name: new}, HOSTS.get(chosen)):
        assert name in RULES[finding.rule].fields or name in MODE


@settings(max_examples=300)
@given(data=st.data())
def test_any_image_can_be_checked(check: Checker, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, ONES), min_size=len(INDEX), max_size=len(INDEX)))
    check({name: value & ((1 << BITS[name]) - 1) for name, value in zip(INDEX, values, strict=True)})


def test_findings_beyond_the_array_are_counted_only(check: Checker) -> None:
    count = len(check({}))
    assert count > 5
    found = check.hv.ffi.new("HV_FINDING[]", 4)
    env = check.hv.ffi.new("HV_VMX_CHECK_ENV *", {"AddressBits": 40, "LinearBits": 48})
    assert check.hv.lib.HvVmxCheck(check.image, env, ALL, found, 3) > 3
    assert found[3].Name == check.hv.ffi.NULL


def test_an_image_is_filled_by_encoding_and_what_is_absent_is_zero(hv: HostLibrary) -> None:
    absent = {0x2040, 0x6C18}

    def read(_: Any, encoding: int, value: Any) -> int:  # noqa: ANN401
        value[0] = encoding + 1
        return encoding not in absent

    image = hv.ffi.new("HV_VMCS_IMAGE *")
    callback = hv.ffi.callback("BOOLEAN(void *, UINT32, UINT64 *)", read)
    assert hv.lib.HvVmxImageFill(image, callback, hv.ffi.NULL) == len(INDEX) - 2
    assert hv.lib.HvVmcsIndexCount == len(INDEX)
    assert list(image.Value) == [0 if encoding in absent else encoding + 1 for encoding in vmcs.FIELDS]


def env_of(
    hv: HostLibrary, msrs: dict[int, int], leaves: dict[tuple[int, int], tuple[int, int, int, int]], efer: int
) -> tuple[int, Any, list[int]]:
    """The environment of a processor, after the status, before the MSRs that were read."""
    asked: list[int] = []

    def msr(number: int) -> int:
        asked.append(number)
        return msrs[number]

    def cpuid(leaf: int, sub: int, registers: Any) -> None:  # noqa: ANN401
        registers[0:4] = leaves.get((leaf, sub), (0, 0, 0, 0))

    env = hv.ffi.new("HV_VMX_CHECK_ENV *")
    reads = hv.ffi.callback("UINT64(UINT32)", msr)
    asks = hv.ffi.callback("void(UINT32, UINT32, UINT32 *)", cpuid)
    return hv.lib.HvVmxCheckEnv(env, reads, asks, efer), env, asked


LEAVES = {
    (0x1, 0): (0, 0, 1 << 5, 0),
    (0x7, 0): (0, 1 << 2, 1 << 24, 0),
    (0x7, 1): (1 << 26, 0, 0, 0),
    (0xA, 0): (0x0830_0805, 0, 0, 0x3),
    (0x8000_0001, 0): (0, 0, 0, 1 << 11 | 1 << 20 | 1 << 29),
    (0x8000_0008, 0): (0x3927, 0, 0, 0),
}


def test_environment_of_a_processor_with_everything(hv: HostLibrary) -> None:
    msrs = {number: number << 32 | number for number in range(0x480, 0x494)}
    msrs[0x480] |= 1 << 55
    msrs[0x48E] = msrs[0x48F] = msrs[0x48B] = ONES
    status, env, asked = env_of(hv, msrs, LEAVES, LMA)
    assert hv.name(status) == "SUCCESS"
    names = dict(Basic=0x480, Pin=0x48D, Proc=0x48E, Proc2=0x48B, Proc3=0x492, Exit=0x48F, Exit2=0x493, Entry=0x490)
    names |= dict(Misc=0x485, Cr0Fixed0=0x486, Cr0Fixed1=0x487, Cr4Fixed0=0x488, Cr4Fixed1=0x489)
    names |= dict(EptVpidCap=0x48C, VmFunc=0x491)
    assert {name: getattr(env, name) for name in names} == {name: msrs[number] for name, number in names.items()}
    assert sorted(asked) == sorted(names.values())
    assert (env.AddressBits, env.LinearBits, env.HostLong, env.Sgx) == (0x27, 0x39, 1, 1)
    assert env.Cr3Valid == (1 << 0x27) - 1 | 3 << 61
    assert env.EferValid == LME | LMA | NXE | 1
    assert env.DebugCtlValid == 0xFFC7
    assert env.PerfGlobalValid == 0x1_0007_0000_00FF


def test_environment_without_optional_msrs_reads_none_of_them(hv: HostLibrary) -> None:
    msrs = {number: 0 for number in range(0x480, 0x48A)}
    leaves = {(0x1, 0): (0, 0, 1 << 5, 0), (0x8000_0008, 0): (0x3024, 0, 0, 0)}
    status, env, asked = env_of(hv, msrs, leaves, 0)
    assert hv.name(status) == "SUCCESS"
    assert sorted(asked) == [0x480, 0x481, 0x482, 0x483, 0x484, 0x485, 0x486, 0x487, 0x488, 0x489]
    assert (env.Proc2, env.Proc3, env.Exit2, env.EptVpidCap, env.VmFunc) == (0, 0, 0, 0, 0)
    assert (env.HostLong, env.Sgx, env.EferValid, env.Cr3Valid) == (0, 0, 0, (1 << 36) - 1)


def test_a_processor_without_vmx_has_no_environment(hv: HostLibrary) -> None:
    assert hv.name(env_of(hv, {}, {}, 0)[0]) == "UNSUPPORTED"

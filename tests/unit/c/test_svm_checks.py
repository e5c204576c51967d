# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvSvmCheckLib: valid states have no finding, and each rule of the table is broken by one field of a valid state."""

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtools.generated import vmcb
from hvtools.generated.svm_checks import CORRUPTIONS, RULES
from tests.unit.c.findings import Finding, read_findings
from tests.unit.c.host import HostLibrary

FIELDS = {path: (offset, code) for path, offset, code, count in vmcb.LAYOUT["HV_VMCB"] if count == 1}
C = vmcb.CONSTANTS
CONTROL, GUEST, ALL = 1, 4, 7
PE, NW, CD, PG, WP = 1, 1 << 29, 1 << 30, 1 << 31, 1 << 16
PAE, PCIDE, CET = 1 << 5, 1 << 17, 1 << 23
SCE, LME, LMA, NXE, SVME = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 12
EVENT, EXCEPTION = C["HV_SVM_EVENT_VALID"], C["HV_SVM_EVENT_TYPE_EXCEPTION"]
NMI, VNMI = C["HV_SVM_INTERCEPT3_NMI"], C["HV_SVM_VINTR_NMI_ENABLE"]
NP, FLUSH_BY_ASID, FEATURE_VNMI = (C[f"HV_SVM_FEATURE_{name}"] for name in ("NP", "FLUSH_BY_ASID", "VNMI"))

State = dict[str, int]


@dataclass(frozen=True)
class Env:
    """A processor; `cr4` and `efer` are the bits that are not reserved."""

    cr4: int = 0x007F_0FFF
    efer: int = SCE | LME | LMA | NXE | SVME
    host_cr0: int = PG | PE
    asids: int = 16
    features: int = NP
    bits: int = 40
    long_mode: bool = True


QEMU = Env()
WITH_CET = replace(QEMU, cr4=QEMU.cr4 | CET)

BASE: State = {
    "Control.Intercept3": NMI,
    "Control.Intercept4": C["HV_SVM_INTERCEPT4_VMRUN"],
    "Control.MsrpmBase": 0x100_0000,
    "Control.GuestAsid": 1,
    "Control.TlbControl": 1,
    "Control.NestedControl": 1,
    "Control.NCr3": 0x200_0000,
    "Save.Dr6": 0xFFFF_0FF0,
    "Save.Dr7": 0x400,
    "Save.GPat": 0x0007_0406_0007_0406,
    "Save.Rflags": 2,
    "Save.Efer": SVME,
}
STATES: dict[str, State] = {
    "64-bit": BASE
    | {
        "Save.Efer": SVME | LME | LMA | NXE | SCE,
        "Save.Cr0": 0x8001_0033,
        "Save.Cr3": 0x1000,
        "Save.Cr4": 0x668,
        "Save.Cs.Attributes": 0xA9B,
    },
    "compatibility": BASE
    | {"Save.Efer": SVME | LME | LMA, "Save.Cr0": 0x8001_0033, "Save.Cr4": PAE, "Save.Cs.Attributes": 0xC9B},
    "32-bit": BASE | {"Save.Cr0": 0x11, "Save.Cs.Attributes": 0xC9B},
    "32-bit, paging": BASE | {"Save.Cr0": 0x8000_0011, "Save.Cr3": 0xFFFF_F000, "Save.Cs.Attributes": 0xC9B},
    "32-bit, about to be 64-bit": BASE
    | {"Save.Efer": SVME | LME, "Save.Cr0": 0x11, "Save.Cr4": PAE, "Save.Cs.Attributes": 0xC9B},
    "16-bit": BASE | {"Save.Cr0": 0x11, "Save.Cs.Attributes": 0x09B},
    "after INIT": BASE | {"Save.Cr0": 0x6000_0010, "Save.Cs.Attributes": 0x09B, "Save.GPat": 0x0007_0406_0007_0406},
    "paged real mode": BASE | {"Save.Cr0": 0x8000_0010, "Save.Cs.Attributes": 0x09B},
    "without nested paging": BASE
    | {"Save.Cr0": 0x11, "Control.NestedControl": 0, "Control.NCr3": (1 << 64) - 1, "Save.GPat": (1 << 64) - 1},
    "maps at the end": BASE
    | {
        "Save.Cr0": 0x11,
        "Control.IopmBase": (1 << 40) - 0x3000,
        "Control.MsrpmBase": (1 << 40) - 0x2000 | 0xFFF,
        "Control.GuestAsid": 15,
    },
    "injection": BASE | {"Save.Cr0": 0x11, "Control.EventInj": EVENT | EXCEPTION | 14},
    "no event": BASE | {"Save.Cr0": 0x11, "Control.EventInj": EXCEPTION | 2},
}


@dataclass(frozen=True)
class Mutation:
    """One field of a valid state that breaks one rule, blamed on `blamed` (the field itself by default)."""

    path: str
    value: int
    state: str = "64-bit"
    env: Env = QEMU
    change: State = field(default_factory=dict)
    blamed: str = ""


LONG = STATES["64-bit"]
BIT = [1 << bit for bit in range(64)]
MUTATIONS: dict[str, list[Mutation]] = {
    "intercept-vmrun": [Mutation("Control.Intercept4", 0xFFFF_FFFE)],
    "asid-zero": [Mutation("Control.GuestAsid", 0)],
    "asid-range": [Mutation("Control.GuestAsid", value) for value in (16, 0xFFFF_FFFF)],
    "iopm-range": [Mutation("Control.IopmBase", value) for value in (1 << 40, (1 << 40) - 0x2000, BIT[63])],
    "msrpm-range": [Mutation("Control.MsrpmBase", value) for value in (1 << 40, (1 << 40) - 0x1000, (1 << 64) - 1)],
    "tlb-control": [Mutation("Control.TlbControl", value) for value in (2, 3, 7, 0xFF)]
    + [Mutation("Control.TlbControl", 5, env=replace(QEMU, features=NP | FLUSH_BY_ASID))],
    "event-type": [Mutation("Control.EventInj", EVENT | kind << 8) for kind in (1, 5, 6, 7)],
    "event-vector": [
        Mutation("Control.EventInj", EVENT | EXCEPTION | vector) for vector in (2, 9, 15, 20, 31, 32, 255)
    ],
    "event-mode": [Mutation("Control.EventInj", EVENT | EXCEPTION | vector) for vector in (4, 5)],
    "np-feature": [
        Mutation("Control.NestedControl", 1, "32-bit", replace(QEMU, features=0), {"Control.NestedControl": 0})
    ],
    "np-host-paging": [
        Mutation("Control.NestedControl", 1, "32-bit", replace(QEMU, host_cr0=PE), {"Control.NestedControl": 0})
    ],
    "ncr3-reserved": [Mutation("Control.NCr3", value) for value in (BIT[40], BIT[52], BIT[63])],
    "vnmi-intercept": [
        Mutation(
            "Control.VIntr", VNMI, env=replace(QEMU, features=NP | FEATURE_VNMI), change={"Control.Intercept3": 0}
        ),
        Mutation(
            "Control.Intercept3",
            0,
            env=replace(QEMU, features=NP | FEATURE_VNMI),
            change={"Control.VIntr": VNMI},
            blamed="Control.VIntr",
        ),
    ],
    "efer-svme": [Mutation("Save.Efer", LONG["Save.Efer"] & ~SVME)],
    "efer-reserved": [
        Mutation("Save.Efer", LONG["Save.Efer"] | bit) for bit in (BIT[1], BIT[9], BIT[14], BIT[32], BIT[63])
    ],
    "efer-long-mode": [
        Mutation("Save.Efer", SVME | bit, "32-bit", replace(QEMU, efer=SCE | NXE | SVME, long_mode=False))
        for bit in (LME, LMA)
    ],
    "efer-lma": [
        Mutation("Save.Efer", LONG["Save.Efer"] & ~LMA),
        Mutation("Save.Efer", SVME | LMA, "32-bit"),
        Mutation("Save.Efer", SVME | LMA, "after INIT"),
        Mutation("Save.Cr0", 0x33, blamed="Save.Efer"),
    ],
    "cr0-high": [Mutation("Save.Cr0", LONG["Save.Cr0"] | bit) for bit in (BIT[32], BIT[63])],
    "cr0-nw": [Mutation("Save.Cr0", LONG["Save.Cr0"] | NW)],
    "cr3-reserved": [Mutation("Save.Cr3", bit) for bit in (BIT[40], BIT[63])],
    "cr4-reserved": [Mutation("Save.Cr4", LONG["Save.Cr4"] | bit) for bit in (BIT[15], CET, BIT[32], BIT[63])],
    "cr4-cet": [
        Mutation("Save.Cr4", PAE | CET, env=WITH_CET, change={"Save.Cr0": LONG["Save.Cr0"] & ~WP}),
        Mutation(
            "Save.Cr0",
            LONG["Save.Cr0"] & ~WP,
            env=WITH_CET,
            change={"Save.Cr4": PAE | CET},
            blamed="Save.Cr4",
        ),
    ],
    "s-cet-reserved": [Mutation("Save.SCet", bit, env=WITH_CET) for bit in (BIT[2], BIT[63])],
    "dr6-high": [Mutation("Save.Dr6", bit) for bit in (BIT[32], BIT[63])],
    "dr7-high": [Mutation("Save.Dr7", bit) for bit in (BIT[32], BIT[63])],
    "long-mode-pae": [Mutation("Save.Cr4", LONG["Save.Cr4"] & ~PAE)],
    "long-mode-pe": [Mutation("Save.Cr0", LONG["Save.Cr0"] & ~PE)],
    "long-mode-cs": [Mutation("Save.Cs.Attributes", 0xE9B)],
    "g-pat-reserved": [Mutation("Save.GPat", BASE["Save.GPat"] | bit) for bit in (BIT[3], BIT[15], BIT[63])],
    "g-pat-type": [Mutation("Save.GPat", kind << 8 * entry) for kind in (2, 3) for entry in range(8)],
}


class Checker:
    """The library over states by field name."""

    def __init__(self, hv: HostLibrary) -> None:
        self.hv = hv
        self.block: Any = hv.ffi.new("HV_VMCB *")
        self.raw: Any = hv.ffi.buffer(self.block)

    def env(self, env: Env) -> Any:  # noqa: ANN401
        return self.hv.ffi.new(
            "HV_SVM_CHECK_ENV *",
            {
                "Cr4Valid": env.cr4,
                "EferValid": env.efer,
                "HostCr0": env.host_cr0,
                "Asids": env.asids,
                "Features": env.features,
                "AddressBits": env.bits,
                "LongMode": env.long_mode,
            },
        )

    def __call__(self, state: State, env: Env = QEMU, parts: int = ALL) -> list[Finding]:
        self.raw[:] = bytes(len(self.raw))
        for name, value in state.items():
            offset, code = FIELDS[name]
            struct.pack_into(code, self.raw, offset, value)
        where = self.env(env)
        count = self.hv.lib.HvSvmCheck(self.block, where, parts, self.hv.ffi.NULL, 0)
        found = self.hv.ffi.new("HV_FINDING[]", count + 1)
        found[count].Value = 0x5A5A
        assert self.hv.lib.HvSvmCheck(self.block, where, parts, found, count) == count
        assert found[count].Value == 0x5A5A, "written beyond Max"
        return read_findings(self.hv, found[0:count], RULES)


@pytest.fixture(scope="module")
def check(hv: HostLibrary) -> Checker:
    return Checker(hv)


def test_every_rule_has_a_mutation() -> None:
    assert list(MUTATIONS) == list(RULES)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("env", [QEMU, WITH_CET, replace(QEMU, bits=52, asids=0x8000, features=0xFFFF_FFFF)])
def test_valid_states_have_no_finding(check: Checker, state: str, env: Env) -> None:
    assert check(STATES[state], env) == []


@pytest.mark.parametrize(
    ("rule", "mutation"),
    [(rule, mutation) for rule, mutations in MUTATIONS.items() for mutation in mutations],
    ids=lambda value: value if isinstance(value, str) else f"{value.path}={value.value:x}",
)
def test_one_changed_field_breaks_exactly_its_rule(check: Checker, rule: str, mutation: Mutation) -> None:
    state = STATES[mutation.state] | mutation.change
    assert check(state, mutation.env) == []
    blamed = mutation.blamed or mutation.path
    broken = state | {mutation.path: mutation.value}
    value = broken[blamed]
    assert check(broken, mutation.env) == [Finding(rule, blamed, value)]
    part = {"control": CONTROL, "guest": GUEST}[RULES[rule].part]
    assert check(broken, mutation.env, part) == [Finding(rule, blamed, value)]
    assert check(broken, mutation.env, ALL & ~part) == []


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("bits", [36, 40, 48, 52])
def test_each_corruption_breaks_exactly_its_rule(check: Checker, name: str, bits: int) -> None:
    item = CORRUPTIONS[name]
    old = LONG.get(item.field, 0)
    new = old & ~item.clear | item.set
    assert new != old
    assert check(LONG | {item.field: new}, replace(QEMU, bits=bits)) == [Finding(item.rule, item.field, new)]


def test_there_are_enough_corruptions_of_both_parts() -> None:
    parts = [RULES[item.rule].part for item in CORRUPTIONS.values()]
    assert len(parts) >= 20 and parts.count("control") >= 8 and parts.count("guest") >= 8


@settings(max_examples=2000)
@given(data=st.data())
def test_a_random_field_is_blamed_by_itself_or_by_what_is_tied_to_it(check: Checker, data: st.DataObject) -> None:
    state = STATES[data.draw(st.sampled_from(sorted(STATES)))]
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    size = struct.calcsize(FIELDS[name][1]) * 8
    flips = st.integers(0, size - 1).map(lambda bit: state.get(name, 0) ^ 1 << bit)
    new = data.draw(st.integers(0, (1 << size) - 1) | flips)
    for finding in check(state | {name: new}):
        assert name in RULES[finding.rule].fields


def test_findings_beyond_the_array_are_counted_only(check: Checker) -> None:
    assert [finding.rule for finding in check({})] == ["intercept-vmrun", "asid-zero", "efer-svme"]
    found = check.hv.ffi.new("HV_FINDING[]", 3)
    assert check.hv.lib.HvSvmCheck(check.block, check.env(QEMU), ALL, found, 2) == 3
    assert found[2].Name == check.hv.ffi.NULL


def env_of(hv: HostLibrary, leaves: dict[int, tuple[int, int, int, int]]) -> tuple[int, Any]:
    """The environment of a processor with these leaves, after the status."""

    def cpuid(leaf: int, _: int, registers: Any) -> None:  # noqa: ANN401
        registers[0:4] = leaves.get(leaf, (0, 0, 0, 0))

    env = hv.ffi.new("HV_SVM_CHECK_ENV *")
    callback = hv.ffi.callback("void(UINT32, UINT32, UINT32 *)", cpuid)
    return hv.lib.HvSvmCheckEnv(env, callback, PG | PE), env


def test_environment_from_cpuid(hv: HostLibrary) -> None:
    leaves = {
        0x1: (0, 0, 1 << 17 | 1 << 26, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 13 | 3 << 24),
        0x7: (0, 1 << 0 | 1 << 7 | 1 << 20, 1 << 2 | 1 << 3 | 1 << 7 | 1 << 16, 0),
        0x8000_0000: (0x8000_0021, 0, 0, 0),
        0x8000_0001: (0, 0, 1 << 2 | 1 << 17, 1 << 11 | 1 << 20 | 1 << 25 | 1 << 29),
        0x8000_0008: (0x3030, 1 << 8 | 1 << 13, 0, 0),
        0x8000_000A: (1, 0x8000, 0, NP | FLUSH_BY_ASID),
        0x8000_0021: (1 << 7 | 1 << 8, 0, 0, 0),
    }
    status, env = env_of(hv, leaves)
    assert hv.name(status) == "SUCCESS"
    assert env.Cr4Valid == 0x00F7_1FFF
    assert env.EferValid == 0x0036_FD01
    assert (env.HostCr0, env.Asids, env.Features) == (PG | PE, 0x8000, NP | FLUSH_BY_ASID)
    assert (env.AddressBits, env.LongMode) == (0x30, 1)
    leaves[0x8000_0008] = (0x3030, 1 << 20, 0, 0)
    assert env_of(hv, leaves)[1].EferValid == 0x0030_DD01, "no LMSLE, MCOMMIT, INTWB"
    leaves[0x8000_0001] = (0, 0, 1 << 2, 0)
    leaves[0x7] = (0, 0, 0, 0)
    status, env = env_of(hv, leaves)
    assert env.Cr4Valid == 0x0006_07FF and not env.LongMode and env.EferValid & (LME | LMA | NXE | SCE) == 0


def test_a_processor_without_svm_has_no_environment(hv: HostLibrary) -> None:
    assert hv.name(env_of(hv, {0x8000_0000: (0x8000_0008, 0, 0, 0)})[0]) == "UNSUPPORTED"

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""An instruction that a control has to allow is allowed, or CPUID does not promise it to the root."""

import re

import pytest

from hvtools.gen import ROOT
from hvtools.generated import cpuid, vmcb, vmx_controls

CONTROLS = (ROOT / "HvPkg" / "Library" / "HvVmxLib" / "Controls.c").read_text()
GATE = re.compile(
    r"GATE \((Proc\d), (HV_VMX_\w+), \"[\w-]+\", \"[^\"]*\",\s*"
    r"HV_CPUID_(\w+), (\d), HV_CPUID_REG_(\w+), (HV_CPUID_\w+)\)"
)
# SDM 25.6.2 and the CPUID enumeration of each instruction (SDM volume 2).
PROMISES = {
    "HV_VMX_PROC2_RDTSCP": {("80000001", 0, "EDX", 1 << 27), ("7", 0, "ECX", 1 << 22)},
    "HV_VMX_PROC2_INVPCID": {("7", 0, "EBX", 1 << 10)},
    "HV_VMX_PROC2_XSAVES": {("D", 1, "EAX", 1 << 3)},
    "HV_VMX_PROC2_USER_WAIT": {("7", 0, "ECX", 1 << 5)},
    "HV_VMX_PROC2_PCONFIG": {("7", 0, "EDX", 1 << 18)},
}
# Those that stay off, and the bit of CPUID that hides what they are for.
HIDDEN = {"HV_VMX_PROC3_MSR_LIST": (7, 1, "eax", "MSRLIST")}
ENABLING = re.compile(r"do(?:es)? not raise #UD")


def enabling_controls() -> set[str]:
    """The VMX controls without which an instruction raises #UD, by their rows."""
    spec = (ROOT / "tools" / "hvtools" / "spec" / "vmx_controls.toml").read_text()
    found, prefix = set(), ""
    for line in spec.splitlines():
        if match := re.match(r'prefix = "(\w+)"', line):
            prefix = match[1]
        elif ENABLING.search(line):
            name = re.search(r'name = "(\w+)"', line)
            assert name is not None, line
            found.add(f"{prefix}_{name[1]}")
    return found


def gates() -> dict[str, set[tuple[str, int, str, int]]]:
    found: dict[str, set[tuple[str, int, str, int]]] = {}
    for _, control, leaf, subleaf, register, bits in GATE.findall(CONTROLS):
        found.setdefault(control, set()).add((leaf.split("_")[0], int(subleaf), register, cpuid.CONSTANTS[bits]))
    return found


def test_every_enabling_control_of_the_table_is_wanted_and_has_its_promises() -> None:
    """A control that a later table brings is decided on here too."""
    assert enabling_controls() == PROMISES.keys() | HIDDEN.keys()
    assert gates() == PROMISES
    bits = {(leaf, own, register, name): policy for leaf, own, register, name, _, _, policy in cpuid.BITS}
    assert {bits[hidden] for hidden in HIDDEN.values()} == {"clear"}


@pytest.mark.parametrize("control", sorted(PROMISES))
def test_the_controls_of_the_code_are_those_of_the_table(control: str) -> None:
    assert control in vmx_controls.CONSTANTS


def test_what_svm_has_to_enable_is_hidden() -> None:
    """APM2 table B-1, offset 090h: INVLPGB and TLBSYNC. No other instruction waits for a bit of the VMCB."""
    bits = {(leaf, register, name): policy for leaf, _, register, name, _, _, policy in cpuid.BITS}
    assert bits[0x80000008, "ebx", "INVLPGB"] == "clear"
    enabled = {name for name in vmcb.CONSTANTS if name.startswith("HV_SVM_NP_")}
    assert "HV_SVM_NP_INVLPGB" in enabled
    source = "".join(path.read_text() for path in (ROOT / "HvPkg" / "Library" / "HvSvmLib").rglob("*.c"))
    assert "HV_SVM_NP_INVLPGB" not in source, "it is on: then its CPUID bit need not be hidden"

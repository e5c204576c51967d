# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A state for the first entry that breaks one rule: it is named, every processor goes back, and Linux boots."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from hvtools.boot.result import BootResult
from hvtools.decode import reader
from hvtools.generated import svm_checks, vmx_checks
from hvtools.machines.registry import PLATFORMS

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

Corruption = svm_checks.Corruption | vmx_checks.Corruption
Rule = svm_checks.Rule | vmx_checks.Rule
CORRUPTIONS: dict[str, tuple[Corruption, Rule]] = {
    **{name: (item, svm_checks.RULES[item.rule]) for name, item in svm_checks.CORRUPTIONS.items()},
    **{name: (item, vmx_checks.RULES[item.rule]) for name, item in vmx_checks.CORRUPTIONS.items()},
}
"""What is broken, and the rule that forbids it."""

# What an emulator does by itself, when our checks before the entry are off. All others it refuses, like a processor.
ENTERS = "runs the guest as if nothing were wrong"
LOSES = "the machine does not go on"
ACCEPTED: dict[str, dict[str, str]] = {
    "qemu-svm": {
        "vmcb-asid-range": ENTERS,
        "vmcb-tlb-control": ENTERS,
        "vmcb-event-bound": LOSES,
        "vmcb-ncr3-high": ENTERS,
        "vmcb-efer-lma": LOSES,
        "vmcb-pat-reserved": ENTERS,
        "vmcb-pat-type": ENTERS,
    },
    "bochs-svm": {
        "vmcb-asid-range": ENTERS,
        "vmcb-tlb-control": ENTERS,
        "vmcb-event-31": LOSES,
        "vmcb-event-bound": LOSES,
        "vmcb-efer-lma": ENTERS,
        "vmcb-cr0-pe": LOSES,  # its own panic
        "vmcb-cr3-high": LOSES,
    },
    "bochs-vmx": {
        # Bochs 3.0 looks at RIP outside 64-bit mode only: the guest has #GP at its first instruction.
        "vmcs-guest-rip": LOSES,
    },
}

CONTROL, GUEST, GUEST_ACCEPTED = "vmcb-asid-zero", "vmcb-cr0-nw", "vmcb-pat-type"
"""The default suite: refused by every platform, and one that QEMU accepts."""


def cases(names: Iterable[str], *default: str) -> list[object]:
    """Each corruption once, the two processors in turn; all but a few are slow."""
    return [
        pytest.param(name, number % 2, id=name, marks=() if name in default else pytest.mark.slow)
        for number, name in enumerate(names)
    ]


def assert_named_and_native(result: BootResult, name: str, cpu: int, reason: str) -> None:
    """The log names the one rule, and Linux has all processors for itself."""
    corruption, rule = CORRUPTIONS[name]
    (line,) = [line for line in result.log if line.event == "entry-rule"]
    assert line.level == "error" and line.cpu == cpu
    assert dict(line.fields, value="") == {
        "rule": corruption.rule,
        "section": rule.section,
        "field": corruption.field,
        "value": "",
        "expected": rule.expected,
    }
    (report,) = reader.read(io.BytesIO(result.record.log.encode()))
    (dump,) = report.data["dumps"]
    assert dump["cpu"] == cpu
    assert [{**found, "value": hex(found["value"])} for found in dump["broken"]] == [line.fields], (
        "the same rules offline"
    )
    value = int(line.fields["value"], 16)
    assert value & corruption.set == corruption.set and value & corruption.clear & ~corruption.set == 0
    (failed,) = [line for line in result.log if line.event == "launch-failed"]
    assert failed.fields["index"] == str(cpu) and failed.fields["reason"] == reason, result.report()
    (failure,) = result.failures
    assert "HvDxe did not virtualise" in failure, result.report()
    assert result.virtualised == [] and result.checks.online == 2 and result.checks.done


def assert_refused_before_the_entry(boot: Boot, name: str, cpu: int) -> None:
    result = boot(cpus=2, settings={"corrupt": name, "corrupt_cpu": str(cpu)})
    assert_named_and_native(result, name, cpu, "the state for the first entry breaks a rule")


def assert_as_recorded(boot: Boot, platform: str, name: str, cpu: int) -> None:
    """With our own check off."""
    outcome = ACCEPTED.get(platform, {}).get(name)
    if outcome == LOSES:
        # The firmware waits half a minute for another processor.
        cpu = 0
    settings = {"corrupt": name, "corrupt_cpu": str(cpu), "entry_check": "off"}
    result = boot(cpus=2, settings=settings, timeout=40 if outcome == LOSES else None)
    if outcome is None:
        assert_named_and_native(result, name, cpu, "the first entry was refused")
        return
    assert not [line for line in result.log if line.event == "entry-rule"], "the platform has become stricter"
    if outcome == ENTERS:
        assert result.virtualised == [0, 1], result.report()
    else:
        assert not result.ok and not result.checks.done


@pytest.mark.needs("svm", "hypervisor", "smp")
@pytest.mark.parametrize(
    ("name", "cpu"), cases(svm_checks.CORRUPTIONS, CONTROL, "vmcb-event-nmi", GUEST, "vmcb-efer-lma", GUEST_ACCEPTED)
)
def test_a_vmcb_that_breaks_a_rule_is_refused_before_the_entry(boot: Boot, name: str, cpu: int) -> None:
    assert_refused_before_the_entry(boot, name, cpu)


@pytest.mark.needs("svm", "hypervisor", "smp")
@pytest.mark.parametrize(("name", "cpu"), cases(svm_checks.CORRUPTIONS, CONTROL, GUEST, GUEST_ACCEPTED))
def test_what_the_platform_itself_says_to_a_vmcb_that_breaks_a_rule(
    boot: Boot, platform: str, name: str, cpu: int
) -> None:
    assert_as_recorded(boot, platform, name, cpu)


@pytest.mark.needs("vmx", "hypervisor", "smp")
@pytest.mark.parametrize(("name", "cpu"), cases(vmx_checks.CORRUPTIONS))
def test_a_vmcs_that_breaks_a_rule_is_refused_before_the_entry(boot: Boot, name: str, cpu: int) -> None:
    assert_refused_before_the_entry(boot, name, cpu)


@pytest.mark.needs("vmx", "hypervisor", "smp")
@pytest.mark.parametrize(("name", "cpu"), cases(vmx_checks.CORRUPTIONS))
def test_what_the_platform_itself_says_to_a_vmcs_that_breaks_a_rule(
    boot: Boot, platform: str, name: str, cpu: int
) -> None:
    assert_as_recorded(boot, platform, name, cpu)


def test_what_is_accepted_is_recorded_for_each_platform() -> None:
    assert ACCEPTED.keys() == {name for name, platform in PLATFORMS.items() if "hypervisor" in platform.capabilities}
    for platform, recorded in ACCEPTED.items():
        own = {"svm": svm_checks.CORRUPTIONS.keys(), "vmx": vmx_checks.CORRUPTIONS.keys()}[PLATFORMS[platform].vendor]
        assert recorded.keys() <= own

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The root tries everything it can reach, and finds what it finds on the bare machine, but for what is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.boot.cpuid_policy import Answers, as_documented

from hvtools import build
from hvtools.boot.result import BootResult
from hvtools.generated import msr
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor")

GP, UD = "13", "6"
DONE, NOT_TRIED = "-", "."

FEATURE_CONTROL = 0x3A
LOCKED_WITH_VMX = 5

SVME = 1 << 12
VMXE, SMXE = 1 << 13, 1 << 14

# (first leaf, leaves), as in HvFuzz/Cpuid.c.
CPUID_RANGES = (
    (0, 0x101),
    (0x20000000, 2),
    (0x40000000, 0x100),
    (0x4FFFFFFF, 2),
    (0x80000000, 0x101),
    (0x8FFFFFFF, 2),
    (0xC0000000, 2),
)
SUBLEAVES = 16
CALL_NUMBERS = 0x10000 - 2
SIMPLE_CALLS = 2  # null, version
DRIVERS_CALLS = 2  # leave, sleep-ports: from the driver's own code alone
STRINGS = ("sleep-strings 600", "sleep-strings B000", "wrapping-strings")
SLEEP_STRINGS = 7  # INS of 8, 16, 32 bits from the sleep register, or from before it into it
WRAPPING_STRINGS = 4  # 16 bits at FFFFh, 32 at FFFDh and behind


class Outcomes:
    """What HvFuzz printed."""

    def __init__(self, result: BootResult) -> None:
        assert result.application is not None
        self.lines = re.findall(r"HvFuzz: (.*?)\s*$", result.application.output, re.MULTILINE)
        assert self.lines[-1] == "done"
        self.msrs = dict(self._msrs())
        self.cpuid = self._cpuid()
        self.flips = {
            match[1]: dict(re.findall(r"(\w+)=(\w+)", match[2]))
            for match in (re.fullmatch(r"flip (\w+) (.*)", line) for line in self.lines)
            if match
        }
        first = ("msr ", "cpuid ", "flip ", "numbers ", "sleep-strings ", "wrapping-strings ")
        self.rest = [line for line in self.lines if not line.startswith(first)]

    def line(self, first: str) -> str:
        found: str
        (found,) = [line for line in self.lines if line.startswith(first)]
        return found

    def _msrs(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        for line in self.lines:
            if match := re.fullmatch(r"msr (\w{8}) (\w{8}) (.*)", line):
                outcome = tuple(match[3].split())
                assert len(outcome) == 7
                for number in range(int(match[1], 16), int(match[2], 16) + 1):
                    yield number, outcome

    def _cpuid(self) -> dict[int, Answers]:
        said: dict[int, Answers] = {}
        for line in self.lines:
            if match := re.fullmatch(r"cpuid (\d+) (\w{8}) (\d+) (\w{8}) (\w{8}) (\w{8}) (\w{8})", line):
                answer = tuple(int(match[n], 16) for n in range(4, 8))
                said.setdefault(int(match[1]), {})[int(match[2], 16), int(match[3])] = answer
        first = said[0]
        printed = {leaf for leaf, _ in first}
        for begin, count in CPUID_RANGES:
            for leaf in range(begin, begin + count):
                for subleaf in range(SUBLEAVES):
                    before = (leaf, subleaf - 1) if leaf in printed else (leaf - 1, subleaf)
                    if (leaf, subleaf) not in first:
                        first[leaf, subleaf] = first[before]
        return {cpu: first | own for cpu, own in said.items()}


def expected_of_msr(number: int, bare: tuple[str, ...], vendor: str) -> tuple[str, ...] | None:
    """Give what the table of MSRs makes of an outcome; None where code of the core decides."""
    rule = msr.ROOT.get(number, ("pass", "pass"))[vendor == "vmx"]
    read, *writes, value, kept = bare
    tried = [NOT_TRIED if each == NOT_TRIED else GP for each in writes]
    match rule:
        case "pass":
            return bare
        case "deny":
            return (GP, *tried, "0", "0")
        case "read-only":
            if number == FEATURE_CONTROL and vendor == "vmx":
                value = f"{int(value, 16) | LOCKED_WITH_VMX:X}"  # HvDxe closes what the firmware left open
            return (read, *tried, value, "0")
        case "frozen":
            return (read, writes[0], *tried[1:], value, "0")
        case "drop":
            return (read, *(NOT_TRIED if each == NOT_TRIED else DONE for each in writes), value, "0")
    return None


def check_flips(bare: Outcomes, under: Outcomes, vendor: str) -> None:
    """The bits of virtualization are lost (SVM) or #GP (VMX); the others do what they did."""
    register, hidden, instead = ("efer", SVME, "lost") if vendor == "svm" else ("cr4", VMXE | SMXE, "gp")
    assert bare.flips.keys() == under.flips.keys() and len(bare.flips) == 10
    for name, before in bare.flips.items():
        expected = {what: int(bits, 16) for what, bits in before.items()}
        if name == register:
            moved = hidden & expected["taken"]
            assert moved
            expected["taken"] &= ~moved
            expected[instead] |= moved
        assert {what: int(bits, 16) for what, bits in under.flips[name].items()} == expected, name


def check_string_io(bare: Outcomes, under: Outcomes, vendor: str) -> None:
    """String instructions at ports that exit are #GP: nobody asks for sleep so, or reads over the last port."""

    def faults(outcomes: Outcomes, first: str) -> int:
        return int(outcomes.line(first).partition("faults=")[2])

    assert [faults(bare, first) for first in STRINGS] == [0, 0, 0]
    asleep, asleep_bochs, wrapping = (faults(under, first) for first in STRINGS)
    assert sorted((asleep, asleep_bochs)) == [0, SLEEP_STRINGS]
    assert wrapping == (WRAPPING_STRINGS if vendor == "vmx" else 0)


def compared(boot: Boot, platform: str, command: str, timeout: float) -> BootResult:
    """Run it with the hypervisor and without, and compare; the result is the run with it."""
    vendor = platform_named(platform).vendor
    image = build.ensure_built("DEBUG").folder / "HvFuzz.efi"
    fields = {"application": image, "append": command, "timeout": timeout}
    result = boot(**fields, settings={"sleep_guard": "always"}).must_be_ok()
    bare, under = Outcomes(boot(hypervisor=False, **fields).must_be_ok()), Outcomes(result)

    assert bare.msrs.keys() == under.msrs.keys() and len(bare.msrs) > 3 * 0x2000
    wrong = {}
    for number, outcome in under.msrs.items():
        expected = expected_of_msr(number, bare.msrs[number], vendor)
        if expected is not None and outcome != expected:
            wrong[f"{number:08X}"] = (bare.msrs[number], outcome)
    assert wrong == {}

    assert bare.cpuid.keys() == under.cpuid.keys() == set(range(result.request.cpus))
    for cpu, answers in under.cpuid.items():
        own = {key: value for key, value in answers.items() if key[0] >> 28 == 4}
        assert all(not any(value) for (leaf, _), value in own.items() if leaf > 0x40000002)
        assert own[0x40000001, 0][3] == cpu
        different = {
            (f"{leaf:08X}", subleaf): (bare.cpuid[cpu][leaf, subleaf], value)
            for (leaf, subleaf), value in answers.items()
            if leaf >> 28 != 4 and value != as_documented(leaf, subleaf, bare.cpuid[cpu])
        }
        assert different == {}, f"CPU {cpu}"

    check_flips(bare, under, vendor)
    assert under.rest == bare.rest
    check_string_io(bare, under, vendor)
    calls = [re.search(r"calls=(\d+) ud=(\d+) changed=(\d+)", under.line(name)) for name in ("vmcall", "vmmcall")]
    assert all(call and call[1] == call[2] and call[3] == "0" for call in calls)
    assert bare.line("numbers") == f"numbers ud={CALL_NUMBERS} unknown=0 denied=0 done=0"
    unknown = CALL_NUMBERS - SIMPLE_CALLS - DRIVERS_CALLS
    assert under.line("numbers") == f"numbers ud=0 unknown={unknown} denied={DRIVERS_CALLS} done={SIMPLE_CALLS}"
    return result


def host_is_sane(result: BootResult) -> bool:
    """Say whether each processor still answers as a guest behind it, and the exits were counted under their names."""
    exits = result.exits
    unwanted = exits["unknown"] + exits["entry-failed"] + exits["none"]
    return len(result.virtualised) == result.request.cpus and exits["hypercall"] >= CALL_NUMBERS and unwanted == 0


@pytest.mark.everywhere
def test_what_the_root_tries_has_the_same_outcome_on_the_bare_machine(boot: Boot, platform: str) -> None:
    assert host_is_sane(compared(boot, platform, "seed=1 calls=5000", 300))


@pytest.mark.slow
@pytest.mark.everywhere
@pytest.mark.parametrize("seed", [2, 3])
def test_a_million_hypercalls_with_random_registers(boot: Boot, platform: str, seed: int) -> None:
    assert host_is_sane(compared(boot, platform, f"seed={seed} calls=500000", 1800))

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Events of the root: the same program sees the same with the hypervisor and without, on the same machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot.result import BootResult

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor")

RF = 1 << 16
EFER_TAKEN = "WRMSR takes reserved bits of EFER, and LME while paging is on (APM2 3.1.7)"
GD_KEPT = "#DB leaves DR7.GD as it is (APM2 13.1.1.4)"

# What an emulator does not do by the manual, so that the hypervisor, which does, is not like it.
NOT_BY_THE_MANUAL: dict[str, dict[str, str]] = {
    "qemu-svm": {
        "gp_efer_lme": EFER_TAKEN,
        "gp_efer_reserved": EFER_TAKEN,
        "step_gp": EFER_TAKEN,
        "df_of_gp": EFER_TAKEN,
        "nested_gp_of_host": EFER_TAKEN,
        "nested_df": EFER_TAKEN,
        "step_gd": GD_KEPT,
        "step_cpuid_gd": GD_KEPT,
    },
    "bochs-vmx": {},
    "bochs-svm": {
        "nested_interrupt": "EXITINTINFO of an interrupt is that of the exception before it (APM2 15.7.2)",
    },
}
# Those whose own faults do not push RF (APM2 8.2; SDM volume 3, 18.3.1.1): their lines are compared without it.
FAULTS_WITHOUT_RF = {"qemu-svm"}


def without_rf(line: str) -> str:
    return re.sub(r"rflags=0x(\w+)", lambda flags: f"rflags={int(flags[1], 16) & ~RF:#x}", line)


def events(result: BootResult, platform: str) -> dict[str, list[str]]:
    """The lines of each scenario of HvEvents, without the scenario's name."""
    found: dict[str, list[str]] = {}
    for line in result.record.console.splitlines():
        if match := re.match(r"HvEvents: (\w+) (.*)", line):
            text = match[2].strip()
            found.setdefault(match[1], []).append(without_rf(text) if platform in FAULTS_WITHOUT_RF else text)
    assert "HvEvents: done" in result.record.console, result.report()
    return found


@pytest.mark.everywhere
def test_events_are_those_of_the_bare_machine(boot: Boot, platform: str) -> None:
    program = build.ensure_built("DEBUG").folder / "HvEvents.efi"
    bare = events(boot(application=program, cpus=2, hypervisor=False).must_be_ok(), platform)
    under = events(boot(application=program, cpus=2).must_be_ok(), platform)
    assert bare.keys() == under.keys() and len(bare) >= 80
    different = {name: (bare[name], under[name]) for name in bare if bare[name] != under[name]}
    assert different.keys() == NOT_BY_THE_MANUAL[platform].keys(), different
    # What both say is right, too: none of them is lost or doubled.
    assert under["nmi_ten_thousand"][0] == "events=10000 gave-up=0"
    assert under["nested_nmi"] == ["events=1 gave-up=1", "vector=2"]
    # Here the manual is the referee: #GP comes where the emulator has none, and #DF of it.
    assert under["gp_efer_lme"][1].startswith("vector=13 at=12 error=0x0"), under["gp_efer_lme"]

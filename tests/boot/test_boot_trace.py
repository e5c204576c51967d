# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv trace`: every exit of a boot has a record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools.boot.checks import parse_checks
from hvtools.machines.console import clean
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Hv


@pytest.mark.needs("hypervisor", "memory", "xapic")
def test_the_trace_has_the_exits_that_the_hypervisor_counts(
    platform: str, hv: Hv, tmp_path: Path, script: Callable[[str], Path]
) -> None:
    out, picture, logs = tmp_path / "trace.json", tmp_path / "exits.svg", tmp_path / "logs"
    # So that the same kinds of exits come everywhere.
    keep = ("--set", "apic_trap=keep", "--symbols", "kernel", "--keep", str(logs))
    arguments = ("--on", platform, "--cpus", "2", "--json", str(out), "--picture", str(picture), *keep)
    result = hv("trace", *arguments, "--script", str(script("/bin/busybox true\n")))
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    lines = parse_checks(clean((logs / "console.log").read_text("utf-8", "replace")))
    counted = sum(lines.latest_exits().values(), Counter())
    # What an NMI turned out to be is settled after its record was made.
    counted["nmi"] += counted.pop("kick")
    traced = Counter({kind: sum(counts) for kind, counts in found["by_kind"].items()})
    assert all(traced[kind] >= count for kind, count in counted.items()), (traced, counted)
    # After the last look at the counters the machine only powers off.
    assert (traced - counted).total() < 0.1 * counted.total()
    assert found["lost"] == 0 and found["exits"] == traced.total() > 1000
    reasons = {
        "svm": {"cpuid CPUID", "apic-write NPF", "wrmsr MSR"},
        "vmx": {"cpuid CPUID", "apic-write EPT_VIOLATION", "wrmsr WRMSR"},
    }
    assert reasons[platform_named(platform).vendor] <= found["by_reason"].keys()
    # Linux writes to its APIC in one of few functions, and they have names.
    assert any(place["kind"] == "apic-write" and "apic" in place["name"] for place in found["places"]), found["places"]
    assert len(found["places"]) == 15 and found["places"][0]["count"] > 100
    assert "cpuid (" in picture.read_text()
    assert "exits in" in result.stdout and "hottest places" in result.stdout

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Linux as the root guest, with all that a machine may look like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from hvtools import build
from hvtools.bench.budgets import read_budgets
from hvtools.boot import startup
from hvtools.boot.checks import parse_checks
from hvtools.boot.hvlog import parse_log
from hvtools.boot.result import BootResult
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import State
from hvtools.machines.protocols import Cause
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Hv, Session

pytestmark = pytest.mark.needs("hypervisor")


def assert_virtualised(result: BootResult) -> None:
    cpus = result.request.cpus
    result.must_be_ok()
    assert result.virtualised == list(range(cpus)), result.report()
    assert result.checks.online == cpus
    assert result.checks.status is not None and result.checks.status.virtualised == cpus
    assert [check.index for check in result.cpus_seen] == list(range(cpus))


@pytest.mark.everywhere
def test_the_command_line_boots_linux_under_the_hypervisor(platform: str, hv: Hv) -> None:
    done = hv("boot", "--on", platform, "--json", "out.json")
    assert done.returncode == 0, done.stderr
    value = json.loads((hv.folder / "out.json").read_text())
    assert value["virtualised"] == list(range(value["cpus"])) and value["root"]["online"] == value["cpus"]
    assert value["vendor"] == platform_named(platform).vendor
    for cpu in value["root"]["cpus"]:
        assert cpu["signature"] == "HvPkgHvPkgHv" and not cpu["svm"] and not cpu["vmx"]
    assert value["exits"]["cpuid"] > 0
    assert value["exits"]["total"] == sum(count for kind, count in value["exits"].items() if kind != "total")
    assert value["reserved_bytes"] > 0 and value["ended"] == "poweroff"
    assert Path(value["console"]).read_bytes() and Path(value["log"]).read_bytes()
    assert f"{value['cpus']} of {value['cpus']}" in done.stdout
    assert list(hv.temporary.iterdir()) == []


def test_without_hypervisor_linux_sees_neither_signature_nor_loss(boot: Boot) -> None:
    result = boot(hypervisor=False).must_be_ok()
    assert result.virtualised == [] and result.checks.online == result.request.cpus
    assert all(check.signature != "HvPkgHvPkgHv" for check in result.cpus_seen)
    assert all(check.svm or check.vmx for check in result.cpus_seen), "the processor's own bits are there"
    assert State.HYPERVISOR not in result.record.seconds


@pytest.mark.parametrize("cpus", [1, 2, 3, 5, 8])
def test_any_number_of_processors(boot: Boot, cpus: int) -> None:
    assert_virtualised(boot(cpus=cpus))


@pytest.mark.needs("concurrent")
@pytest.mark.parametrize("cpus", [4, 8])
def test_processors_that_run_at_the_same_time(boot: Boot, concurrent: str, cpus: int) -> None:
    assert_virtualised(boot(cpus=cpus, accelerator=concurrent))


@pytest.mark.slow
@pytest.mark.needs("many")
def test_thirty_two_processors(boot: Boot) -> None:
    assert_virtualised(boot(cpus=32, timeout=500))


@pytest.mark.slow
@pytest.mark.needs("many", "concurrent")
def test_thirty_two_processors_at_the_same_time(boot: Boot, concurrent: str) -> None:
    assert_virtualised(boot(cpus=32, accelerator=concurrent, timeout=500))


def use_memory(boot: Boot, platform: str, script: Callable[[str], Path], memory: int) -> None:
    """Write part of a tmpfs of half the memory, and read it back."""
    most = 256 if "fast" in platform_named(platform).capabilities else 32
    text = f"""
        set -e
        mount -t tmpfs -o size={memory // 2}m none /tmp
        dd if=/dev/zero of=/tmp/fill bs=1M count={min(memory // 4, most)} 2>/dev/null
        echo pattern >> /tmp/fill
        tail -c 8 /tmp/fill
        sed -n 's/MemTotal: *\\([0-9]*\\) kB/MemTotal=\\1/p' /proc/meminfo
    """
    result = boot(memory_mib=memory, script=script(text))
    assert_virtualised(result)
    lines = result.checks.script_output.split()
    assert lines[0] == "pattern"
    total = int(lines[1].removeprefix("MemTotal="))
    assert memory * 1024 * 3 // 5 < total < memory * 1024


@pytest.mark.parametrize("memory", [256, 1024])
def test_memory_sizes(boot: Boot, platform: str, script: Callable[[str], Path], memory: int) -> None:
    use_memory(boot, platform, script, memory)


@pytest.mark.needs("high-memory")
def test_memory_above_four_gib(boot: Boot, platform: str, script: Callable[[str], Path]) -> None:
    use_memory(boot, platform, script, 6144)


@pytest.mark.parametrize("largest", ["4k", "2m", "1g"])
def test_nested_page_sizes(boot: Boot, largest: str) -> None:
    result = boot(settings={"nested_page": largest})
    assert_virtualised(result)
    assert result.checks.status is not None
    sizes = ["4k", "2m", "1g"]
    used = result.checks.status.page_sizes
    assert largest in used
    assert not set(used) & set(sizes[sizes.index(largest) + 1 :]), "larger ones than allowed"
    (event,) = [line for line in result.log if line.event == "nested"]
    assert event.fields["pages"] == largest


@pytest.mark.everywhere
def test_the_default_takes_the_largest_pages_that_the_processor_reports(boot: Boot) -> None:
    status = boot().must_be_ok().checks.status
    assert status is not None and "1g" in status.page_sizes


@pytest.mark.everywhere
def test_one_processor_boots_with_few_exits(boot: Boot, platform: str) -> None:
    result = boot(cpus=1).must_be_ok()
    exits = result.checks.boot_exits()
    assert exits is not None
    others = {kind: count for kind, count in exits.items() if kind != "cpuid"}
    assert exits["cpuid"] > 0
    # KVM and a box in a lab have the budget of their vendor.
    limits = {
        each.platform: each.limit
        for each in read_budgets()
        if each.name == "boot.exits.but-cpuid" and platform_named(each.platform).vendor == result.record.vendor
    }
    assert sum(others.values()) <= limits.get(platform, max(limits.values())), exits


@pytest.mark.everywhere
@pytest.mark.needs("ticks")
def test_two_boots_are_the_same_to_the_tick(boot: Boot) -> None:
    first, second = (boot(cpus=1, exact=True, fresh=True).must_be_ok() for _ in range(2))
    for result in (first, second):
        assert_virtualised(result)
        assert result.record.ending is not None and result.record.ending.ticks is not None
        assert result.as_json()["ticks"] == result.record.ending.ticks
    assert first.as_json()["ticks"] == second.as_json()["ticks"]
    assert first.checks.latest_exits() == second.checks.latest_exits()


@pytest.mark.everywhere
@pytest.mark.needs("xapic", "smp")
def test_with_more_processors_the_apic_writes_are_counted_under_their_name(boot: Boot) -> None:
    exits = boot().must_be_ok().checks.boot_exits()
    assert exits is not None and exits["apic-write"] > 0
    assert "unknown" not in exits and "entry-failed" not in exits


@pytest.mark.everywhere
def test_no_exit_of_the_whole_life_is_unexpected(boot: Boot) -> None:
    result = boot().must_be_ok()
    assert not {"unknown", "entry-failed", "shutdown", "none"} & result.exits.keys()
    assert [line.text() for line in result.log if line.level in ("error", "warn")] == []


def test_the_release_build_boots_too(boot: Boot) -> None:
    assert_virtualised(boot(target="RELEASE"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_five_boots_in_a_row(boot: Boot) -> None:
    for _ in range(25):
        assert_virtualised(boot(fresh=True))


HOTPLUG = """
set -e
for round in $(seq {rounds}); do
    for cpu in /sys/devices/system/cpu/cpu[1-9]*; do
        echo 0 > $cpu/online
        [ "$(cat $cpu/online)" = 0 ]
        echo 1 > $cpu/online
        [ "$(cat $cpu/online)" = 1 ]
    done
done
echo rounds=$round
hvcheck
"""


def go_off_and_on(boot: Boot, script: Callable[[str], Path], rounds: int, cpus: int = 4, **fields: Any) -> BootResult:  # noqa: ANN401
    """All processors but the first one, one after the other."""
    result = boot(script=script(HOTPLUG.format(rounds=rounds)), cpus=cpus, **fields)
    assert_virtualised(result)
    assert result.checks.script_output.splitlines()[0] == f"rounds={rounds}"
    assert result.checks.script_output.count("signature=HvPkgHvPkgHv") == cpus
    return result


def test_processors_go_off_and_on_again(boot: Boot, platform: str, script: Callable[[str], Path]) -> None:
    go_off_and_on(boot, script, 50 if "fast" in platform_named(platform).capabilities else 20, timeout=600)


def counted(result: BootResult, when: str, *kinds: str) -> list[list[int]]:
    """Exits of some kinds, for each processor."""
    return [[exits[kind] for kind in kinds] for _, exits in sorted(result.checks.exits[when].items())]


@pytest.mark.everywhere
@pytest.mark.needs("sipi-exits", "xapic", "smp")
def test_the_xapic_page_is_free_when_every_processor_runs(boot: Boot, script: Callable[[str], Path]) -> None:
    result = go_off_and_on(boot, script, 5, cpus=2)
    assert [line.event for line in result.log].count("apic-lifted") == 1
    writes = counted(result, "init", "apic-write")
    assert counted(result, "end", "apic-write") == writes and sum(map(sum, writes)) > 0
    # INIT and SIPI come by the wire then, and none is lost or doubled.
    assert counted(result, "init", "init", "sipi") == [[0, 0], [0, 0]]
    assert counted(result, "end", "init", "sipi") == [[0, 0], [5, 5]]


@pytest.mark.slow
@pytest.mark.needs("sipi-exits", "xapic", "smp")
def test_the_xapic_page_stays_trapped_where_it_has_to(boot: Boot, script: Callable[[str], Path]) -> None:
    result = go_off_and_on(boot, script, 20, settings={"apic_trap": "keep"}, timeout=600)
    assert "apic-lifted" not in {line.event for line in result.log}
    before, after = (counted(result, when, "apic-write", "init", "sipi") for when in ("init", "end"))
    assert all(late[0] > early[0] and late[1:] == [0, 0] for early, late in zip(before, after, strict=True))


@pytest.mark.everywhere
@pytest.mark.needs("x2apic", "smp")
def test_all_processors_in_x2apic_mode(session: Session) -> None:
    folder = build.ensure_built("DEBUG").folder
    added = {PurePosixPath(name): folder / name for name in ("HvX2Apic.efi", "HvDxe.efi")}
    with session(hypervisor=False, added=added) as strategy:
        strategy.transition(State.SHELL)
        shell = EfiShell(strategy)
        # As firmware of a large machine leaves it. EDK2's MP services take the other processors back to xAPIC mode.
        shell.must("fs0:\\add\\HvX2Apic.efi")
        shell.must("load fs0:\\add\\HvDxe.efi")
        # Linux keeps the mode: without an I/O APIC it does not ask for interrupt remapping.
        shell.type(startup.linux_command("noapic"))
        strategy.expect([re.compile(r"hvcheck: done")])
        console, cpus = strategy.machine.console.text(), strategy.machine.spec.cpus
        log = parse_log(strategy.machine.hypervisor_log())
    report = parse_checks(console)
    assert report.online == cpus and report.errors == []
    assert [check.virtualised for check in report.cpus["end"]] == [True] * cpus
    assert re.search(r"x2apic: enabled by BIOS|x2apic enabled", console), "Linux is in the mode too"
    (mode,) = [line.fields for line in log if line.event == "apic"]
    assert (mode["mode"], mode["trap"]) == ("x2apic", "0")
    assert [line.text() for line in log if line.level in ("error", "warn")] == []
    exits = report.exits
    for cpu in range(cpus):
        assert exits["end"][cpu]["apic-write"] == exits["init"][cpu]["apic-write"]
    # The interrupt commands are the only exits that the mode costs.
    assert exits["end"][0]["wrmsr"] > 0 and {"unknown", "nested-fault"} & exits["end"][0].keys() == set()


@pytest.mark.needs("poweroff")
@pytest.mark.parametrize(("command", "cause"), [("reboot", Cause.REBOOT), ("poweroff", Cause.POWEROFF)])
def test_linux_ends_the_machine(boot: Boot, script: Callable[[str], Path], command: str, cause: Cause) -> None:
    result = boot(script=script(f"{command} -f\n")).must_be_ok()
    assert result.virtualised == list(range(result.request.cpus))
    assert result.record.ending is not None and result.record.ending.cause is cause
    assert not result.checks.done


def test_after_a_reboot_everything_starts_again(session: Session) -> None:
    with session(restart=True, cpus=2) as strategy:
        strategy.transition(State.HYPERVISOR)
        EfiShell(strategy).type(startup.linux_command("rdinit=/hvtools/bin/sh"))
        strategy.expect([re.compile(r"/ # ")])
        strategy.machine.console.send("reboot -f\r")
        strategy.expect([re.compile("reboot: Restarting system")])
        strategy.expect([re.compile("any other key to continue")])
        strategy.machine.console.send("\r")
        _, match = strategy.expect([startup.LOADED])
        assert int(match[1], 16) == 0


@pytest.mark.needs("poweroff")
@pytest.mark.parametrize("hypervisor", [False, True])
def test_a_triple_fault_ends_the_machine_and_is_no_reboot(
    boot: Boot, script: Callable[[str], Path], hypervisor: bool
) -> None:
    result = boot(hypervisor=hypervisor, append="reboot=t", script=script("reboot -f\n"))
    ending = result.record.ending
    assert ending is not None, result.report()
    if hypervisor:
        # The hypervisor takes the shutdown for its guest, and resets the machine as the processor would.
        assert ending.cause in (Cause.TRIPLE_FAULT, Cause.REBOOT), result.report()
        assert "shutdown" in {line.event for line in result.log}, result.report()
    else:
        assert ending.cause is Cause.TRIPLE_FAULT, result.report()
        assert result.failures == [
            "the machine ended before the self-check was through: a processor had a triple fault"
        ]


def test_a_panic_of_the_root_is_a_failure_that_names_it(boot: Boot, script: Callable[[str], Path]) -> None:
    result = boot(hypervisor=False, cpus=1, script=script("echo c > /proc/sysrq-trigger\n"))
    assert result.failures == ["the root kernel panicked: sysrq triggered crash"]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor in the firmware: refusals, unload, Driver#### options, EFI programs as root guest."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot import startup
from hvtools.boot.checks import CheckReport, parse_checks
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import State
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Session

pytestmark = pytest.mark.needs("hypervisor")


def image(name: str) -> Path:
    return build.ensure_built("DEBUG").folder / name


@pytest.mark.parametrize("cpus", [1, 4])
def test_an_application_that_returns(boot: Boot, cpus: int) -> None:
    result = boot(cpus=cpus, application=image("HvReturn.efi")).must_be_ok()
    assert result.application is not None and result.application.status == 0
    assert result.checks.status is not None and result.checks.status.virtualised == cpus
    assert result.exits.total() > 0


@pytest.mark.everywhere
def test_every_processor_answers_mp_services_many_times(boot: Boot) -> None:
    result = boot(application=image("HvMpStress.efi"), timeout=300).must_be_ok()
    assert result.checks.status is not None and result.checks.status.virtualised == result.request.cpus


@pytest.mark.needs("concurrent")
def test_every_processor_answers_while_all_of_them_run(boot: Boot, concurrent: str) -> None:
    boot(application=image("HvMpStress.efi"), accelerator=concurrent, timeout=300).must_be_ok()


@pytest.mark.everywhere
def test_stores_to_the_local_apic_and_to_host_memory_do_what_the_processor_does(boot: Boot) -> None:
    result = boot(application=image("HvStoreProbe.efi")).must_be_ok()
    # 33 forms with 32 bits on the local APIC, 49 on host memory, each 16 times.
    assert result.exits["apic-write"] > 33 * 16 and result.exits["host-memory"] >= 49 * 16, result.report()


def test_an_application_that_does_not_return_fails_in_time(boot: Boot, tmp_path: Path) -> None:
    script = tmp_path / "Loop.nsh"
    script.write_bytes(b"@echo -off\r\n:again\r\ngoto again\r\n")
    result = boot(application=script, cpus=1, timeout=12, hypervisor=False)
    assert not result.ok and "the limit of 12 s is over" in result.failures[0]
    assert result.record.error is not None and result.record.error.console


@pytest.mark.everywhere
def test_a_processor_without_virtualization_is_named_and_linux_boots_anyway(boot: Boot, platform: str) -> None:
    result = boot(cpu_model=platform_named(platform).plain_cpu)
    (failure,) = result.failures
    assert "HvDxe did not virtualise" in failure and "requirement-unmet" in failure, result.report()
    assert platform_named(platform).vendor in failure.lower()
    assert result.checks.online == 4 and result.virtualised == []
    assert result.checks.done, result.report()


def test_a_processor_that_lacks_one_thing_is_refused_by_its_name(boot: Boot, platform: str, lacking: str) -> None:
    result = boot(cpus=1, cpu_model=platform_named(platform).lesser_cpus[lacking])
    (failure,) = result.failures
    assert "HvDxe did not virtualise" in failure, result.report()
    unmet = [line.fields for line in result.log if line.event == "requirement-unmet"]
    (named,) = [
        fields for fields in unmet if fields["name"] == lacking and fields["backend"] == platform_named(platform).vendor
    ]
    assert named["source"] and int(named["value"], 16) >= 0 and named["expected"]
    assert result.virtualised == [] and result.checks.done, result.report()


@pytest.mark.needs("smp")
@pytest.mark.parametrize("victim", [0, 3])
def test_if_one_processor_fails_none_is_virtualised(boot: Boot, victim: int) -> None:
    result = boot(settings={"fail_cpu": str(victim)})
    (failure,) = result.failures
    assert "HvDxe did not virtualise" in failure, result.report()
    (failed,) = [line for line in result.log if line.event == "launch-failed"]
    assert failed.fields["index"] == str(victim) and "fail_cpu" in failed.fields["reason"], result.report()
    assert result.checks.online == result.request.cpus and result.virtualised == [] and result.checks.done


@pytest.mark.needs("smp")
@pytest.mark.parametrize(
    ("settings", "index", "reason"),
    [
        ({"fail_at": "memory"}, "0", "not enough memory"),
        ({"fail_at": "root-mode", "fail_cpu": "1"}, "1", r"VMXON failed|root mode, by option fail_at"),
        pytest.param(
            {"fail_at": "answer", "fail_cpu": "1"}, "1", "no answer to MP services in time", marks=pytest.mark.slow
        ),
    ],
    ids=["memory", "root-mode", "answer"],
)
def test_what_fails_is_named_and_every_processor_is_native(
    boot: Boot, settings: dict[str, str], index: str, reason: str
) -> None:
    result = boot(settings=settings, cpus=2)
    (failed,) = [line for line in result.log if line.event == "launch-failed"]
    assert failed.fields["index"] == index and re.fullmatch(reason, failed.fields["reason"]), result.report()
    assert result.checks.online == 2 and result.virtualised == [] and result.checks.done, result.report()


def checks_of(shell: EfiShell, program: str) -> CheckReport:
    return parse_checks(shell.must(program))


def test_unloading_takes_every_processor_back(session: Session) -> None:
    added = {PurePosixPath(name): image(name) for name in ("HvStatus.efi", "HvMpStress.efi")}
    with session(added=added) as strategy:
        strategy.transition(State.HYPERVISOR)
        shell = EfiShell(strategy)
        before, cpus = checks_of(shell, "fs0:\\add\\HvStatus.efi"), strategy.machine.spec.cpus
        assert before.status is not None and before.status.virtualised == cpus
        handles = re.findall(r"^\s*([0-9A-F]+): .*HvDxe", shell.must("dh -p LoadedImage"), re.MULTILINE)
        assert len(handles) == 1, strategy.machine.console.tail(40)
        shell.must(f"unload -n {handles[0]}")
        status, output = shell.run("fs0:\\add\\HvStatus.efi")
        assert status != 0 and "HvPkgHvPkgHv" not in output
        # Linux starts on the bare processors, all of them.
        shell.type(startup.linux_command())
        strategy.expect([re.compile(r"hvcheck: done")])
        after = parse_checks(strategy.machine.console.text())
    assert after.online == cpus
    assert [check.virtualised for check in after.cpus["end"]] == [False] * cpus


@pytest.mark.needs("variables")
def test_a_driver_option_loads_the_hypervisor_before_anything_boots(session: Session) -> None:
    added = {PurePosixPath(name): image(name) for name in ("HvDxe.efi", "HvStatus.efi")}
    with session(hypervisor=False, restart=True, added=added) as strategy:
        strategy.transition(State.SHELL)
        shell = EfiShell(strategy)
        status, _ = shell.run("fs0:\\add\\HvStatus.efi")
        assert status != 0, "nothing is loaded yet"
        # The shell's bcfg leaves its own success in no variable: what it says counts, and what the reset shows.
        _, output = shell.run('bcfg driver add 0 fs0:\\add\\HvDxe.efi "HvPkg"')
        assert "Add Driver0000 as 0" in output
        shell.type("reset")
        strategy.expect([re.compile("any other key to continue")])
        strategy.machine.console.send("\r")
        strategy.expect([startup.AT_SHELL])
        report, cpus = checks_of(shell, "fs0:\\add\\HvStatus.efi"), strategy.machine.spec.cpus
        assert report.status is not None and report.status.virtualised == cpus
        shell.type(startup.linux_command())
        strategy.expect([re.compile(r"hvcheck: done")])
        after = parse_checks(strategy.machine.console.text())
    assert [check.virtualised for check in after.cpus["end"]] == [True] * cpus

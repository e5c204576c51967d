# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Judging a boot by what it left behind: each thing that can be wrong makes a failure of its own."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hvtools import cli
from hvtools.boot import progress, runner
from hvtools.boot.progress import print_result
from hvtools.boot.request import BootRequest
from hvtools.boot.result import BootRecord, BootResult, evaluate, read_application
from hvtools.boot.strategy import State, StrategyError
from hvtools.machines.protocols import Cause, Ending

CPU = "hvcheck: cpu when={when} id={cpu} apic={cpu} signature={signature} interface=1 features=0x1 backend={backend} "
OURS = {"signature": "HvPkgHvPkgHv", "backend": "svm"}
STATUS = (
    "hvcheck: status version=1 vendor=svm cpus={cpus} kinds=29 virtualised={cpus} reserved=8388608 nested=65536 "
    "page_sizes=2m dma=1 boot_done=1\n"
)


def cpu_line(when: str, cpu: int, svm: int = 0, signature: str = OURS["signature"], backend: str = "svm") -> str:
    line = CPU.format(when=when, cpu=cpu, signature=signature, backend=backend)
    return f"{line}index={cpu} svm={svm} vmx=0\n"


def console(cpus: int = 2, online: int | None = None) -> str:
    text = f"hvcheck: init version=1 kernel=6.1.0 online={cpus}\nhvcheck: online count={online or cpus}\n"
    for cpu in range(cpus):
        text += f"hvcheck: exits when=boot cpu={cpu} cpuid=5 total=5\n"
        text += f"hvcheck: exits when=init cpu={cpu} cpuid=15 wrmsr=1 total=16\n"
    for when in ("start", "end"):
        text += "".join(cpu_line(when, cpu) for cpu in range(cpus))
        text += STATUS.format(cpus=cpus)
        text += "".join(f"hvcheck: exits when={when} cpu={cpu} cpuid=20 wrmsr=1 total=21\n" for cpu in range(cpus))
    return text + "hvcheck: done\n[ 3.0] reboot: Power down\n"


ROOT_SECONDS = {State.FIRMWARE: 1.0, State.SHELL: 2.0, State.HYPERVISOR: 3.0, State.ROOT: 4.5678}


def judged(text: str, request: BootRequest | None = None, **changes: Any) -> BootResult:  # noqa: ANN401
    fields: dict[str, Any] = {
        "vendor": "svm",
        "accelerator": "tcg,thread=single",
        "console": text,
        "log": "",
        "seconds": ROOT_SECONDS,
        "load_status": 0,
        "ending": Ending(Cause.POWEROFF, "powered off"),
        "error": None,
        "console_path": Path("logs/console.log"),
        "log_path": Path("logs/hypervisor.log"),
    }
    return evaluate(request or BootRequest(cpus=2), BootRecord(**(fields | changes)))


def test_a_good_boot_has_no_failure_and_all_of_the_json() -> None:
    result = judged(console())
    assert result.failures == []
    value = json.loads(json.dumps(result.as_json()))
    assert value["ok"] is True
    assert value["platform"] == "qemu-svm" and value["vendor"] == "svm" and value["cpus"] == 2
    assert value["virtualised"] == [0, 1]
    assert value["root"]["reached"] is True and value["root"]["online"] == 2 and value["root"]["seconds"] == 4.57
    assert value["exits"] == {"cpuid": 40, "wrmsr": 2, "total": 42}
    assert value["exits_by_cpu"]["1"] == {"cpuid": 20, "wrmsr": 1, "total": 21}
    assert value["exits_boot"] == {"cpuid": 20, "wrmsr": 2, "total": 22}
    assert value["dma_protection"] == "off: the operating system owns the IOMMU"
    assert value["nested_page_sizes"] == ["2m"] and value["reserved_bytes"] == 8388608
    assert value["script"] is None and value["run"] is None and value["ended"] == "poweroff"
    assert value["console"] == "logs/console.log" and value["log"] == "logs/hypervisor.log"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (console().replace("online count=2", "online count=1"), "the root has 1 of 2 processors online"),
        (console().replace(cpu_line("start", 1), cpu_line("start", 1, signature="TCGTCGTCGTCG")), "1 are not under"),
        (console().replace(cpu_line("end", 0), cpu_line("end", 0, signature="............")), "0 are not under.* end"),
        (console().replace(cpu_line("start", 1), cpu_line("start", 1, svm=1)), "processors 1 show SVM or VMX"),
        (console().replace(cpu_line("end", 1), cpu_line("end", 1, backend="vmx")), "do not name the backend svm"),
        (console().replace(cpu_line("start", 1), ""), "1 of 2 processors were checked at the start"),
        (
            console().replace(STATUS.format(cpus=2), "hvcheck: no-status reason=not-mapped\n"),
            "cannot be read: not-mapped",
        ),
        (console().replace("hvcheck: done\n", "").replace("reboot: Power down", ""), "ended before the self-check"),
        (console() + "hvcheck: error what=affinity cpu=1 errno=22\n", "what=affinity cpu=1 errno=22"),
        (console() + "Kernel panic - not syncing: Attempted to kill init!\n", "panicked: Attempted to kill init!"),
        (console() + "hvcheck: exits when=end cpu=0 cpuid=1 total=11\n", "not understood"),
    ],
)
def test_each_thing_that_is_wrong_is_a_failure(text: str, said: str) -> None:
    (failure,) = judged(text).failures
    assert re.search(said, failure)


def test_each_kernel_counts_where_one_starts_the_next() -> None:
    first = console().replace("hvcheck: done", "hvcheck| kexec")
    second = console().replace("cpuid=20 wrmsr=1 total=21", "cpuid=30 wrmsr=1 total=31")
    result = judged(first + second)
    assert result.failures == [] and len(result.earlier) == 1
    assert result.exits == {"cpuid": 60, "wrmsr": 2}
    assert result.boot_exits() == {"cpuid": 20, "wrmsr": 2}
    lost = first.replace(cpu_line("start", 1), cpu_line("start", 1, signature="............"))
    assert judged(lost + second).failures == ["processors 1 are not under HvPkg at the start"]
    assert judged(first + second.replace(cpu_line("start", 1), "")).failures != []


def test_a_hypervisor_that_refused_is_a_failure_with_its_reason_and_linux_still_counts() -> None:
    log = 'hv: error cpu0 requirement-unmet backend=svm name=svm source=80000001.ecx value=0x0 expected="bit 2 set"\n'
    foreign = console()
    for when in ("start", "end"):
        for cpu in range(2):
            foreign = foreign.replace(cpu_line(when, cpu), cpu_line(when, cpu, signature="TCGTCGTCGTCG"))
    result = judged(foreign.replace(STATUS.format(cpus=2), ""), log=log, load_status=3)
    (failure,) = result.failures
    assert failure.startswith("HvDxe did not virtualise (status 0x3): requirement-unmet backend=svm name=svm")
    assert result.as_json()["root"]["reached"] is True and result.virtualised == []


def test_without_hypervisor_its_signature_would_be_a_failure() -> None:
    request = BootRequest(cpus=2, hypervisor=False)
    (first, second) = judged(console(), request, load_status=None).failures
    assert "say that they are under HvPkg" in first and "at the end" in second


@pytest.mark.parametrize(
    ("tail", "ending", "failures"),
    [
        ("[2] reboot: Restarting system\n", Ending(Cause.REBOOT, "reset"), 0),
        ("[2] reboot: Power down\n", Ending(Cause.POWEROFF, "powered off"), 0),
        ("", Ending(Cause.REBOOT, "reset"), 1),
        ("[2] reboot: Restarting system\n", Ending(Cause.TRIPLE_FAULT, "a processor had a triple fault"), 1),
        ("", Ending(Cause.CRASHED, "the emulator died"), 1),
    ],
)
def test_a_script_may_end_the_machine_but_only_properly(
    tail: str, ending: Ending, failures: int, tmp_path: Path
) -> None:
    start = console().partition("hvcheck: cpu when=end")[0]
    request = BootRequest(cpus=2, script=tmp_path)
    result = judged(start + "hvcheck: script-begin\nhvcheck| bye\n" + tail, request, ending=ending)
    assert len(result.failures) == failures
    assert result.as_json()["script"] == {"exit": None, "output": "bye\n"}


def test_the_exit_code_of_the_script_counts(tmp_path: Path) -> None:
    text = console() + "hvcheck: script-begin\nhvcheck: script-end exit=7\n"
    assert judged(text, BootRequest(cpus=2, script=tmp_path)).failures == ["the script ended with exit code 7"]


def application(text: str, **changes: Any) -> BootResult:  # noqa: ANN401
    return judged(text, BootRequest(cpus=2, application=Path("some/X.efi")), **changes)


def test_an_application_is_judged_by_its_status() -> None:
    text = "hvboot: run-begin\nhello\nhvboot: run-end 0x{:X}\n" + shell_check()
    good = application(text.format(0))
    assert good.failures == []
    assert good.as_json()["run"] == {"file": "X.efi", "status": 0, "output": "hello\n"}
    assert application(text.format(21)).failures == ["X.efi returned 0x15"]


def shell_check(foreign: int | None = None, virtualised: int = 2) -> str:
    """What HvStatus prints behind an EFI program, with one processor that is not under the hypervisor."""
    lines = [cpu_line("shell", cpu) for cpu in range(2)]
    if foreign is not None:
        lines[foreign] = cpu_line("shell", foreign, svm=1, signature="AuthenticAMD")
    return "".join(lines) + STATUS.format(cpus=2).replace("virtualised=2", f"virtualised={virtualised}")


RAN = "hvboot: run-begin\nhvboot: run-end 0x0\n"


def test_processors_are_checked_behind_an_application() -> None:
    assert application(RAN + shell_check()).failures == []
    assert application(RAN + shell_check(foreign=1, virtualised=1)).failures == [
        "processors 1 are not under HvPkg in the shell",
        "the hypervisor counts 1 of 2 processors as virtualised",
    ]
    assert application(RAN + shell_check().replace(cpu_line("shell", 1), "")).failures == [
        "1 of 2 processors were checked in the shell"
    ]
    foreign = "".join(cpu_line("shell", cpu, signature="AuthenticAMD") for cpu in range(2))
    assert application(RAN + foreign).failures == [
        "HvStatus did not print the hypervisor's counters",
        "processors 0, 1 are not under HvPkg in the shell",
    ]


def test_the_last_status_counts_where_the_application_prints_one_itself() -> None:
    inside = RAN.replace("run-begin\n", "run-begin\n" + shell_check(foreign=1, virtualised=1))
    assert application(inside + shell_check()).failures == []
    assert application(inside).failures == ["HvStatus did not print the hypervisor's counters"]


def test_a_program_may_load_the_hypervisor_itself() -> None:
    request = BootRequest(cpus=2, hypervisor=False, application=Path("some/Bench.nsh"))
    text = RAN.replace("run-begin\n", "run-begin\n" + shell_check(virtualised=1))
    assert judged(text, request, load_status=None).failures == []


def test_linux_needs_every_processor_to_be_counted() -> None:
    result = judged(console().replace("virtualised=2", "virtualised=1"))
    assert result.failures == ["the hypervisor counts 1 of 2 processors as virtualised"]


def test_the_result_is_there_when_the_reader_of_the_summary_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(result: BootResult) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(runner, "run", lambda *arguments, **named: judged(console()))
    monkeypatch.setattr(progress, "print_result", gone)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # it is replaced
    out = tmp_path / "out.json"
    assert cli.run(["boot", "--cpus", "2", "--keep", str(tmp_path / "run"), "--json", str(out)]) == 1
    assert json.loads(out.read_text())["ok"] is True
    assert (tmp_path / "run" / "result.json").read_text() == out.read_text()


@pytest.mark.parametrize("word", ["platform", "debian"])
def test_debians_firmware_is_the_platforms_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str) -> None:
    asked: list[BootRequest] = []

    def run(request: BootRequest, *arguments: object, **named: object) -> BootResult:
        asked.append(request)
        return judged(console())

    monkeypatch.setattr(runner, "run", run)
    assert cli.run(["boot", "--firmware", word, "--keep", str(tmp_path)]) == 0
    assert asked[0].firmware is None and not asked[0].built_in
    assert cli.run(["boot", "--firmware", word, "--built-in"]) == 2


def test_an_application_that_does_not_return_is_a_failure() -> None:
    result = application("hvboot: run-begin\nhalf a wo")
    assert result.failures == ["X.efi did not return to the shell"]
    assert read_application("hvboot: run-begin\nhalf", "X.efi").output == "half"


def test_what_stopped_the_boot_is_said_once_with_the_last_lines() -> None:
    error = StrategyError(
        "the machine did not reach 'root': the limit of 5 s is over", ["last of console"], ["last of log"]
    )
    seconds = {State.FIRMWARE: 1.0}
    result = judged("BdsDxe: starting\n", error=error, ending=None, seconds=seconds, load_status=None)
    assert result.failures == [str(error)]
    out, err = io.StringIO(), io.StringIO()
    print_result(result, Console(file=out, width=100), Console(file=err, width=100))
    assert "| last of console" in err.getvalue() and "| last of log" in err.getvalue()
    assert "not reached" in out.getvalue() and "switched off" in out.getvalue()


def test_the_summary_says_what_a_person_wants_to_know() -> None:
    out = io.StringIO()
    print_result(judged(console()), Console(file=out, width=200))
    text = out.getvalue()
    for part in (
        "2 of 2 (svm)",
        "2 MiB",
        "8.0 MiB",
        "Linux 6.1.0, 2 CPUs online, 4.6 s",
        "42 in all: cpuid 40, wrmsr 2",
    ):
        assert part in text


def secure(started: str, **fields: Any) -> BootResult:  # noqa: ANN401
    said = f"HvStart: HvDxe {started}\nEFI stub: UEFI Secure Boot is enabled.\n"
    plain = re.sub("HvPkgHvPkgHv|svm(?= index)", "none", console())
    text = console() if started == "Success" else plain
    locked = re.sub("hvcheck: status .*", "hvcheck: no-status reason=no-dev-mem", text)
    seconds = {state: at for state, at in ROOT_SECONDS.items() if state in (State.FIRMWARE, State.ROOT)}
    return judged(said + locked, BootRequest(cpus=2, secure_boot=True, **fields), seconds=seconds, load_status=None)


def test_under_secure_boot_the_kernel_may_keep_the_counters() -> None:
    result = secure("Success")
    assert result.failures == []
    assert result.virtualised == [0, 1]


@pytest.mark.parametrize(
    ("started", "said"),
    [
        (
            "Access Denied: Secure Boot refuses its signature",
            "HvDxe was not started: Access Denied: Secure Boot refuses its signature",
        ),
        ("Unsupported", "HvDxe did not virtualise (Unsupported): its log does not say why"),
        ("Not Found", "HvDxe did not virtualise (Not Found): its log does not say why"),
    ],
)
def test_what_hvstart_says_is_the_one_failure(started: str, said: str) -> None:
    assert secure(started).failures == [said]


def test_a_firmware_with_hvdxe_inside_needs_none_on_the_disk() -> None:
    said = f"HvStart: HvDxe Not Found\nSecure boot enabled\n{console()}"
    request = BootRequest(cpus=2, secure_boot=True, built_in=True, firmware=Path("x"))
    assert judged(said, request, load_status=None).failures == []


def test_a_firmware_that_checks_no_signature_is_a_failure() -> None:
    text = "HvStart: HvDxe Success\n" + console()
    result = judged(text, BootRequest(cpus=2, secure_boot=True), load_status=None)
    assert result.failures == ["the firmware does not check signatures: the kernel does not say that Secure Boot is on"]

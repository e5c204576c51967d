# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a boot came to: read from the console and the log, judged, and given as JSON."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvtools.boot import startup
from hvtools.boot.checks import CheckReport, CpuCheck, parse_checks, parse_kernels
from hvtools.boot.hvlog import LogLine, parse_log, reasons
from hvtools.boot.measured import Measured, judge
from hvtools.boot.request import BootRequest
from hvtools.boot.strategy import CONSOLE_TAIL, LOG_TAIL, State, StrategyError, tails
from hvtools.errors import HvError
from hvtools.machines.console import last_lines
from hvtools.machines.protocols import Cause, Ending

_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
# The kernel says so before it restarts or powers off by request; a machine that resets by itself says nothing.
_RESTARTS = "reboot: Restarting system"
_POWERS_OFF = "reboot: Power down"
_ENFORCED = re.compile(r"UEFI Secure Boot is enabled|Secure boot enabled")
_LOCKED = "no-dev-mem"  # a kernel that was started by Secure Boot lets nobody read memory


@dataclass(frozen=True)
class ApplicationRun:
    """An EFI program that was run: its status as the shell gives it (None: it did not return), and what it wrote."""

    file: str
    status: int | None
    output: str


@dataclass(frozen=True)
class BootRecord:
    """What a boot left behind.

    Attributes:
        vendor: whose virtualization the platform has.
        accelerator: what executed the code.
        console: text of the console without control sequences.
        log: text of the hypervisor's log.
        seconds: when each state was reached, since the emulator was started.
        load_status: what HvDxe's entry point returned, None when it was not loaded.
        ending: how the machine ended, None when it had to be switched off.
        error: what stopped the boot.
        console_path: where the console's text is.
        log_path: where the log's text is.
        digest: of HvDxe, as a TPM gets it, None where it gets none.
    """

    vendor: str
    accelerator: str
    console: str
    log: str
    seconds: dict[State, float]
    load_status: int | None
    ending: Ending | None
    error: StrategyError | None
    console_path: Path
    log_path: Path
    digest: str | None = None


@dataclass
class BootResult:
    """One boot.

    Attributes:
        request: what was asked.
        record: what was left behind.
        checks: what the self-check printed, under the last kernel.
        log: the hypervisor's events.
        application: the EFI program that was run instead of Linux.
        earlier: what it printed under the kernels before, each of which started the next.
        measured: what the TPM got, None without one.
        failures: everything that is wrong, one line each; empty for a success.
    """

    request: BootRequest
    record: BootRecord
    checks: CheckReport
    log: list[LogLine]
    application: ApplicationRun | None
    earlier: list[CheckReport] = field(default_factory=list)
    measured: Measured | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.failures

    def report(self) -> str:
        """Give all that a person needs to see why a boot failed."""
        log = last_lines(self.record.log, LOG_TAIL)
        parts = [f"failure: {failure}" for failure in self.failures]
        parts.append(tails(last_lines(self.record.console, CONSOLE_TAIL), log))
        parts.append(f"logs: {self.record.console_path.parent}")
        return "\n".join(parts)

    def must_be_ok(self) -> BootResult:
        """Give the result itself, if nothing is wrong.

        Raises:
            HvError: something is; with the last lines of console and log.
        """
        if not self.ok:
            raise HvError(self.report())
        return self

    @property
    def not_loaded(self) -> str | None:
        """Why HvDxe is not there: what it returned, or what kept it from being started. None where it is there."""
        if self.record.load_status:
            return f"status {self.record.load_status:#x}"
        if not self.request.starter or not self.request.hypervisor or self.request.built_in:
            return None
        started = startup.STARTED.search(self.record.console)
        return None if started is None or started[1].strip() == "Success" else started[1].strip()

    @property
    def cpus_seen(self) -> list[CpuCheck]:
        """What the processors see, at the first check."""
        for when in ("start", "end", "shell"):
            if when in self.checks.cpus:
                return self.checks.cpus[when]
        return []

    @property
    def virtualised(self) -> list[int]:
        """Processors that are under HvPkg by their own CPUID."""
        return [check.cpu for check in self.cpus_seen if check.virtualised]

    @property
    def exits(self) -> Counter[str]:
        """Exits of all processors by kind, as the hypervisor counted them to the end."""
        return sum(self.checks.latest_exits().values(), Counter())

    def boot_exits(self) -> Counter[str] | None:
        """Give the exits from ExitBootServices to the first program of the first kernel, or None without a count."""
        return (*self.earlier, self.checks)[0].boot_exits()

    @property
    def root_seconds(self) -> float | None:
        """Seconds from the start of the emulator to the first line of the first program."""
        return self.record.seconds.get(State.ROOT)

    def as_json(self) -> dict[str, Any]:
        """Give the result for `--json`."""
        checks = self.checks
        status = checks.status
        boot_exits = self.boot_exits()
        scripted = self.request.script is not None
        return {
            "ok": self.ok,
            "failures": self.failures,
            "platform": self.request.platform,
            "vendor": self.record.vendor,
            "accel": self.record.accelerator,
            "hypervisor": self.request.hypervisor,
            "cpus": self.request.cpus,
            "memory_mib": self.request.memory_mib,
            "settings": dict(self.request.settings),
            "secure_boot": self.request.secure_boot,
            "tpm": self._tpm_json(),
            "load_status": self.record.load_status,
            "virtualised": self.virtualised,
            "root": {
                "reached": State.ROOT in self.record.seconds,
                "online": checks.online,
                "seconds": _rounded(self.root_seconds),
                "kernel": checks.kernel,
                "cpus": [
                    {
                        "cpu": check.cpu,
                        "signature": check.signature,
                        "backend": check.backend,
                        "index": check.index,
                        "svm": check.svm,
                        "vmx": check.vmx,
                    }
                    for check in self.cpus_seen
                ],
            },
            "states": {state.value: _rounded(seconds) for state, seconds in self.record.seconds.items()},
            "exits": _counted(self.exits) if checks.exits else None,
            "exits_by_cpu": {str(cpu): _counted(counts) for cpu, counts in checks.latest_exits().items()},
            "exits_boot": None if boot_exits is None else _counted(boot_exits),
            "nested_page_sizes": list(status.page_sizes) if status else None,
            "reserved_bytes": status.reserved_bytes if status else None,
            "dma_protection": status.dma if status else None,
            "nested_bytes": status.nested_bytes if status else None,
            "script": {"exit": checks.script_exit, "output": checks.script_output} if scripted else None,
            "run": None
            if self.application is None
            else {
                "file": self.application.file,
                "status": self.application.status,
                "output": self.application.output,
            },
            "ended": self.record.ending.cause.value if self.record.ending else None,
            "ticks": self.record.ending.ticks if self.record.ending else None,
            "console": str(self.record.console_path),
            "log": str(self.record.log_path),
        }

    def _tpm_json(self) -> dict[str, Any] | None:
        if self.measured is None:
            return None
        event = self.measured.hypervisor
        found = None if event is None else {"register": event.register, "event": event.kind, "sha256": event.digest}
        return {"hypervisor": found, "registers": {str(i): value for i, value in self.checks.registers.items()}}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _counted(counts: Counter[str]) -> dict[str, int]:
    return {**{kind: count for kind, count in counts.most_common() if count}, "total": sum(counts.values())}


def read_application(console: str, file: str) -> ApplicationRun:
    """Find in the console's text what an EFI program wrote and returned."""
    begun = startup.APPLICATION_BEGUN.search(console)
    if begun is None:
        return ApplicationRun(file, None, "")
    ended = startup.APPLICATION_ENDED.search(console, begun.end())
    output = console[begun.end() : ended.start() if ended else len(console)]
    return ApplicationRun(file, int(ended[1], 16) if ended else None, output.lstrip("\n"))


def evaluate(request: BootRequest, record: BootRecord) -> BootResult:
    """Read what a boot left behind, and judge it."""
    *earlier, last = parse_kernels(record.console)
    result = BootResult(
        request=request,
        record=record,
        checks=last,
        log=parse_log(record.log),
        application=read_application(record.console, request.application.name) if request.application else None,
        earlier=earlier,
        measured=judge(last, record.digest) if request.tpm and last.kernel is not None else None,
    )
    result.failures = [
        *_hypervisor_failures(result),
        *([str(record.error)] if record.error else []),
        *(_application_failures(result) if request.application else _linux_failures(result)),
        *(result.measured.failures if result.measured else ()),
        *_ending_failures(result),
    ]
    return result


def _hypervisor_failures(result: BootResult) -> list[str]:
    if result.request.built_in and State.ROOT in result.record.seconds and not result.virtualised:
        why = reasons(result.log) or ["its log is empty"]
        return [f"HvDxe in the firmware did not virtualise: {'; '.join(why)}"]
    not_loaded = result.not_loaded
    if not result.request.hypervisor or not_loaded is None:
        return []
    if startup.REFUSED in not_loaded:
        return [f"HvDxe was not started: {not_loaded}"]
    why = reasons(result.log) or ["its log does not say why"]
    return [f"HvDxe did not virtualise ({not_loaded}): {'; '.join(why)}"]


def _linux_failures(result: BootResult) -> list[str]:
    checks = result.checks
    if checks.kernel is None or result.record.error is not None:
        return []  # what stopped it is said already
    found = []
    for kernel in (*result.earlier, checks):
        found += kernel.errors
        if kernel.online != result.request.cpus:
            found.append(f"the root has {kernel.online} of {result.request.cpus} processors online")
        for when in ("start", "end"):
            found += _cpu_failures(result, kernel, when)
    found += _count_failures(result, checks)
    locked = result.request.secure_boot and checks.missing_status == _LOCKED
    if result.request.hypervisor and not result.not_loaded and checks.status is None and not locked:
        found.append(f"the hypervisor's counters cannot be read: {checks.missing_status or 'nothing was printed'}")
    if result.request.secure_boot and not _ENFORCED.search(result.record.console):
        found.append("the firmware does not check signatures: the kernel does not say that Secure Boot is on")
    if checks.script_exit:
        found.append(f"the script ended with exit code {checks.script_exit}")
    return found


def _cpu_failures(result: BootResult, kernel: CheckReport, when: str) -> list[str]:
    seen = kernel.cpus.get(when, [])
    if not seen and when == "end" and not kernel.done:
        return []  # the script ended the machine, or the kernel
    at = "in the shell" if when == "shell" else f"at the {when}"
    if not result.request.hypervisor or result.not_loaded:
        wrong = [check.cpu for check in seen if check.virtualised]
        return [f"processors {_list(wrong)} say that they are under HvPkg, which is not there, {at}"] if wrong else []
    found = []
    outside = [check.cpu for check in seen if not check.virtualised]
    if not seen:
        found.append(f"no processor was checked {at}")
    if outside:
        found.append(f"processors {_list(outside)} are not under HvPkg {at}")
    if when != "end" and len(seen) != result.request.cpus:
        found.append(f"{len(seen)} of {result.request.cpus} processors were checked {at}")
    showing = [check.cpu for check in seen if check.virtualised and (check.svm or check.vmx)]
    if showing:
        found.append(f"processors {_list(showing)} show SVM or VMX to the root {at}")
    foreign = [check.cpu for check in seen if check.virtualised and check.backend != result.record.vendor]
    if foreign:
        found.append(f"processors {_list(foreign)} do not name the backend {result.record.vendor} {at}")
    return found


def _count_failures(result: BootResult, report: CheckReport) -> list[str]:
    """Compare the processors that the hypervisor counts with those of the machine."""
    status = report.status
    if not result.request.hypervisor or status is None or status.virtualised == result.request.cpus:
        return []
    return [f"the hypervisor counts {status.virtualised} of {result.request.cpus} processors as virtualised"]


def _application_failures(result: BootResult) -> list[str]:
    run = result.application
    if run is None or result.record.error is not None:
        return []
    found = list(result.checks.errors)
    if run.status is None:
        return [*found, f"{run.file} did not return to the shell"]
    if run.status != 0:
        found.append(f"{run.file} returned {run.status:#x}")
    if not result.request.hypervisor:
        return found
    # The program may have been HvStatus itself: what counts is the one that the startup script runs behind it.
    final = parse_checks(startup.APPLICATION_ENDED.split(result.record.console, maxsplit=1)[-1])
    if final.status is None and not result.not_loaded:
        found.append("HvStatus did not print the hypervisor's counters")
    if final.cpus:
        found += _cpu_failures(result, final, "shell")
    return [*found, *_count_failures(result, final)]


def _ending_failures(result: BootResult) -> list[str]:
    panic = _PANIC.search(result.record.console)
    if panic and result.record.error is None:
        return [f"the root kernel panicked: {panic[1].strip()}"]
    if result.record.error is not None or result.record.ending is None or result.application is not None:
        return []
    cause = result.record.ending.cause
    if cause is Cause.POWEROFF and (result.checks.done or _POWERS_OFF in result.record.console):
        return []
    if cause is Cause.REBOOT and _RESTARTS in result.record.console and result.checks.script_begun:
        return []
    return [f"the machine ended before the self-check was through: {result.record.ending.detail}"]


def _list(cpus: list[int]) -> str:
    return ", ".join(str(cpu) for cpu in cpus)

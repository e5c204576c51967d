# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a person sees of a boot: its states while it runs, and the summary."""

from __future__ import annotations

from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hvtools import ui
from hvtools.boot.request import BootRequest
from hvtools.boot.result import BootResult
from hvtools.boot.strategy import State, tails
from hvtools.images.files import human_size
from hvtools.machines.console import clean

_TITLES = {
    State.FIRMWARE: "firmware",
    State.SHELL: "UEFI shell",
    State.HYPERVISOR: "HvDxe",
    State.ROOT: "root",
}
_SIZES = {"4k": "4 KiB", "2m": "2 MiB", "1g": "1 GiB"}


class Progress:
    """Shows a machine's states; on a terminal with what it is waiting for."""

    def __init__(self, request: BootRequest, show_console: bool) -> None:
        """Nothing is printed yet.

        Args:
            request: what is booted.
            show_console: pass the machine's console on to standard error.
        """
        self._request = request
        self._show_console = show_console
        self._clock: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Progress:
        """Say what begins."""
        request = self._request
        processors = "1 CPU" if request.cpus == 1 else f"{request.cpus} CPUs"
        what = request.application.name if request.application else "Linux"
        how = "under HvDxe" if request.hypervisor else "without hypervisor"
        if request.built_in:
            how += " in the firmware"
        if request.secure_boot:
            how += " with Secure Boot"
        ui.info(f"booting {what} {how} on {request.platform}: {processors}, {request.memory_mib} MiB")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal clean."""
        if self._clock is not None:
            self._clock.stop()

    def reached(self, state: State, seconds: float) -> None:
        """Show a state, and on a terminal a clock for what comes next."""
        if state is State.OFF:
            if ui.err.is_terminal and not self._show_console:
                columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
                self._clock = rich.progress.Progress(*columns, console=ui.err, transient=True)
                self._clock.start()
                self._task = self._clock.add_task(self._next(state))
            return
        ui.info(f"{seconds:6.1f} s  {_TITLES[state]}")
        if self._clock is not None and self._task is not None:
            self._clock.update(self._task, description=self._next(state), refresh=True)

    def _next(self, state: State) -> str:
        what = self._request.application.name if self._request.application else "Linux"
        titles = {
            State.OFF: "the firmware starts",
            State.FIRMWARE: f"{what} starts" if self._request.starter else "the UEFI shell starts",
            State.SHELL: "HvDxe is loaded" if self._request.hypervisor else f"{what} starts",
            State.HYPERVISOR: f"{what} starts",
            State.ROOT: f"{what} runs",
        }
        return titles[state]

    def heard(self, text: str) -> None:
        """Show a piece of the console."""
        if self._show_console:
            ui.err.file.write(clean(text))
            ui.err.file.flush()


def summary(result: BootResult) -> Table:
    """Make the table at the end of a boot."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    checks = result.checks
    status = checks.status
    request = result.request
    if request.hypervisor:
        up = len(result.virtualised) if result.cpus_seen else (status.virtualised if status else 0)
        table.add_row("CPUs virtualised", f"{up} of {request.cpus}" + (f" ({status.vendor})" if status else ""))
        if status:
            table.add_row("nested pages", ", ".join(_SIZES.get(size, size) for size in status.page_sizes) or "none")
            nested = human_size(status.nested_bytes)
            table.add_row("reserved", f"{human_size(status.reserved_bytes)}, of it {nested} in nested tables")
            table.add_row("DMA protection", status.dma)
    if result.application is None:
        root = "not reached"
        if checks.kernel is not None and result.root_seconds is not None:
            online = "1 CPU" if checks.online == 1 else f"{checks.online} CPUs"
            root = f"Linux {checks.kernel}, {online} online, {result.root_seconds:.1f} s to user space"
        table.add_row("root", root)
    else:
        run = result.application
        table.add_row("run", f"{run.file}: " + ("did not return" if run.status is None else f"status {run.status:#x}"))
    if request.secure_boot and checks.kernel is not None:
        table.add_row("Secure Boot", "on: only what these keys sign is started")
    if result.measured is not None and not result.measured.failures:
        event = result.measured.hypervisor
        what = "" if event is None else f"HvDxe {event.digest[:16]}... in register {event.register}; "
        table.add_row("measured", f"{what}the TPM's registers are what the event log leads to")
    if checks.exits:
        table.add_row("exits", f"{result.exits.total()} in all: {_kinds(result)}")
        boot = result.boot_exits()
        if boot is not None:
            kinds = ", ".join(f"{kind} {count}" for kind, count in boot.most_common())
            table.add_row("", f"{boot.total()} from ExitBootServices to user space: {kinds}")
    if request.script is not None:
        ended = "did not end" if checks.script_exit is None else f"exit code {checks.script_exit}"
        table.add_row("script", ended)
    ending = result.record.ending
    table.add_row("machine", ending.detail if ending else "switched off")
    table.add_row("logs", str(result.record.console_path.parent))
    return table


def _kinds(result: BootResult) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in result.exits.most_common() if count)


def print_result(result: BootResult, out: Console = ui.out, err: Console = ui.err) -> None:
    """Print what a boot came to: the output of what it ran, the summary, and what is wrong."""
    output = result.application.output if result.application else result.checks.script_output
    if output:
        out.file.write(output if output.endswith("\n") else output + "\n")
        out.file.flush()
    out.print(summary(result))
    error = result.record.error
    if error is not None:
        err.print(tails(error.console, error.log), markup=False)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's own log: failures in words, addresses with their source lines, dumped states checked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hvtools import build
from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.decode import words
from hvtools.decode.dump import CPUS_MAX, Dump, Dumps, Finding, describe, logged
from hvtools.decode.report import Explanations, Report, Table
from hvtools.decode.symbols import Symbols
from hvtools.errors import HvError
from hvtools.generated import msr
from hvtools.generated.log_events import EVENTS

Values = dict[str, int | str]

_FINDINGS_MAX = 200
_LOGGED = range(1 << 64)  # numbers that HvDxe can log
_DUMPS_MAX = 16


def typed(line: LogLine) -> Values | None:
    """Give the fields of an event as its row has them; None when they are not all there."""
    row = EVENTS.get(line.event)
    if row is None or [key for key, _ in row.fields] != list(line.fields):
        return None
    values: Values = {}
    for key, kind in row.fields:
        text = line.fields[key]
        try:
            value = text if kind == "s" else int(text, 16 if kind == "x" else 10)
        except ValueError:
            return None
        if isinstance(value, int) and value not in _LOGGED:
            return None
        values[key] = value
    return values


class HypervisorLog:
    """Reads lines `hv: LEVEL cpuN event key=value ...`."""

    def __init__(self, debug: Path | None = None) -> None:
        """Start a log.

        Args:
            debug: The .debug file of the build that ran; None for the one in Build.
        """
        self._debug = debug
        self._symbols: Symbols | None = None
        self._vendor = ""
        self._target = ""
        self._previous = False
        self._guessed: Path | None = None
        self._image: Values | None = None
        self._events: Counter[str] = Counter()
        self._damaged = 0
        self._said = Explanations()
        self._findings: dict[int, list[Finding]] = {}
        self._collector = Dumps()
        self._dumps: list[tuple[Dump, list[Finding]]] = []

    def feed(self, line: str) -> None:
        """Take a line of any kind."""
        if "hv: " not in line:
            return
        for event in parse_log(line):
            values = typed(event)
            if values is None:
                self._damaged += 1
            else:
                self._take(event, values)

    def _take(self, event: LogLine, values: Values) -> None:
        self._events[event.event] += 1
        dump = self._collector.feed(event.cpu, event.event, values)
        if dump is not None and len(self._dumps) < _DUMPS_MAX:
            # The rules are logged before the state that breaks them.
            self._dumps.append((dump, self._findings.pop(event.cpu, [])))
        if event.event == "start":
            self._target = str(values["build"])
        elif event.event == "backend":
            self._vendor = str(values["name"])
        elif event.event == "image":
            self._image, self._symbols, self._previous = values, None, False
        elif event.event == "previous-run":
            self._image, self._symbols, self._previous = values, None, True
        elif event.event == "previous-run-end":
            self._image, self._symbols, self._previous = None, None, False
        elif event.event == "entry-rule":
            if event.cpu in self._findings or len(self._findings) < CPUS_MAX:
                found = self._findings.setdefault(event.cpu, [])
                if len(found) < _FINDINGS_MAX:
                    found.append(logged(values))
        explain = EXPLAINED.get(event.event)
        if explain is not None:
            self._said.add(f"cpu{event.cpu}: {explain(self, values)}")
        elif EVENTS[event.event].level == "error" and event.event != "entry-rule":
            self._said.add(f"cpu{event.cpu}: {EVENTS[event.event].text}: {event.text()}{self._places(values)}")

    def reports(self) -> list[Report]:
        """Say what was found."""
        if not self._events and not self._damaged:
            return []
        report = Report("log of HvDxe")
        for dump, said in self._dumps:
            self._add_dump(report, dump, said)
        for cpu, said in self._findings.items():
            report.explanations += [f"cpu{cpu}: breaks {finding.text()}" for finding in said]
        report.explanations += self._said.lines()
        if self._guessed is not None:
            report.explanations.append(
                f"the log does not name the build that ran: functions and lines are those of {self._guessed}, which has"
                " only the size in common, and may be of another: --symbols FILE"
            )
        for dump in self._collector.unfinished():
            report.explanations.append(f"cpu{dump.cpu}: a dump was cut off after {len(dump.words)} words")
        if self._damaged:
            report.explanations.append(
                f"{self._damaged} lines are not what the table of events says: damaged, or another version"
            )
        if not report.explanations:
            report.explanations.append(_quiet(self._events))
        report.tables.append(Table("events", ("event", "count"), [(n, str(c)) for n, c in self._events.most_common()]))
        report.data = {
            "events": dict(self._events),
            "backend": self._vendor,
            "dumps": [dump.as_json() for dump, _ in self._dumps],
        }
        return [report]

    def _add_dump(self, report: Report, dump: Dump, said: list[Finding]) -> None:
        name = f"cpu{dump.cpu}: {dump.kind.upper()}"
        if not dump.complete:
            report.explanations.append(f"{name}: the dump is damaged or not whole, so the rules do not run over it")
            report.explanations += [f"{name}: breaks {finding.text()}; so the log says" for finding in said]
        else:
            try:
                found = dump.check()
            except HvError as error:
                report.explanations.append(f"{name}: the rules cannot run here: {error}")
            else:
                report.explanations += [f"{name}: {line}" for line in compared(found, said)]
        report.tables.append(Table(name, ("field", "value", "in words"), self._described(dump)))

    def _described(self, dump: Dump) -> list[tuple[str, str, str]]:
        broken = {finding.field for finding in dump.findings or []}
        rows = []
        for name, value in dump.fields():
            text = self.place(value) if name == "HOST_RIP" else describe(name, value)
            rows.append(
                (name, f"{value:#x}", " ".join([text, "<- breaks a rule"] if name in broken else [text]).strip())
            )
        return rows

    def place(self, address: int) -> str:
        """Give an address of the hypervisor as function, file and line; empty when it is not one."""
        if self._image is None:
            return ""
        offset = address - int(self._image["base"])
        if not 0 <= offset < int(self._image["bytes"]):
            return ""
        if self._symbols is None:
            debug = self._debug or self._build() / "HvDxe.debug"
            if self._debug is None and not _is_size(debug.with_suffix(".efi"), int(self._image["bytes"])):
                return f"HvDxe+{offset:#x} (the build in {debug.parent} is not the one that ran: --symbols FILE)"
            self._symbols = Symbols(debug)
            if self._debug is None and not self._names_build():
                self._guessed = debug.parent
        return self._symbols.name(offset) or f"HvDxe+{offset:#x}"

    def _places(self, values: Values) -> str:
        """Give those values of an event that are addresses of the hypervisor."""
        places = [(key, self.place(value)) for key, value in values.items() if isinstance(value, int)]
        return "".join(f"; {key} is {place}" for key, place in places if place)

    def _names_build(self) -> bool:
        """Whether the log says which build ran; of the run before, whose start is not in it, it does not."""
        return self._target in build.TARGETS and not self._previous

    def _build(self) -> Path:
        """The folder of the build that the log names, else of the first that has the image's size."""
        if self._names_build():
            return build.image_dir(self._target)
        folders = [build.image_dir(target) for target in build.TARGETS]
        size = int(self._image["bytes"]) if self._image else 0
        return next((folder for folder in folders if _is_size(folder / "HvDxe.efi", size)), folders[0])

    def exit(self, code: int, info1: int, info2: int) -> str:
        """Give an exit in words."""
        if not self._vendor:
            return f"exit {code:#x}"
        details = words.exit_details(self._vendor, code, info1, info2)
        return f"exit {code:#x} {words.exit_name(self._vendor, code)}" + (f" ({details})" if details else "")

    def refusal(self, code: int) -> str:
        """Give what the processor said to an entry that it refused."""
        if self._vendor == "vmx" and not code >> 31:
            return f"VM-instruction error {code}: {words.instruction_error(code)}" if code else "no current VMCS"
        return f"{words.exit_name(self._vendor, code)} ({code:#x})" if self._vendor else f"{code:#x}"


def _is_size(image: Path, size: int) -> bool:
    """Tell whether an image takes so many bytes in memory."""
    return image.is_file() and (image.stat().st_size + 0xFFF) & ~0xFFF == size


def compared(found: list[Finding], said: list[Finding]) -> list[str]:
    """Give the rules that a dump breaks, and whether the log names the same."""
    if not found:
        logs = [f"the log says that it breaks {finding.text()}" for finding in said]
        return logs or ["no rule of the manual is broken: it was refused for something that no rule covers"]
    # The log stops after eight.
    note = "as the log says" if said and found[: len(said)] == said else "the log says something else"
    return [f"breaks {finding.text()}; {note}" for finding in found]


def _quiet(events: Counter[str]) -> str:
    if events["launch-done"]:
        return "nothing failed: every processor runs as a guest"
    return "nothing failed, and the launch is not done: the log may end too early"


def _rip(log: HypervisorLog, values: Values) -> str:
    return f"at rip {int(values['rip']):#x}"


def _host_exception(log: HypervisorLog, values: Values) -> str:
    number, error, address = int(values["vector"]), int(values["error"]), int(values["cr2"])
    place = log.place(int(values["rip"]))
    text = f"the hypervisor itself took {words.vector(number)} at {int(values['rip']):#x}" + (
        f", {place}" if place else ""
    )
    if words.vector(number) == "#PF":
        text += f": {words.page_fault(error)}, address {address:#x}"
        text += " (a null pointer)" if address < 0x1000 else "" if words.canonical(address) else " (not canonical)"
    elif error:
        text += f": error code {error:#x}" + (f", selector {error & 0xFFF8:#x}" if number in (10, 11, 12, 13) else "")
    return text


def _cpu_failed(log: HypervisorLog, values: Values) -> str:
    detail = int(values["detail"])
    said = log.refusal(detail) if "entry was refused" in str(values["reason"]) else f"detail {detail:#x}"
    number, apic = values["index"], int(values["apic-id"])
    return f"processor {number} (APIC id {apic:#x}) could not be virtualised: {values['reason']}, {said}"


def _host_stack(log: HypervisorLog, values: Values) -> str:
    words_there = [int(values[f"w{number}"]) for number in range(4)]
    places = [f"{word:#x} {place}" for word in words_there if (place := log.place(word))]
    return f"stack at {int(values['at']):#x}: {', '.join(places) or 'no code'}"


def _msr(log: HypervisorLog, values: Values) -> str:
    number = int(values["msr"])
    name = msr.MSRS.get(number)
    what = f"WRMSR of {int(values['value']):#x} to" if values["write"] else "RDMSR of"
    known = f"{name} ({number:#x})" if name else f"{number:#x}, which no row of the table names"
    return f"{what} {known} raised #GP in the root {_rip(log, values)}: the processor or the policy refuses it"


EXPLAINED: dict[str, Callable[[HypervisorLog, Values], str]] = {
    "option-bad": lambda log, v: f"option refused: {v['text']}: {v['reason']}",
    "requirement-unmet": lambda log, v: (
        f"{v['backend']} cannot run here: {v['name']} ({v['source']} reads {int(v['value']):#x},"
        f" expected {v['expected']})"
    ),
    "cpu-failed": _cpu_failed,
    "launch-failed": lambda log, v: f"the launch was undone because of processor {v['index']}: {v['reason']}",
    "msr-gp": _msr,
    "npf-unexpected": lambda log, v: (
        f"nested page fault at guest-physical {int(v['gpa']):#x} that nothing claims, {_rip(log, v)}: "
        + (
            words.nested_error(int(v["error"]))
            if log._vendor != "vmx"
            else words.word(int(v["error"]), "HV_EPT_VIOLATION")
        )
    ),
    "nested-malformed": lambda log, v: (
        f"the nested entry for {int(v['gpa']):#x} at level {v['level']} has attributes {int(v['attributes']):#x},"
        f" which the processor does not take, {_rip(log, v)}"
    ),
    "decode-failed": lambda log, v: f"instruction {int(v['bytes']):x} cannot be decoded {_rip(log, v)}: {v['reason']}",
    "host-write-dropped": lambda log, v: (
        f"the root wrote to the hypervisor's memory at {int(v['gpa']):#x} {_rip(log, v)}: dropped"
    ),
    "exit-unknown": lambda log, v: (
        f"{log.exit(int(v['code']), int(v['info1']), int(v['info2']))} {_rip(log, v)}: no row expects it,"
        " the root got #GP"
    ),
    "entry-failed": lambda log, v: f"the processor refused the entry: {log.refusal(int(v['code']))}",
    "guest-state": lambda log, v: (
        f"the guest was {_rip(log, v)}, CR0 [{words.word(int(v['cr0']), 'HV_CR0')}],"
        f" CR4 [{words.word(int(v['cr4']), 'HV_CR4')}], EFER [{words.word(int(v['efer']), 'HV_EFER')}]"
    ),
    "shutdown": lambda log, v: f"triple fault of the root {_rip(log, v)}: the platform resets, as without a hypervisor",
    "host-exception": _host_exception,
    "host-stack": _host_stack,
    "previous-run": lambda log, v: (
        f"the run before this one ended in an exception of the hypervisor on cpu{v['cpu']}, whose record follows"
    ),
    "host-park": lambda log, v: f"this processor stopped: {v['reason']}",
    "page-pool-empty": lambda log, v: f"no page is left for nested tables ({v['used']} used)",
    "map-failed": lambda log, v: f"guest-physical {int(v['gpa']):#x} could not be mapped: {v['reason']}",
}
"""Failures in words; an error that is not here is given as the table of events says it."""

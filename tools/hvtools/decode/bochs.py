# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Logs of Bochs: panics, refused VM entries, what the guest tried that the model does not have, register dumps."""

from __future__ import annotations

import re
from collections import Counter, deque

from hvtools.decode import pagewalk
from hvtools.decode.cpu import Processor, Segment, register
from hvtools.decode.report import Explanations, Report, Table, count
from hvtools.generated import msr

_LINE = re.compile(r"^(\d{11,20})([a-z])\[([^\]]{1,12})\] (.*)")
_LEVELS = {"e": "error", "i": "info", "d": "debug", "p": "panic"}
_PANIC = ">>PANIC<< "
_POWER_OFF = "ACPI control: soft power off"
_NUMBER = re.compile(r"\b(0x[0-9a-fA-F]+|[0-9a-f]{8,}|\d+)\b")
_KINDS_MAX = 200
_SHOWN = 15
_RECENT = 10

_MSR = re.compile(r"(RDMSR|WRMSR): Unknown register (?:0x)?([0-9a-fA-F]{1,8})")
_TRIPLE = re.compile(r"exception\(\): 3rd \((\d+)\) exception with no resolution")
_REGISTER = re.compile(r"\b(R[0-9A-Z]{1,2}|E[A-Z]{2}|CR[0-4])=(?:0x)?([0-9a-f]{8,16})\b")
_FLAGS = re.compile(r"\bEFLAGS=([0-9a-f]{8})")
_EFER = re.compile(r"^EFER += 0x([0-9a-f]{8})")
_SEGMENT = re.compile(
    r"\|  (CS|DS|SS|ES|FS|GS):([0-9a-f]{4})\( *[0-9a-f]+\| *\d\| +\d\) ([0-9a-f]{8}) ([0-9a-f]{8}) ([01]) ([01])"
)
_BASE = re.compile(r"MSR_(FS|GS)_BASE:([0-9a-f]{16})")
_MODE = re.compile(r"^CPU is in (.+) \((\w[^)]*)\)")
_CS_MODE = re.compile(r"^CS\.mode = (\d\d) bit")
_CODE = re.compile(r"^0x[0-9a-f]+>> .* : ((?:[0-9A-F]{2})+)$")

_CAUSES = (
    ("VMENTER FAIL: ", "the VM entry failed, the guest's state breaks a rule of SDM 27.3: {rest}"),
    ("VMFAIL: ", "VMLAUNCH or VMRESUME failed, a control or the host's state breaks a rule of SDM 27.2: {rest}"),
    (
        "VMEXIT: Guest State Checks Failed",
        "the VM entry was refused with exit reason 33: the line before names the rule",
    ),
    ("VMRUN: ", "VMRUN was refused (VMEXIT_INVALID), the VMCB breaks a rule of APM2 15.5.1: {rest}"),
)
"""Beginnings of error lines, and what they mean."""
_PANICS = (
    (_TRIPLE, "triple fault outside of any guest: a fault, while handling a fault, while handling the first"),
    (
        re.compile("EFER.LMA is set when CR0.PE=0"),
        "VMRUN got EFER.LMA without CR0.PE: a processor gives VMEXIT_INVALID",
    ),
    (re.compile("asked to set dirty on paging leaf"), "a shadow stack page: exclude the feature cet from the model"),
    (re.compile(r"image locked|\.lock"), "a Bochs that was killed left the image's .lock file: delete it"),
    (re.compile("SKINIT"), "Bochs has no SKINIT"),
)


class BochsLog:
    """Reads a log of Bochs."""

    def __init__(self, memory: pagewalk.Physical | None = None) -> None:
        """Start without any.

        Args:
            memory: The machine's memory, for page walks.
        """
        self._memory = memory
        self._lines = 0
        self._panics = Explanations(20)
        self._said = Explanations()
        self._errors: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        self._msrs: Counter[tuple[str, int]] = Counter()
        self._recent: deque[tuple[str, str, str]] = deque(maxlen=_RECENT)
        self._ended = ""
        self._dumps: deque[Processor] = deque(maxlen=8)
        self._dumped = 0

    def feed(self, line: str) -> None:
        """Take a line of any kind."""
        if not line[:1].isdigit():
            return
        match = _LINE.match(line)
        if match is None or match[2] not in _LEVELS:
            return
        self._lines += 1
        tick, level, device, text = match[1], match[2], match[3].strip(), match[4]
        if level == "p" or text.startswith(_PANIC):
            self._panic(tick, device, text.removeprefix(_PANIC))
        elif level == "e":
            self._error(tick, device, text)
        elif level == "i":
            self._register(device, text)

    def _panic(self, tick: str, device: str, text: str) -> None:
        if text == _POWER_OFF:
            self._ended = tick
            return
        meaning = next((said for pattern, said in _PANICS if pattern.search(text)), "")
        self._panics.add(f"panic at tick {int(tick)} of {device}: {text}" + (f": {meaning}" if meaning else ""))

    def _error(self, tick: str, device: str, text: str) -> None:
        self._recent.append((tick, device, text))
        kind = (device, _NUMBER.sub("#", text))
        if count(self._errors, kind, _KINDS_MAX):
            self._examples.setdefault(kind, text)
        for start, said in _CAUSES:
            if text.startswith(start):
                self._said.add(f"{device}: {said.format(rest=text[len(start) :].strip())}")
        if found := _MSR.search(text):
            count(self._msrs, (found[1], int(found[2], 16)), _KINDS_MAX)
        if _TRIPLE.search(text):
            self._said.add(f"{device}: triple fault, the machine resets: {text}")

    def _register(self, device: str, text: str) -> None:
        if found := _MODE.match(text):
            self._dumped += 1
            self._dumps.append(Processor(f"{device}, {found[2]}", halted=found[2].startswith("halted")))
            return
        if not self._dumps or not self._dumps[-1].heading.startswith(f"{device},"):
            return
        now = self._dumps[-1]
        for name, value in _REGISTER.findall(text):
            now.values[register(name)] = int(value, 16)
        if found := _FLAGS.search(text):
            now.values["rflags"] = int(found[1], 16)
        elif found := _EFER.match(text):
            now.values["efer"] = int(found[1], 16)
        elif found := _CS_MODE.match(text):
            now.segments["cs"] = Segment(0, 0, 0, big=found[1] == "32", long=found[1] == "64")
        elif found := _SEGMENT.match(text):
            _set_segment(now, found)
        elif found := _BASE.search(text):
            name = found[1].lower()
            old = now.segments.get(name, Segment(0, 0, 0))
            now.segments[name] = Segment(old.selector, int(found[2], 16), old.limit, big=old.big)
        elif found := _CODE.match(text):
            now.code = bytes.fromhex(found[1][:30])

    def reports(self) -> list[Report]:
        """Say what was found."""
        if not self._lines:
            return []
        report = Report("log of Bochs", explanations=[*self._panics.lines(), *self._said.lines()])
        for dump in self._dumps:
            report.explanations.append(dump.summary())
            report.explanations += [f"  {odd}" for odd in dump.oddities()]
        for dump in self._dumps:
            report.tables += dump.tables(self._memory)
        if self._msrs:
            different = len({number for _, number in self._msrs})
            report.explanations.append(
                f"{different} MSRs were accessed that the model does not have: #GP for the guest, or with"
                " ignore_bad_msrs=1 reads of 0 and lost writes"
            )
            rows = [
                (access, f"{n:#x}", msr.MSRS.get(n, ""), str(c)) for (access, n), c in self._msrs.most_common(_SHOWN)
            ]
            report.tables.append(Table("MSRs that the model does not have", ("access", "MSR", "name", "count"), rows))
        if self._ended:
            report.explanations.append(f"the machine powered itself off at tick {int(self._ended)}: a normal end")
        elif not self._panics.lines():
            report.explanations.append("the log ends without a power-off: the machine was stopped, or still runs")
        errors = [
            (device, self._examples[device, kind], str(times))
            for (device, kind), times in self._errors.most_common(_SHOWN)
        ]
        if errors:
            report.tables.append(Table("errors by kind, one of each", ("device", "message", "count"), errors))
            report.tables.append(Table("last errors", ("tick", "device", "message"), list(self._recent)))
        report.data = {"panicked": bool(self._panics.lines()), "powered_off": bool(self._ended), "dumps": self._dumped}
        return [report]


def _set_segment(now: Processor, found: re.Match[str]) -> None:
    old = now.segments.get(found[1].lower())
    now.segments[found[1].lower()] = Segment(
        selector=int(found[2], 16),
        base=int(found[3], 16),
        limit=int(found[4], 16),
        big=found[6] == "1",
        long=old.long if old else False,
        kind=f"{'4 KiB' if found[5] == '1' else 'byte'} granularity",
    )

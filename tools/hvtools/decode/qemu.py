# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Register dumps of QEMU: `info registers`, `-d cpu_reset,int`, and what it prints when KVM gives up."""

from __future__ import annotations

import re
from collections import deque

from hvtools.decode import pagewalk, words
from hvtools.decode.cpu import Processor, Segment, register
from hvtools.decode.report import Explanations, Report

_FIRST, _LAST = 4, 12
_STARTS = ("CPU", "SMM:", "Triple", "KVM", "extra", "error:", "check_exception")
_REGISTER = re.compile(r"\b(R[0-9A-Z]{1,2}|E[A-Z]{2}|CR[0-8]|EFER) ?=([0-9a-f]{8,16})\b")
_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) ?=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})(.*)")
_TABLE = re.compile(r"^(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})")
_STATE = re.compile(r"\b(CPL|HLT)=(\d)")
_CODE = re.compile(r"^Code=((?:(?:[0-9a-f]{2}|<[0-9a-f]{2}>|\?\?)(?: +|$))*)")
_SUBERROR = re.compile(r"KVM internal error\. Suberror: (\d+)")
_EXTRA = re.compile(r"extra data\[(\d+)\]: (?:0x)?([0-9a-f]{1,16})\b")
_ENTRY = re.compile(r"KVM: entry failed, hardware error 0x([0-9a-f]{1,16})")
_RUN = re.compile(r"error: kvm run failed (.+)")
_CPU = re.compile(r"^(?:CPU#(\d+)|CPU Reset \(CPU (\d+)\))")
_TRIPLE = re.compile(r"^Triple fault")
_SMM = re.compile(r"^SMM: (enter|after RSM)")
_CHECK = re.compile(r"^check_exception old: 0x([0-9a-f]{1,8}) new 0x([0-9a-f]{1,8})")
_EXCEPTION = re.compile(
    r"^ *\d+: v=([0-9a-f]{2}) e=([0-9a-f]{4}) .*?\bpc=([0-9a-f]{8,16})(?:.*?\bCR2=([0-9a-f]{8,16}))?"
)

_SUBERRORS = {
    1: "emulation failed: KVM had to carry out an instruction itself and cannot",
    2: "an exception came while another event was being delivered, and KVM cannot merge the two",
    3: "an exit cut off the delivery of an event, and KVM cannot repeat it",
    4: "an exit that KVM does not expect",
}
"""KVM_INTERNAL_ERROR_* of linux/kvm.h."""
_EXTRA_MAX = 32
_SVM_ONLY = 0x60  # exits that are intercepted instructions and events begin here; no VMX reason is as high


class QemuDump:
    """Reads QEMU's register dumps; of many it keeps the first and the last."""

    def __init__(self, memory: pagewalk.Physical | None = None) -> None:
        """Start without any.

        Args:
            memory: The machine's memory, for page walks.
        """
        self._memory = memory
        self._first: list[Processor] = []
        self._last: deque[Processor] = deque(maxlen=_LAST)
        self._dumps = 0
        self._now: Processor | None = None
        self._heading = ""
        self._said = Explanations()
        self._suberror: int | None = None
        self._extra: dict[int, int] = {}
        self._exceptions: deque[str] = deque(maxlen=4)
        self._failed = False
        self._failures: list[Processor] = []

    def feed(self, line: str) -> None:
        """Take a line of any kind."""
        if "=" not in line and not line.startswith(_STARTS):
            return
        if line.startswith(("RAX=", "EAX=")):
            self._begin()
        if self._now is not None and self._registers(self._now, line):
            return
        self._messages(line)

    def _begin(self) -> None:
        self._now = Processor(self._heading)
        self._heading = ""
        self._dumps += 1
        (self._first if len(self._first) < _FIRST else self._last).append(self._now)
        if self._failed and len(self._failures) < _FIRST:
            self._failures.append(self._now)
        self._failed = False

    def _registers(self, now: Processor, line: str) -> bool:
        if match := _SEGMENT.match(line):
            now.segments[match[1].lower()] = _segment(match)
        elif match := _TABLE.match(line):
            now.segments[match[1].lower()] = Segment(0, int(match[2], 16), int(match[3], 16))
        elif match := _CODE.match(line):
            now.code = _code(match[1])
            self._now = None
        else:
            found = _REGISTER.findall(line)
            for name, value in found:
                now.values[register(name)] = int(value, 16)
            for name, value in _STATE.findall(line):
                if name == "CPL":
                    now.values["cpl"] = int(value)
                else:
                    now.halted = value == "1"
            return bool(found)
        return True

    def _messages(self, line: str) -> None:
        if match := _SUBERROR.search(line):
            self._suberror, self._extra, self._failed = int(match[1]), {}, True
        elif match := _EXTRA.search(line):
            if len(self._extra) < _EXTRA_MAX:
                self._extra[int(match[1][:4])] = int(match[2], 16)
        elif match := _ENTRY.search(line):
            self._failed = True
            self._said.add(_entry_failed(int(match[1], 16)))
        elif match := _RUN.search(line):
            self._failed = True
            self._said.add(f"KVM_RUN failed: {match[1][:200]}{_RUN_HINTS.get(match[1].strip(), '')}")
        elif match := _CPU.match(line):
            number = match[1] or match[2]
            self._heading = f"CPU {int(number[:6])}" + (" at its reset" if match[2] else "")
        elif match := _SMM.match(line):
            self._heading = "on entry to SMM" if match[1] == "enter" else "after RSM"
        elif _TRIPLE.match(line):
            before = ", then ".join(self._exceptions)
            self._said.add("triple fault: the machine resets" + (f"; before it {before}" if before else ""))
            self._exceptions.clear()
        elif match := _CHECK.match(line):
            old, new = int(match[1], 16), words.vector(int(match[2], 16))
            self._exceptions.append(new if old > 0xFF else f"{new} during the delivery of {words.vector(old)}")
        elif match := _EXCEPTION.match(line):
            number, error = int(match[1], 16), int(match[2], 16)
            text = f"{words.vector(number)} at {int(match[3], 16):#x}"
            if words.vector(number) == "#PF":
                text += f" ({words.page_fault(error)}, address {int(match[4] or '0', 16):#x})"
            self._exceptions.append(text)

    def reports(self) -> list[Report]:
        """Say what was found."""
        shown = [dump for dump in [*self._first, *self._last] if not _is_power_on(dump)]
        for dump in shown:
            if self._memory is not None:
                dump.fetch(self._memory)
        if not self._dumps and self._suberror is None and not self._said.lines():
            return []
        kind = "KVM failure report of QEMU" if self._failures or self._suberror is not None else "register dump of QEMU"
        report = Report(kind, explanations=self._said.lines())
        if self._suberror is not None:
            guilty = self._failures[0] if self._failures else None
            report.explanations += suberror(self._suberror, self._extra, guilty)
        if self._dumps > _FIRST + _LAST:
            report.explanations.append(
                f"{self._dumps} dumps, of which the first {_FIRST} and the last {_LAST} are shown"
            )
        for dump in shown:
            report.explanations.append(dump.summary())
            report.explanations += [f"  {odd}" for odd in dump.oddities()]
            report.tables += dump.tables(self._memory)
        if not report.explanations:
            report.explanations.append("processors at power-on, nothing else")
        report.data = {
            "suberror": self._suberror,
            "processors": [
                {"heading": d.heading, "mode": d.mode(), "instruction": d.instruction(), "registers": _hex(d.values)}
                for d in shown
            ],
        }
        return [report]


def _is_power_on(dump: Processor) -> bool:
    """Tell whether a dump is of a processor that has not run yet: CR0 as 0 or as after a reset, RIP where it starts."""
    return dump.values.get("cr0", 0) in (0, 0x6000_0010) and dump.values.get("rip", 0) in (0, 0xFFF0)


def _hex(values: dict[str, int]) -> dict[str, str]:
    return {name: f"{value:#x}" for name, value in values.items()}


def _segment(match: re.Match[str]) -> Segment:
    """The flags are the second half of a descriptor."""
    flags = int(match[5], 16)
    return Segment(
        selector=int(match[2], 16),
        base=int(match[3], 16),
        limit=int(match[4], 16),
        present=bool(flags >> 15 & 1),
        big=bool(flags >> 22 & 1),
        long=bool(flags >> 21 & 1),
        kind=" ".join(match[6].split()),
    )


def _code(text: str) -> bytes:
    """The bytes from the marked one on, which is at RIP; the others are before it."""
    parts = text.split()
    start = next((index for index, part in enumerate(parts) if part.startswith("<")), None)
    if start is None:
        return b""
    found = bytearray()
    for part in parts[start:]:
        if part == "??":
            break
        found.append(int(part.strip("<>"), 16))
    return bytes(found)


_RUN_HINTS = {
    "Bad address": ": KVM found no memory behind a guest address; a slot without backing, or nested tables over a hole",
    "Invalid argument": ": KVM refuses the vCPU's state (KVM_SET_SREGS or a pending event)",
}
_UNRESTRICTED = (
    "on an Intel host without unrestricted guest, real mode and half-switched segments fail so: every segment must fit"
    " virtual-8086 mode"
)


def _entry_failed(code: int) -> str:
    """Explain the reason that KVM gives: an exit reason with bit 31 (SDM 27.8), a VM-instruction error, or SVM's -1."""
    if code & 0xFFFF_FFFF == 0xFFFF_FFFF:
        return "VMRUN failed: INVALID: the VMCB breaks a rule of APM2 15.5.1"
    if code >> 31 & 1 and code < 1 << 32:
        basic = words.exit_name("vmx", code & 0xFFFF)
        hint = f"; {_UNRESTRICTED}" if basic == "INVALID_GUEST_STATE" else ""
        return f"the VM entry failed: {basic} ({code:#x}): the state breaks a rule of SDM 27.3{hint}"
    if 0 < code <= 28:
        return f"the VM entry failed: VM-instruction error {code}: {words.instruction_error(code)}"
    return f"the VM entry failed: {code:#x}"


def suberror(number: int, extra: dict[int, int], guilty: Processor | None) -> list[str]:
    """Explain a KVM internal error.

    Args:
        number: The suberror.
        extra: QEMU's `extra data`.
        guilty: The processor's registers, if there is a dump.
    """
    found = [f"KVM internal error {number}: {_SUBERRORS.get(number, 'not known')}"]
    if number == 1:
        found += _emulation(extra, guilty)
    elif number == 3 and extra:
        found.append(
            f"the event was {event(extra.get(0, 0))}, the exit {words.exit_name('vmx', extra.get(1, 0))} (on Intel)"
        )
        if words.exit_name("vmx", extra.get(1, 0)) == "EPT_MISCONFIG":
            found.append("likely cause: the guest's stack or IDT lies in emulated MMIO, or nowhere")
    elif number == 4 and extra:
        code = extra.get(0, 0)
        found.append(f"exit {code:#x}: {words.exit_name('vmx', code)} on Intel, {words.exit_name('svm', code)} on AMD")
    return found


def event(information: int) -> str:
    """Give an event in words (SDM 25.9.2)."""
    kind = {0: "interrupt", 2: "NMI", 3: "exception", 4: "INT n", 5: "INT1", 6: "INT3 or INTO"}.get(
        information >> 8 & 7, "?"
    )
    number = information & 0xFF
    if kind == "NMI":
        return kind
    return f"{kind} {words.vector(number)}" if number < 32 else f"{kind} {number}"


def _emulation(extra: dict[int, int], guilty: Processor | None) -> list[str]:
    found = []
    if extra.get(0) == 1 and 1 in extra:
        # struct kvm_run.emulation_failure: flags, then a byte with the size and 15 bytes of the instruction.
        data = extra[1].to_bytes(8, "little") + extra.get(2, 0).to_bytes(8, "little")
        bytes_ = data[1 : 1 + min(data[0], 15)]
        given = Processor(
            values=dict(guilty.values) if guilty else {}, segments=guilty.segments if guilty else {}, code=bytes_
        )
        found.append(f"the instruction that KVM read: {given.instruction()}")
        if guilty is not None and not guilty.code:
            guilty.code = bytes_
    if 4 in extra:
        # Newer kernels add what the exit was: reason, two words of information, event, error code.
        vendor = "svm" if extra.get(3, 0) >= _SVM_ONLY else "vmx"
        details = words.exit_details(vendor, extra[3], extra[4], extra.get(5, 0)) if 3 in extra else ""
        found.append(
            f"the exit before it: {words.exit_name(vendor, extra.get(3, 0))}" + (f" ({details})" if details else "")
        )
    if guilty is None:
        return found
    text = guilty.instruction()
    if guilty.oddities():
        return found  # said with the dump
    if re.search(r"\b([xyz]mm\d|k[0-7])\b", text):
        found.append("likely cause: an SSE or AVX instruction touches emulated MMIO; KVM emulates few of them")
    elif guilty.bits() == 16 and guilty.mode() == "real mode":
        found.append(f"likely cause: {_UNRESTRICTED}, and KVM emulates real mode there")
    else:
        found.append(
            "likely cause: the instruction or its operand is where there is no memory, or the emulator lacks it"
        )
    return found

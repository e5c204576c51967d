# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Traces of KVM: `trace-cmd report` or ftrace with kvm and kvmmmu events, and its messages in the kernel log."""

from __future__ import annotations

import re
from collections import Counter, deque

from hvtools.decode import pagewalk, words
from hvtools.decode.cpu import Processor, Segment
from hvtools.decode.report import Explanations, Report, Table, count
from hvtools.generated import msr, svm_exit, vmx_exit

_LINE = re.compile(
    r"^\s*(\S.{0,40}?)-(\d+)\s+(?:\([^)]*\)\s+)?\[(\d+)\]\s+(?:[.\w]{4,6}\s+)?(\d+\.\d+):\s+(\w+):\s*(.*)"
)
_EXIT = re.compile(
    r"(?:vcpu (\d+) )?reason (.+?) rip 0x([0-9a-f]+)"
    r"(?:.*? info1 0x([0-9a-f]+) info2 0x([0-9a-f]+)|\s+info ([0-9a-f]+) ([0-9a-f]+))?"
)
_ADDRESS = re.compile(r"\b(?:address|addr|gpa)[: ](?:0x)?([0-9a-f]{1,16})\b")
_ELEMENT = re.compile(r"pte ([0-9a-f]{1,16}) level (\d)")
_WALK = re.compile(r"addr ([0-9a-f]{1,16}) pferr ([0-9a-f]{1,16})")
_WALKER_ERROR = re.compile(r"pferr ([0-9a-f]{1,16})")
_MSR = re.compile(r"msr_(read|write) ([0-9a-f]{1,8}) = 0x([0-9a-f]+)( \(#GP\))?")
_INJECTED = re.compile(r"(#\w+) \(0x([0-9a-f]+)\)( \[reinjected\])?")
_EMULATED = re.compile(r"[0-9a-f]+:([0-9a-f]{1,16}):((?: ?[0-9a-f]{2})+) \((\w+)\)( failed)?")
_USER = re.compile(r"reason (KVM_EXIT_\w+|restart|error) ?\((\d+)\)")
_UNHANDLED = re.compile(r"(?:unhandled|ignored) (rdmsr|wrmsr): 0x([0-9a-f]{1,8})(?: data 0x([0-9a-f]{1,16}))?")
_SPTE = re.compile(r"spte = 0x([0-9a-f]{1,16}) level = (\d), rsvd bits = 0x([0-9a-f]{1,16})")
_SPTE_HEAD = re.compile(r"reserved bits set on MMU-present spte, addr 0x([0-9a-f]{1,16})")

_LAST_MAX = 24
_PLACES_MAX = 4096
_REASONS_MAX = 256  # more than a processor has
_TOP = 10
_ENDS = ("KVM_EXIT_INTERNAL_ERROR", "KVM_EXIT_FAIL_ENTRY", "KVM_EXIT_SHUTDOWN")
_BITS = {"real": 16, "vm86": 16, "prot16": 16, "prot32": 32, "prot64": 64}
_SVM_NAMES = {"io": "IOIO", "msr": "MSR", "npf": "NPF", "shutdown": "SHUTDOWN", "PF excp": "EXCEPTION_14"}
"""What linux/svm.h calls exits, where it is not the manual's name."""


class KvmTrace:
    """Reads a trace."""

    def __init__(self) -> None:
        """Start without any."""
        self._events = 0
        self._total = 0
        self._exits: Counter[str] = Counter()
        self._places: Counter[tuple[str, int]] = Counter()
        self._last: deque[tuple[str, str, str]] = deque(maxlen=_LAST_MAX)
        self._before: list[tuple[str, str, str]] = []
        self._faults: Counter[str] = Counter()
        self._said = Explanations()
        self._walk: list[tuple[int, int]] = []
        self._walked = 0
        self._misconfig: str | None = None
        self._injected = ""

    def feed(self, line: str) -> None:
        """Take a line of any kind."""
        if "kvm" not in line and "mmio" not in line and "spte" not in line:
            return
        match = _LINE.match(line)
        if match is None:
            self._message(line)
            return
        event, text = match[5], match[6]
        if not event.startswith(("kvm_", "handle_mmio_page_fault", "mark_mmio_spte", "vcpu_match_mmio")):
            return
        self._events += 1
        self._settle_misconfig(event, text)
        if not event.startswith("kvm_mmu_") and event not in ("kvm_fpu", "kvm_tdp_mmu_spte_changed"):
            self._last.append((match[4], event, text))
        handler = _HANDLERS.get(event)
        if handler is not None:
            handler(self, text)

    def _exit(self, text: str) -> None:
        match = _EXIT.search(text)
        if match is None:
            return
        reason, rip = match[2], int(match[3][:16], 16)
        self._total += 1
        count(self._exits, reason, _REASONS_MAX)
        count(self._places, (reason, rip), _PLACES_MAX)
        info1, info2 = (int((match[index] or match[index + 2] or "0")[:16], 16) for index in (4, 5))
        name = _SVM_NAMES.get(reason, reason)
        if reason == "EPT_MISCONFIG":
            self._misconfig = f"EPT misconfiguration at rip {rip:#x}"
        elif name in ("EPT_VIOLATION", "NPF"):
            vendor = "vmx" if name == "EPT_VIOLATION" else "svm"
            code = _CODES[vendor][name]
            details = words.exit_details(vendor, code, info1, info2)
            count(self._faults, f"{reason} {details.partition(': ')[2] or details}", _REASONS_MAX)
        elif name in ("SHUTDOWN", "TRIPLE_FAULT"):
            after = f", after KVM injected {self._injected}" if self._injected else ""
            self._fail(f"triple fault of the guest at rip {rip:#x}{after}")

    def _settle_misconfig(self, event: str, text: str) -> None:
        """A misconfiguration is how KVM marks emulated MMIO; what follows it says whether this was one."""
        if self._misconfig is None or event == "kvm_fpu":
            return
        address = _ADDRESS.search(text)
        where = f", guest-physical {int(address[1], 16):#x}" if address else ""
        if event in ("handle_mmio_page_fault", "kvm_mmio", "kvm_fast_mmio", "kvm_emulate_insn", "vcpu_match_mmio"):
            if where or event != "kvm_emulate_insn":
                self._said.add(f"{self._misconfig}{where}: emulated MMIO, which KVM marks so on purpose")
                self._misconfig = None
        elif event == "kvm_page_fault":
            self._misconfig += where
        else:
            self._said.add(
                f"{self._misconfig}{where}: not followed by MMIO: an entry of the nested tables has reserved bits or a"
                " combination that the processor does not take (SDM 29.3.3.1)"
            )
            self._misconfig = None

    def _pagetable_walk(self, text: str) -> None:
        self._walk = []
        if match := _WALK.search(text):
            self._walked = int(match[1], 16)

    def _element(self, text: str) -> None:
        if (match := _ELEMENT.search(text)) and len(self._walk) < 8:
            self._walk.append((int(match[1], 16), int(match[2])))

    def _walker_error(self, text: str) -> None:
        match = _WALKER_ERROR.search(text)
        if match is None:
            return
        code = int(match[1], 16)
        line = f"the walk of the guest's tables for {self._walked:#x} failed [{words.fields(code, words.PAGE_FAULT)}]"
        if self._walk:
            entry, level = self._walk[-1]
            line += f" at level {level}, entry {entry:#x}"
            if code & 8:
                reasons = pagewalk.reserved_bits(entry, level) or pagewalk.perhaps_reserved(entry, level)
                line += f": {' or '.join(reasons) or 'which of its bits is reserved cannot be said'}"
        self._said.add(line)

    def _msr(self, text: str) -> None:
        match = _MSR.search(text)
        if match is not None and match[4]:
            self._said.add(_refused(match[1], int(match[2], 16), "raised #GP in the guest"))

    def _inject(self, text: str) -> None:
        if match := _INJECTED.search(text):
            code = int(match[2][:16], 16)
            details = f" ({words.page_fault(code)})" if match[1] == "#PF" else f" (error code {code:#x})" * bool(code)
            self._injected = f"{match[1]}{details}"

    def _emulate(self, text: str) -> None:
        match = _EMULATED.search(text)
        if match is None or not match[4]:
            return
        bits = _BITS.get(match[3], 64)
        cpu = Processor(
            values={"rip": int(match[1], 16), "cr0": int(bits > 16), "efer": 0x500 if bits == 64 else 0},
            segments={"cs": Segment(0, 0, 0, big=bits == 32, long=bits == 64)},
            code=bytes.fromhex(match[2].replace(" ", "")),
        )
        self._fail(f"KVM could not emulate {cpu.instruction()} at {cpu.values['rip']:#x} ({match[3]})")

    def _user(self, text: str) -> None:
        match = _USER.search(text)
        if match is not None and match[1] in _ENDS:
            self._fail(f"KVM gave up the vCPU: {match[1]}")

    def _nested_failed(self, text: str) -> None:
        self._fail(f"a nested VM entry failed: {text}")

    def _fail(self, line: str) -> None:
        self._said.add(line)
        if not self._before:
            self._before = list(self._last)

    def _message(self, line: str) -> None:
        """KVM's lines in the kernel's log."""
        if match := _UNHANDLED.search(line):
            self._events += 1
            self._said.add(_refused(match[1], int(match[2], 16), "is not known to KVM"))
        elif match := _SPTE_HEAD.search(line):
            self._events += 1
            self._said.add(
                f"KVM's own tables for {int(match[1], 16):#x} have reserved bits set: a fault in KVM or memory"
            )
        elif match := _SPTE.search(line):
            entry, level, reserved = int(match[1], 16), int(match[2]), int(match[3], 16)
            self._events += 1
            if wrong := entry & reserved:
                bits = ", ".join(str(bit) for bit in range(64) if wrong >> bit & 1)
                self._said.add(f"level {level} entry {entry:#x} has reserved bits set: {bits}")

    def reports(self) -> list[Report]:
        """Say what was found."""
        if not self._events:
            return []
        if self._misconfig is not None:
            self._said.add(f"{self._misconfig}: the trace ends behind it")
            self._misconfig = None
        report = Report("trace of KVM", explanations=self._said.lines())
        if not report.explanations:
            report.explanations.append(f"{self._total} exits, no failure among them")
        _counted(report, "exits by reason", self._exits, "reason")
        _counted(
            report,
            "exits by reason and rip",
            Counter({f"{r} at {rip:#x}": c for (r, rip), c in self._places.items()}),
            "exit",
        )
        _counted(report, "nested page faults", self._faults, "fault")
        if self._before:
            report.tables.append(Table("before the first failure", ("time", "event", "details"), self._before))
        elif self._last:
            report.tables.append(Table("last events", ("time", "event", "details"), list(self._last)))
        report.data = {"events": self._events, "exits": dict(self._exits), "failed": bool(self._before)}
        return [report]


def _counted(report: Report, title: str, counts: Counter[str], what: str) -> None:
    if counts:
        rows = [(name, str(times)) for name, times in counts.most_common(_TOP)]
        report.tables.append(Table(title, (what, "count"), rows))


def _refused(access: str, number: int, why: str) -> str:
    name = f" ({msr.MSRS[number]})" if number in msr.MSRS else ""
    return f"{'WRMSR' if access.startswith('w') else 'RDMSR'} of MSR {number:#x}{name} {why}"


_CODES = {
    vendor: {name: code for code, name in table.items()}
    for vendor, table in (("vmx", vmx_exit.EXITS), ("svm", svm_exit.EXITS))
}
_HANDLERS = {
    "kvm_exit": KvmTrace._exit,
    "kvm_nested_vmenter_failed": KvmTrace._nested_failed,
    "kvm_mmu_pagetable_walk": KvmTrace._pagetable_walk,
    "kvm_mmu_paging_element": KvmTrace._element,
    "kvm_mmu_walker_error": KvmTrace._walker_error,
    "kvm_msr": KvmTrace._msr,
    "kvm_inj_exception": KvmTrace._inject,
    "kvm_emulate_insn": KvmTrace._emulate,
    "kvm_userspace_exit": KvmTrace._user,
}
"""What is done with an event."""

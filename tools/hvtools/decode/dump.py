# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A VMCS or VMCB that HvDxe dumped in its log: its fields, and the rules of an entry run over it again."""

from __future__ import annotations

import functools
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvtools import purelib
from hvtools.decode import words
from hvtools.gen.emit import camel
from hvtools.generated import vmcb, vmcs
from hvtools.generated.log_events import EVENTS

_ENVIRONMENT = ("vmx-capability", "vmx-allowed", "vmx-processor", "svm-processor")
_KEYS = {camel(key): key for name in _ENVIRONMENT for key, _ in EVENTS[name].fields}
"""The log's keys by the members of HV_VMX_CHECK_ENV and HV_SVM_CHECK_ENV: Cr0Fixed0 is cr0-fixed0."""
_NEEDED = {
    kind: {key for name in _ENVIRONMENT if name.startswith(prefix) for key, _ in EVENTS[name].fields}
    for kind, prefix in (("vmcs", "vmx-"), ("vmcb", "svm-"))
}
"""The keys of an environment, by the kind of the dump."""
CPUS_MAX = 512  # processors of which something is remembered: a damaged log may have any number of them
_WORDS_MAX = 1024  # more than a VMCB or VMCS has
_FINDINGS_MAX = 64
_PARTS = range(1 << 32)  # what the C code can be given

_BITS = {
    "PINBASED_CTLS": "HV_VMX_PIN",
    "PROCBASED_CTLS": "HV_VMX_PROC",
    "PROCBASED_CTLS2": "HV_VMX_PROC2",
    "PROCBASED_CTLS3": "HV_VMX_PROC3",
    "EXIT_CTLS": "HV_VMX_EXIT_CTL",
    "EXIT_CTLS2": "HV_VMX_EXIT_CTL2",
    "ENTRY_CTLS": "HV_VMX_ENTRY_CTL",
    "ENTRY_INTERRUPTION_INFO": "HV_VMX_EVENT",
    "EXIT_INTERRUPTION_INFO": "HV_VMX_EVENT",
    "IDT_VECTORING_INFO": "HV_VMX_EVENT",
    "EPT_POINTER": "HV_VMX_EPTP",
    "GUEST_INTERRUPTIBILITY": "HV_VMX_BLOCKING",
    "GUEST_PENDING_DEBUG": "HV_VMX_PENDING_DEBUG",
    "Control.Intercept3": "HV_SVM_INTERCEPT3",
    "Control.Intercept4": "HV_SVM_INTERCEPT4",
    "Control.Intercept5": "HV_SVM_INTERCEPT5",
    "Control.VIntr": "HV_SVM_VINTR",
    "Control.InterruptShadow": "HV_SVM_SHADOW",
    "Control.NestedControl": "HV_SVM_NP",
    "Control.VirtExt": "HV_SVM_VIRT",
    "Control.CleanBits": "HV_SVM_CLEAN",
    "Control.EventInj": "HV_SVM_EVENT",
    "Control.ExitIntInfo": "HV_SVM_EVENT",
}
"""What a field's bits are called, by its name."""
_BITS_BY_END = {
    "CR0": "HV_CR0",
    "CR0_SHADOW": "HV_CR0",
    "CR0_MASK": "HV_CR0",
    "CR4": "HV_CR4",
    "CR4_SHADOW": "HV_CR4",
    "CR4_MASK": "HV_CR4",
    "EFER": "HV_EFER",
    "RFLAGS": "HV_RFLAGS",
    "ACCESS_RIGHTS": "HV_VMX_SEGMENT",
    ".CR0": "HV_CR0",
    ".ATTRIBUTES": "HV_SVM_SEGMENT",
}


@dataclass(frozen=True)
class Finding:
    """A rule of the manual that the state breaks."""

    rule: str
    section: str
    field: str
    value: int
    expected: str

    def text(self) -> str:
        """Give the finding for people."""
        return f"{self.rule} ({self.section}): {self.field} = {self.value:#x}, expected {self.expected}"


@dataclass
class Dump:
    """A dumped state.

    Attributes:
        cpu: Index of the processor.
        kind: "vmcs" or "vmcb".
        parts: HV_PART: what the processor was to check.
        environment: What the rules depend on besides the state, by the log's keys.
        words: By encoding (VMCS) or offset (VMCB).
        complete: Nothing of it is missing, and its parts can be some.
        findings: The rules that it breaks; None before `check`.
    """

    cpu: int
    kind: str = ""
    parts: int = 0
    environment: dict[str, int] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)
    complete: bool = False
    findings: list[Finding] | None = None

    def fields(self) -> list[tuple[str, int]]:
        """Give the fields that are not 0, in the order of the manual's table."""
        if self.kind == "vmcs":
            return [(name, self.words[key]) for key, (name, *_) in vmcs.FIELDS.items() if self.words.get(key)]
        block = self.block()
        found = []
        for name, offset, code, count in vmcb.LAYOUT["HV_VMCB"]:
            for index, value in enumerate(struct.unpack_from(f"<{count}{code}", block, offset)):
                if value:
                    found.append((name if count == 1 else f"{name}[{index}]", value))
        return found

    def block(self) -> bytes:
        """Give the bytes of a VMCB."""
        block = bytearray(vmcb.SIZES["HV_VMCB"])
        for offset, value in self.words.items():
            if offset + 8 <= len(block):
                struct.pack_into("<Q", block, offset, value)
        return bytes(block)

    def check(self) -> list[Finding]:
        """Give the rules that the state breaks, as the C code of the hypervisor finds them.

        Raises:
            HvError: The C code cannot be compiled here.
        """
        self.findings = _Rules.ready().broken(self)
        return self.findings

    def as_json(self) -> dict[str, Any]:
        """Give the dump for `--json`."""
        return {
            "cpu": self.cpu,
            "kind": self.kind,
            "complete": self.complete,
            "environment": self.environment,
            "fields": {name: f"{value:#x}" for name, value in self.fields()},
            "broken": None if self.findings is None else [vars(finding) for finding in self.findings],
        }


def describe(name: str, value: int) -> str:
    """Give the bits of a field in words; empty where they have no names."""
    if name == "INSTRUCTION_ERROR":
        return f"of the last instruction that failed: {words.instruction_error(value)}"
    prefix = _BITS.get(name)
    if prefix is None:
        end = name.removeprefix("GUEST_").removeprefix("HOST_").removeprefix("Save.").upper()
        prefix = _BITS_BY_END.get(end) or next((p for key, p in _BITS_BY_END.items() if end.endswith(key)), None)
    return words.word(value, prefix) if prefix else ""


class Dumps:
    """Collects the dumps of all processors from the lines of a log."""

    def __init__(self) -> None:
        """Start without any."""
        self._open: dict[int, Dump] = {}

    def feed(self, cpu: int, event: str, values: dict[str, int | str]) -> Dump | None:
        """Take an event.

        Args:
            cpu: Who logged it.
            event: Its name.
            values: Its fields.

        Returns:
            The dump that ends with it.
        """
        if cpu not in self._open and len(self._open) >= CPUS_MAX:
            return None
        if event in _ENVIRONMENT:
            dump = self._open.setdefault(cpu, Dump(cpu))
            dump.environment.update({key: value for key, value in values.items() if isinstance(value, int)})
        elif event == "dump":
            dump = self._open.setdefault(cpu, Dump(cpu))
            for pair in str(values["words"]).split(" "):
                key, _, value = pair.partition(":")
                if len(dump.words) < _WORDS_MAX and is_hex(key, 8) and is_hex(value, 16):
                    dump.words[int(key, 16)] = int(value, 16)
        elif event == "dump-end":
            return self._end(self._open.pop(cpu, Dump(cpu)), values)
        return None

    def _end(self, dump: Dump, values: dict[str, int | str]) -> Dump | None:
        if values["kind"] not in ("vmcs", "vmcb"):
            return None
        dump.kind, dump.parts = str(values["kind"]), int(values["parts"])
        whole = len(dump.words) == values["words"] and dump.environment.keys() >= _NEEDED[dump.kind]
        dump.complete = whole and dump.parts in _PARTS
        return dump

    def unfinished(self) -> list[Dump]:
        """Give the dumps whose end is missing."""
        return list(self._open.values())


def is_hex(text: str, digits: int) -> bool:
    """Tell whether text is a hexadecimal number of at most so many digits."""
    return 0 < len(text) <= digits and all(char in "0123456789abcdef" for char in text)


def logged(values: dict[str, int | str]) -> Finding:
    """Give what an `entry-rule` event says."""
    return Finding(
        str(values["rule"]), str(values["section"]), str(values["field"]), int(values["value"]), str(values["expected"])
    )


class _Rules:
    """HvVmxCheckLib and HvSvmCheckLib, compiled for this machine."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hv-decode-")
        self._hv = purelib.PureLibrary(Path(self._folder.name), ("SvmCheck", "VmxCheck"))

    @staticmethod
    @functools.cache
    def ready() -> _Rules:
        """Compile, once in a process: it takes less than a second, and can so never be of other sources."""
        return _Rules()

    def broken(self, dump: Dump) -> list[Finding]:
        """Run the rules over a dump."""
        ffi, lib = self._hv.ffi, self._hv.lib
        found = ffi.new("HV_FINDING[]", _FINDINGS_MAX)
        if dump.kind == "vmcs":
            env = self._environment("HV_VMX_CHECK_ENV", dump)
            image = ffi.new("HV_VMCS_IMAGE *")
            for index, encoding in enumerate(vmcs.FIELDS):
                image.Value[index] = dump.words.get(encoding, 0)
            count = lib.HvVmxCheck(image, env, dump.parts, found, _FINDINGS_MAX)
        else:
            env = self._environment("HV_SVM_CHECK_ENV", dump)
            block = ffi.new("HV_VMCB *")
            ffi.memmove(block, dump.block(), ffi.sizeof("HV_VMCB"))
            count = lib.HvSvmCheck(block, env, dump.parts, found, _FINDINGS_MAX)
        return [self._finding(found[index]) for index in range(min(count, _FINDINGS_MAX))]

    def _environment(self, kind: str, dump: Dump) -> Any:  # noqa: ANN401 - cffi has no types of its own
        """Fill a structure; members that the log does not have are 0."""
        env = self._hv.ffi.new(f"{kind} *")
        for member, described in self._hv.ffi.typeof(kind).fields:
            value = dump.environment.get(_KEYS[member], 0)
            setattr(env, member, value & (1 << 8 * self._hv.ffi.sizeof(described.type)) - 1)
        return env

    def _finding(self, item: Any) -> Finding:  # noqa: ANN401
        rule, section, name, expected = (
            self._hv.ffi.string(text).decode() for text in (item.Name, item.Section, item.FieldName, item.Expected)
        )
        return Finding(rule, section, name, int(item.Value), expected)

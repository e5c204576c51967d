# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the self-check printed inside the machine.

    hvcheck: init version=1 kernel=6.1.0-56-cloud-amd64 online=4
    hvcheck: cpu when=start id=0 apic=0 signature=HvPkgHvPkgHv interface=1 features=0x0 backend=svm index=0 svm=0 vmx=0
    hvcheck: status version=1 vendor=svm cpus=4 kinds=29 virtualised=4 reserved=8388608 nested=65536 page_sizes=2m \
        dma=0 boot_done=1
    hvcheck: exits when=end cpu=0 cpuid=120 rdmsr=3 total=123
    hvcheck: pcr index=2 sha256=9A1F2D0DB1A0D853DD7B26B1B46FD0115615A31016EAFCFE3346AD83E649B306
    hvcheck: measured log=000000000300...
    hvcheck: script-begin
    hvcheck| what the script writes
    hvcheck: script-end exit=0
    hvcheck: done

`when` is boot (at ExitBootServices), init (the first action of the first program), start, end, or now (called from a
script). The EFI program HvStatus prints the lines cpu, status and exits in the same way, with `when=shell`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from hvtools.boot.hvlog import fields_of
from hvtools.generated.cpuid import SIGNATURE
from hvtools.generated.status import CONSTANTS

_LINE = re.compile(r"^hvcheck: ([a-z-]+)((?: \S+)*)\s*$")
_KERNEL = re.compile(r"^(?=hvcheck: init )", re.MULTILINE)
_SCRIPT_LINE = re.compile(r"^hvcheck\| ?(.*)$")
_DMA = {
    CONSTANTS["HV_STATUS_DMA_NO_IOMMU"]: "off: no IOMMU",
    CONSTANTS["HV_STATUS_DMA_OS"]: "off: the operating system owns the IOMMU",
    CONSTANTS["HV_STATUS_DMA_ON"]: "on",
}
_LATEST_FIRST = ("end", "start", "init", "shell", "boot")


@dataclass(frozen=True)
class CpuCheck:
    """What one processor sees."""

    cpu: int
    signature: str
    backend: str
    index: int
    svm: bool
    vmx: bool

    @property
    def virtualised(self) -> bool:
        """It is under HvPkg."""
        return self.signature == SIGNATURE


@dataclass(frozen=True)
class Status:
    """What the hypervisor's status page says."""

    vendor: str
    cpus: int
    virtualised: int
    reserved_bytes: int
    nested_bytes: int
    page_sizes: tuple[str, ...]
    dma: str
    boot_done: bool


@dataclass
class CheckReport:
    """All that the self-check printed.

    Attributes:
        kernel: release of the kernel, None when its first program did not start.
        online: processors that are online.
        cpus: by `when`, what each processor sees.
        exits: by `when` and processor, exits by kind.
        registers: of the TPM (SHA-256), by index, in small hexadecimal letters.
        measured: the log of what was measured into them.
        status: the last that was read.
        missing_status: why there is none.
        script_begun: the script was started.
        script_exit: its exit code.
        script_output: what it wrote.
        errors: what the self-check could not do.
        done: it came to its end.
    """

    kernel: str | None = None
    online: int | None = None
    cpus: dict[str, list[CpuCheck]] = field(default_factory=dict)
    exits: dict[str, dict[int, Counter[str]]] = field(default_factory=dict)
    registers: dict[int, str] = field(default_factory=dict)
    measured: bytes = b""
    status: Status | None = None
    missing_status: str | None = None
    script_begun: bool = False
    script_exit: int | None = None
    script_output: str = ""
    errors: list[str] = field(default_factory=list)
    done: bool = False

    def latest_exits(self) -> dict[int, Counter[str]]:
        """Give the newest counters, by processor."""
        for when in _LATEST_FIRST:
            if when in self.exits:
                return self.exits[when]
        return {}

    def boot_exits(self) -> Counter[str] | None:
        """Give the exits from ExitBootServices to the first program, or None if one of the two was not counted."""
        if "boot" not in self.exits or "init" not in self.exits:
            return None
        before = sum(self.exits["boot"].values(), Counter())
        after = sum(self.exits["init"].values(), Counter())
        return +Counter({kind: after[kind] - before[kind] for kind in after})


def parse_checks(text: str) -> CheckReport:
    """Read the self-check's lines out of console output; what is not understood is an error of the report."""
    report = CheckReport()
    output: list[str] = []
    for line in text.splitlines():
        script_line = _SCRIPT_LINE.match(line)
        if script_line:
            output.append(script_line[1])
            continue
        match = _LINE.match(line)
        if not match:
            continue
        try:
            _take(report, match[1], fields_of(match[2]))
        except (KeyError, ValueError):
            report.errors.append(f"not understood: {line.strip()}")
    report.script_output = "".join(line + "\n" for line in output)
    return report


def parse_kernels(text: str) -> list[CheckReport]:
    """Read console output in which one kernel started the next: a report for each, what comes first is in the first."""
    before, *kernels = _KERNEL.split(text)
    if not kernels:
        return [parse_checks(before)]
    return [parse_checks(part) for part in (before + kernels[0], *kernels[1:])]


def _take(report: CheckReport, kind: str, fields: dict[str, str]) -> None:
    if kind == "init":
        report.kernel = fields["kernel"]
    elif kind == "online":
        report.online = int(fields["count"])
    elif kind == "cpu":
        check = CpuCheck(
            cpu=int(fields["id"]),
            signature=fields["signature"],
            backend=fields["backend"],
            index=int(fields["index"]),
            svm=fields["svm"] == "1",
            vmx=fields["vmx"] == "1",
        )
        report.cpus.setdefault(fields["when"], []).append(check)
    elif kind == "status":
        sizes = fields["page_sizes"]
        report.status = Status(
            vendor=fields["vendor"],
            cpus=int(fields["cpus"]),
            virtualised=int(fields["virtualised"]),
            reserved_bytes=int(fields["reserved"]),
            nested_bytes=int(fields["nested"]),
            page_sizes=() if sizes == "none" else tuple(sizes.split(",")),
            dma=_DMA[int(fields["dma"])],
            boot_done=fields["boot_done"] != "0",
        )
    elif kind == "no-status":
        report.missing_status = fields["reason"]
    elif kind == "exits":
        counts = {name: int(value) for name, value in fields.items() if name not in ("when", "cpu", "total")}
        if sum(counts.values()) != int(fields["total"]):
            raise ValueError("the counts do not add up: part of the line is missing")
        report.exits.setdefault(fields["when"], {})[int(fields["cpu"])] = Counter(counts)
    elif kind == "pcr":
        report.registers[int(fields["index"])] = fields["sha256"].lower()
    elif kind == "measured":
        report.measured += bytes.fromhex(fields["log"])
    elif kind == "script-begin":
        report.script_begun = True
    elif kind == "script-end":
        report.script_exit = int(fields["exit"])
    elif kind == "error":
        report.errors.append(" ".join(f"{key}={value}" for key, value in fields.items()))
    elif kind == "done":
        report.done = True
    else:
        raise ValueError(f"unknown line {kind}")

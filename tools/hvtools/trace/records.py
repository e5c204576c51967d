# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Records of exits in the rings that the option `trace` makes (HvPkg/Docs/Reference/Trace.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hvtools.boot.hvlog import LogLine
from hvtools.errors import HvError
from hvtools.generated.exits import KINDS
from hvtools.generated.trace import LAYOUT, SIGNATURE, SIZES
from hvtools.machines.memory import Memory

_APIC_PAGE = 0xFEE00000  # where HvDxe wants the local APIC to be, and where every firmware has it
_PAGE = 4096


def _format(name: str) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, _, code, _ in LAYOUT[name]))


_HEAD = _format("HV_TRACE_HEAD")
_HEAD_BYTES = SIZES["HV_TRACE_HEAD"]
_RECORD = _format("HV_TRACE_RECORD")


@dataclass(frozen=True)
class Exit:
    """One exit.

    Attributes:
        tsc: time-stamp counter.
        cpu: index of the processor.
        kind: what it was, as the hypervisor counts it.
        code: exit code or reason.
        rip: where the guest was.
        info1: EXITINFO1, or the qualification.
        info2: EXITINFO2, or the guest-physical address.
    """

    tsc: int
    cpu: int
    kind: str
    code: int
    rip: int
    info1: int
    info2: int


@dataclass(frozen=True)
class Trace:
    """What a machine left.

    Attributes:
        exits: by time.
        lost: exits that newer ones overwrote.
        cpus: processors that were traced.
    """

    exits: Sequence[Exit]
    lost: int
    cpus: int


def kind_of(index: int, address: int, host: range) -> str:
    """Name an exit as the hypervisor counts it: what a nested fault means is told by its address.

    Args:
        index: the backend's kind.
        address: guest-physical address of a nested fault.
        host: the hypervisor's own memory.
    """
    name = KINDS[index] if index < len(KINDS) else "unknown"
    if name != "nested-fault":
        return name
    if address in host:
        return "host-memory"
    return "apic-write" if address & ~(_PAGE - 1) == _APIC_PAGE else name


def _ring(memory: Memory, address: int, stride: int, host: range) -> tuple[list[Exit], int]:
    """Read the ring of a processor: its exits, and how many are lost."""
    data = memory.read(address, stride)
    signature, cpu, count, written = _HEAD.unpack_from(data)
    if signature != int.from_bytes(SIGNATURE, "little") or not 0 < count <= (stride - _HEAD_BYTES) // _RECORD.size:
        raise HvError(f"there is no trace of exits at {address:#x}")
    first = max(written - count, 0)
    exits = []
    for number in range(first, written):
        tsc, rip, info1, info2, code, kind = _RECORD.unpack_from(data, _HEAD_BYTES + number % count * _RECORD.size)
        exits.append(Exit(tsc, cpu, kind_of(kind, info2, host), code, rip, info1, info2))
    return exits, first


def read(memory: Memory, lines: Sequence[LogLine]) -> Trace:
    """Read the trace of a machine.

    Args:
        memory: its memory.
        lines: its log, for the events `memory`, `trace` and `launch-done`.

    Raises:
        HvError: it has none; says why.
    """
    found = {line.event: line for line in lines}
    if "trace" not in found or "memory" not in found:
        raise HvError("the hypervisor was not asked for a trace: boot with --set trace=N, or with hv trace")
    base, stride = (int(found["trace"].fields[name], 16) for name in ("base", "stride"))
    start = int(found["memory"].fields["base"], 16)
    host = range(start, start + int(found["memory"].fields["bytes"], 16))
    cpus = sum(line.event == "cpu-up" for line in lines)
    exits: list[Exit] = []
    lost = 0
    for cpu in range(cpus):
        more, missing = _ring(memory, base + cpu * stride, stride, host)
        exits += more
        lost += missing
    return Trace(sorted(exits, key=lambda item: item.tsc), lost, cpus)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The trace of exits: what HvCoreLib writes is what the tools read."""

from __future__ import annotations

import pytest

from hvtools.boot.hvlog import LogLine
from hvtools.errors import HvError
from hvtools.trace import records
from tests.unit.c.core_host import CData, Core

BASE = 0x7FFF_0000


class Ram:
    """The fake machine's memory as the tools see it."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.core.ffi.buffer(self.core.ffi.cast("char *", address), size))


def traced(core: Core, cpus: int, count: int) -> tuple[CData, list[LogLine]]:
    """A machine with a trace, and what its log says of it."""
    fake = core.reset(cpus)
    stride = int(core.lib.HvCoreTraceBytes(count))
    base = int(core.lib.HvFakeRam(cpus * stride))
    assert base
    fake.Host.TraceBase, fake.Host.TraceStride = base, stride
    core.lib.HvCoreTrace(core.ffi.addressof(fake, "Host"), count)
    places = {"base": f"{base:#x}", "stride": f"{stride:#x}", "records": str(count)}
    host = {"base": f"{BASE:#x}", "bytes": "0x10000", "status": "0x0", "status-bytes": "0x0"}
    up = [LogLine("info", 0, "cpu-up", {"index": str(cpu)}) for cpu in range(cpus)]
    return fake, [LogLine("info", 0, "memory", host), LogLine("info", 0, "trace", places), *up]


def test_every_exit_leaves_a_record_and_is_handled_as_ever(core: Core) -> None:
    fake, lines = traced(core, 2, 16)
    fake.Vcpu[1].Regs.Rip = 0x1234
    core.run(core.exit("Unknown", Code=0x1_0000_0077, Info1=5, Info2=6), cpu=1)
    core.run(core.exit("Unknown", Code=0x78), core.exit("Unknown", Code=0x79))
    assert sum(fake.Cpu[0].Exits[0:32]) == 2 and sum(fake.Cpu[1].Exits[0:32]) == 1
    assert [name for name, _ in core.log()].count("ExitUnknown") == 3
    trace = records.read(Ram(core), lines)
    assert trace.cpus == 2 and trace.lost == 0
    found = {(item.cpu, item.code): item for item in trace.exits}
    assert found.keys() == {(1, 0x77), (0, 0x78), (0, 0x79)}
    first = found[1, 0x77]
    assert (first.kind, first.rip, first.info1, first.info2) == ("unknown", 0x1234, 5, 6)
    assert [item.tsc for item in trace.exits] == sorted(item.tsc for item in trace.exits)


def test_a_full_ring_keeps_the_newest(core: Core) -> None:
    _, lines = traced(core, 1, 4)
    core.run(*(core.exit("Cpuid", code=b"\x0f\xa2", Code=number) for number in range(10)))
    trace = records.read(Ram(core), lines)
    assert [item.code for item in trace.exits] == [6, 7, 8, 9] and trace.lost == 6


def test_an_entry_that_is_refused_leaves_none(core: Core) -> None:
    fake, lines = traced(core, 1, 4)
    fake.EnterStatus = 1 << 63 | 21
    assert core.run(core.exit("EntryFailed", Code=0xFFFFFFFF)) == core.lib.HvFakeParked
    assert records.read(Ram(core), lines).exits == []


def test_a_machine_without_the_option_has_its_own_functions(core: Core) -> None:
    fake = core.reset()
    own = fake.Host.Ops
    core.run(core.exit("Unknown"))
    assert fake.Host.Ops == own and fake.Host.TraceBase == 0
    fake, _ = traced(core, 1, 4)
    assert fake.Host.Ops != own
    for name in ("StateGet", "StateSet", "Inject", "TakeSignal", "Flush"):
        assert getattr(fake.Host.Ops, name) == getattr(own, name)


def test_memory_without_rings_is_told(core: Core) -> None:
    _, lines = traced(core, 1, 4)
    with pytest.raises(HvError, match="was not asked for a trace"):
        records.read(Ram(core), [line for line in lines if line.event != "trace"])

    class Zeros:
        def read(self, address: int, size: int) -> bytes:
            return bytes(size)

    with pytest.raises(HvError, match="there is no trace of exits at 0x"):
        records.read(Zeros(), lines)


def test_for_a_debugger_no_exit_is_dealt_with_in_the_switch(core: Core) -> None:
    fake = core.reset(1)
    host = core.ffi.addressof(fake, "Host")
    own = fake.Host.Ops
    core.lib.HvCoreNoQuick(host)
    changed = fake.Host.Ops
    assert changed != own and changed.Quick != own.Quick and changed.Enter == own.Enter
    assert not changed.Quick(core.ffi.addressof(fake.Vcpu[0]))
    core.lib.HvCoreNoQuick(host)
    assert fake.Host.Ops == changed and changed.Enter == own.Enter, "twice is once"

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Addresses that the root uses for the first time."""

import pytest

from tests.unit.c.core_host import CData, Core
from tests.unit.c.test_core_memory_type import BITS, GIB, HOST, PLENTY, machine

RIP = 0x1000
WRITE, FETCH, PRESENT = 2, 4, 1


def touch(core: Core, address: int, flags: int = 0) -> CData:
    """The root touches an address; the leaf that is there then."""
    fake = core.lib.gFake
    fake.Fake[0].Event.Type, fake.Vcpu[0].Regs.Rip = core.lib.HvEventNone, RIP
    core.run(core.exit("NestedFault", Gpa=address, FaultFlags=flags))
    assert fake.Vcpu[0].Regs.Rip == RIP, "it is executed again"
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    core.lib.HvPagingQuery(core.ffi.addressof(fake.Host.Root, "Nested"), address, leaf)
    return leaf


def refused(core: Core) -> bool:
    event = core.lib.gFake.Fake[0].Event
    return bool(event.Type == core.lib.HvEventException and event.Vector == 13)


@pytest.mark.parametrize("address", [2 * GIB, 5 * GIB + 0x123, (1 << BITS) - 1])
@pytest.mark.parametrize("flags", [0, WRITE, FETCH])
def test_memory_is_mapped_when_it_is_first_used(core: Core, address: int, flags: int) -> None:
    machine(core, PLENTY)
    leaf = touch(core, address, flags)
    assert not refused(core) and core.log() == []
    assert leaf.Present and leaf.HostAddress == address and leaf.Level == 3
    assert core.lib.gFake.Fake[0].Flushes == 0 and core.writes("Nmi") == [], "absent needs no flush"


@pytest.mark.parametrize(("address", "flags"), [(1 << BITS, 0), (1 << 51, WRITE), (GIB, PRESENT | WRITE)])
def test_what_no_mapping_can_have_is_refused(core: Core, address: int, flags: int) -> None:
    machine(core, PLENTY)
    touch(core, address, flags)
    assert refused(core) and [name for name, _ in core.log()] == ["NpfUnexpected"]


def test_a_mapping_on_demand_leaves_out_the_registers_of_an_iommu(core: Core) -> None:
    """They were hidden in a piece that is otherwise absent."""
    machine(core, PLENTY)
    host = core.lib.gFake.Host
    for index, base in enumerate((4 * GIB, 4 * GIB + 0x10000)):
        host.Iommu[index].Base, host.Iommu[index].End = base, base + 0x4000
    host.IommuCount = 2
    nested = core.ffi.addressof(host.Root, "Nested")
    assert core.lib.HvPagingMap(nested, 4 * GIB + 0x10000, HOST, 4096, 5 | 6 << 8) == 0
    assert touch(core, 4 * GIB + 0x8000).HostAddress == 4 * GIB + 0x8000
    leaf = core.ffi.new("HV_PAGING_LEAF *")
    for offset, address in ((0xFFFF, 4 * GIB + 0xFFFF), (0x14000, 4 * GIB + 0x14000), (GIB - 1, 5 * GIB - 1)):
        core.lib.HvPagingQuery(nested, 4 * GIB + offset, leaf)
        assert leaf.Present and leaf.HostAddress == address
    for offset in (0, 0x3FFF, 0x13FFF):
        core.lib.HvPagingQuery(nested, 4 * GIB + offset, leaf)
        assert not leaf.Present, hex(offset)
    core.lib.HvPagingQuery(nested, 4 * GIB + 0x10000, leaf)
    assert leaf.Present and leaf.HostAddress == HOST


def test_without_a_page_the_root_gets_gp_and_nothing_else_breaks(core: Core) -> None:
    """Leaves of 2 MiB, so that each GiB on demand takes a table."""
    machine(core, 6)
    fake = core.lib.gFake
    fake.Host.Root.Nested.LargestLevel = 2
    assert touch(core, 3 * GIB).Level == 2 and touch(core, 4 * GIB).Present
    assert not touch(core, 5 * GIB).Present and refused(core)
    assert {"PagePoolEmpty", "MapFailed"} <= {name for name, _ in core.log()}
    assert touch(core, 3 * GIB + 1).Present and not refused(core) and fake.Host.Root.Lock == 0

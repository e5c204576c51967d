# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Page tables, walked in a dump of the machine's memory: the host's own, and the root's nested ones."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from hvtools.boot.hvlog import LogLine, parse_log
from hvtools.boot.strategy import State
from hvtools.machines.live import live_memory

if TYPE_CHECKING:
    from tests.boot.conftest import Session

pytestmark = pytest.mark.needs("hypervisor", "memory")

PAGE = 4096
LARGE = 1 << 7
ADDRESS = (1 << 52) - PAGE
STACK_PAGES_MAX = 8
MEMORY = 512 << 20
CPUS = 3


@dataclass(frozen=True)
class Format:
    """Bits of an entry; SDM volume 3, 4.5 and 29.3.2, APM2 5.4."""

    present: int
    write: int
    execute: int = 0
    no_execute: int = 0


LONG_MODE = Format(present=1, write=2, no_execute=1 << 63)
EPT = Format(present=7, write=2, execute=4)


@dataclass(frozen=True)
class Leaf:
    """A mapping; the rights are those of all levels together."""

    at: int
    physical: int
    size: int
    write: bool
    execute: bool


class Block:
    """A dump of the reserved block."""

    def __init__(self, base: int, content: bytes) -> None:
        self.base = base
        self.size = len(content)
        self.content = content

    def table(self, address: int) -> tuple[int, ...]:
        assert self.base <= address < self.base + self.size, "a table is outside the block"
        return struct.unpack_from("<512Q", self.content, address - self.base)

    def walk(
        self, form: Format, root: int, level: int, at: int = 0, write: bool = True, execute: bool = True
    ) -> Iterator[Leaf]:
        for index, entry in enumerate(self.table(root & ADDRESS)):
            if not entry & form.present:
                continue
            size = PAGE << 9 * (level - 1)
            here = at + index * size
            may_write = write and bool(entry & form.write)
            may_execute = execute and (bool(entry & form.execute) if form.execute else not entry & form.no_execute)
            if level == 1 or entry & LARGE:
                yield Leaf(here, entry & ADDRESS & -size, size, may_write, may_execute)
            else:
                yield from self.walk(form, entry, level - 1, here, may_write, may_execute)

    def pages(self, leaf: Leaf) -> Iterator[tuple[int, int]]:
        """The pages of a mapping that lead into the block: where they are mapped, and what they are."""
        first, last = max(leaf.physical, self.base), min(leaf.physical + leaf.size, self.base + self.size)
        for page in range(first, last, PAGE):
            yield leaf.at + page - leaf.physical, page


@dataclass(frozen=True)
class Dump:
    """What a machine that stands at the shell has in its block, and what its log says about that."""

    block: Block
    log: list[LogLine]
    found: Mapping[str, LogLine]

    def number(self, event: str, field: str) -> int:
        return int(self.found[event].fields[field], 0)


def dumped(session: Session, **settings: str) -> Dump:
    with session(cpus=CPUS, memory_mib=MEMORY >> 20, settings=settings | {"log": "debug"}) as strategy:
        strategy.transition(State.HYPERVISOR)
        log = parse_log(strategy.machine.hypervisor_log())
        found = {line.event: line for line in log}
        base, size = (int(found["memory"].fields[name], 0) for name in ("base", "bytes"))
        memory = live_memory(strategy.machine.spec.folder)
        assert memory is not None
        return Dump(Block(base, memory.read(base, size)), log, found)


def check_host_tables(dump: Dump) -> None:
    block = dump.block
    leaves = list(block.walk(LONG_MODE, dump.number("tables", "host"), dump.number("tables", "host-levels")))
    assert leaves

    assert [leaf for leaf in leaves if leaf.at != leaf.physical] == [], "identity"
    assert [leaf for leaf in leaves if leaf.write and leaf.execute] == [], "W^X"

    code = [leaf for leaf in leaves if leaf.execute]
    text = dump.number("image", "text")
    end = text + len(code) * PAGE
    assert [leaf.at for leaf in code] == list(range(text, end, PAGE)), "one piece of code"
    assert text <= dump.number("image", "entry") < end <= dump.number("image", "base") + dump.number("image", "bytes")

    mapped = {leaf.at for leaf in leaves if leaf.size == PAGE}
    stacks = [line for line in dump.log if line.event == "stacks"]
    assert len(stacks) == CPUS
    guards = set()
    for line in stacks:
        for field in ("exits", "faults", "nmi"):
            top = int(line.fields[field], 0)
            below = range(top - PAGE, top - (STACK_PAGES_MAX + 1) * PAGE, -PAGE)
            assert below[0] in mapped
            guards.add(next(page for page in below if page not in mapped))
    assert len(guards) == 3 * CPUS, "one below each stack"
    pages = {page for leaf in leaves for page in range(leaf.at, leaf.at + leaf.size, PAGE)}
    assert set(range(block.base, block.base + block.size, PAGE)) - pages == guards, "and no other page is missing"

    # Memory, and one page more: the local APIC.
    outside = [(leaf.at, leaf.size, leaf.write) for leaf in leaves if leaf.at >= MEMORY]
    assert outside == [(0xFEE00000, PAGE, True)]


def check_nested_tables(dump: Dump) -> set[int]:
    """No page of the host is in the root's tables but those that it may read; the sizes of the mappings."""
    block = dump.block
    form = EPT if dump.found["backend"].fields["name"] == "vmx" else LONG_MODE
    leaves = list(block.walk(form, dump.number("tables", "nested"), dump.number("tables", "nested-levels")))
    ones = dump.number("tables", "ones")
    begin = dump.number("memory", "status")
    shared = range(begin, begin + dump.number("memory", "status-bytes"), PAGE)
    for leaf in leaves:
        for at, page in block.pages(leaf):
            assert not leaf.write, f"{at:#x} is written into the host"
            assert page == ones or (page in shared and at == page), f"{at:#x} leads to {page:#x} of the host"
    # And what is behind the page of ones is the block itself, nothing else.
    assert {at for leaf in leaves for at, page in block.pages(leaf) if page == ones} == set(
        range(block.base, block.base + block.size, PAGE)
    ) - set(shared)
    assert block.content[ones - block.base :][:PAGE] == b"\xff" * PAGE
    return {leaf.size for leaf in leaves}


@pytest.mark.everywhere
def test_the_host_is_w_xor_x_and_in_no_mapping_of_the_root(session: Session) -> None:
    dump = dumped(session)
    check_host_tables(dump)
    assert check_nested_tables(dump) == {PAGE, PAGE << 9, PAGE << 18}


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "sizes"), [("4k", {PAGE}), ("2m", {PAGE, PAGE << 9})])
def test_with_smaller_pages_too(session: Session, largest: str, sizes: set[int]) -> None:
    dump = dumped(session, nested_page=largest)
    check_host_tables(dump)
    assert check_nested_tables(dump) == sizes

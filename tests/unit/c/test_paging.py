# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvPagingLib: the tables are read back by a walker of our own and compared with what the calls should have done."""

import mmap
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.c.host import HostLibrary

K4, M2, G1 = 1 << 12, 1 << 21, 1 << 30
SIZE = {1: K4, 2: M2, 3: G1}
POOL_PAGES = 2048

READ, WRITE, EXECUTE = 1, 2, 4
UC, WC, WT, WP, WB = 0x000, 0x100, 0x400, 0x500, 0x600

Attributes = int
Run = tuple[int, int, int, Attributes]
"""Start, end, host address - guest address, attributes."""


@dataclass(frozen=True)
class Format:
    """A format as the manuals have it."""

    enum: str
    levels: int
    bits: int
    ept: bool
    user: int = 0

    def table(self, entry: int) -> int:
        """Address in an entry that points to a table."""
        address = entry & 0x000F_FFFF_FFFF_F000
        if self.ept:
            assert entry ^ address == 0b111, hex(entry)
        else:
            assert entry ^ address == 0x23 | self.user, hex(entry)
        return address

    def leaf(self, entry: int, level: int) -> tuple[int, Attributes]:
        """Host address and attributes of a leaf."""
        address = entry & 0x000F_FFFF_FFFF_F000
        flags = entry ^ address
        assert address % SIZE[level] == 0, hex(entry)
        if level > 1:
            assert flags & 0x80, hex(entry)
            flags ^= 0x80
        if self.ept:
            rights, kind = flags & 7, flags >> 3
            assert kind in (0, 1, 4, 5, 6), hex(entry)  # also: nothing above bit 5
            assert rights & 1 or rights == 4, hex(entry)  # writable and not readable is a misconfiguration
            return address, rights | kind << 8
        assert flags & 0x61 == 0x61 and flags & 4 == self.user, hex(entry)
        nx, flags = flags >> 63, flags & ~(1 << 63) & ~(0x61 | 4)
        assert flags & ~0x1A == 0 and flags & 0x18 in (0, 0x18), hex(entry)
        return address, READ | flags & 2 | (0 if nx else EXECUTE) | (UC if flags & 0x18 else WB)

    @property
    def attributes(self) -> list[Attributes]:
        """Everything that the format can express."""
        rights = [1, 3, 5, 7] + ([4] if self.ept else [])
        types = [UC, WC, WT, WP, WB] if self.ept else [UC, WB]
        return [right | kind for right in rights for kind in types]


FORMATS = [
    Format("HvPagingNpt4", 4, 48, False, 4),
    Format("HvPagingNpt5", 5, 52, False, 4),
    Format("HvPagingEpt4", 4, 48, True),
    Format("HvPagingEpt5", 5, 52, True),
    Format("HvPagingHost4", 4, 47, False),
    Format("HvPagingHost5", 5, 52, False),
]


class Memory:
    """Pages for a pool, full of garbage, at the same physical and virtual address."""

    def __init__(self, hv: HostLibrary) -> None:
        """Takes the memory."""
        self.raw = mmap.mmap(-1, POOL_PAGES * K4)
        self.raw.write(b"\xa5" * len(self.raw))
        self.words = memoryview(self.raw).cast("Q")
        self.base = int(hv.ffi.cast("uintptr_t", hv.ffi.from_buffer(self.raw)))

    def used(self, pages: int) -> bytes:
        """The first pages."""
        return self.raw[: pages * K4]


@pytest.fixture(scope="module")
def memory(hv: HostLibrary) -> Memory:
    return Memory(hv)


class Tables:
    """Tables under test, with the runs that they should have."""

    def __init__(
        self, hv: HostLibrary, memory: Memory, form: Format, largest: int = 3, pages: int = POOL_PAGES, bits: int = 0
    ) -> None:
        """Starts empty tables."""
        self.hv, self.memory, self.form, self.largest = hv, memory, form, largest
        self.bits = bits or form.bits
        self.pool = hv.ffi.new("HV_PAGE_POOL *")
        self.paging = hv.ffi.new("HV_PAGING *")
        assert hv.name(hv.lib.HvPagePoolInit(self.pool, memory.base, pages)) == "SUCCESS"
        enum = getattr(hv.lib, form.enum)
        assert hv.name(hv.lib.HvPagingInit(self.paging, enum, self.pool, largest, self.bits)) == "SUCCESS"
        self.runs: list[Run] = []

    def leaves(self) -> list[tuple[int, int, int, Attributes]]:
        """All leaves as (guest address, level, host address, attributes), by walking the memory."""
        found = []
        reached = set()

        def walk(table: int, level: int, start: int) -> None:
            offset = table - self.memory.base
            assert table not in reached and offset % K4 == 0 and 0 <= offset < self.pool.Used * K4
            reached.add(table)
            for index, entry in enumerate(self.memory.words[offset // 8 : offset // 8 + 512].tolist()):
                address = start + (index << 3 + 9 * level)
                if entry == 0:
                    continue
                if level == 1 or (level <= 3 and entry & 0x80):
                    host, attributes = self.form.leaf(entry, level)
                    found.append((address, level, host, attributes))
                else:
                    walk(self.form.table(entry), level - 1, address)

        walk(self.paging.Root, self.form.levels, 0)
        assert len(reached) == self.pool.Used  # no page is lost
        return found

    def check(self) -> None:
        """Compares the tables with the runs."""
        leaves = self.leaves()
        count = [0, 0, 0]
        actual = []
        for guest, level, host, attributes in leaves:
            assert level <= self.largest
            count[level - 1] += 1
            actual.append((guest, guest + SIZE[level], host - guest, attributes))
        assert join(actual) == self.runs
        assert list(self.paging.Count) == count

    def query(self, address: int) -> tuple[int, Attributes, int] | None:
        """Host address, attributes and level that the library finds."""
        leaf = self.hv.ffi.new("HV_PAGING_LEAF *")
        assert self.hv.name(self.hv.lib.HvPagingQuery(self.paging, address, leaf)) == "SUCCESS"
        if not leaf.Present:
            assert (leaf.HostAddress, leaf.Attributes) == (0, 0)
            size = 1 << 3 + 9 * leaf.Level
            start = address // size * size
            assert all(end <= start or begin >= start + size for begin, end, _, _ in self.runs)
            return None
        return leaf.HostAddress, leaf.Attributes, leaf.Level

    def expected(self, address: int) -> tuple[int, Attributes] | None:
        """Host address and attributes that it should find."""
        for start, end, delta, attributes in self.runs:
            if start <= address < end:
                return address + delta, attributes
        return None

    def change(self, kind: str, start: int, length: int, host: int = 0, attributes: Attributes = 0) -> str:
        """Calls the library; if it succeeds, does the same to the runs, else checks that nothing changed."""
        before = self.memory.used(self.pool.Used), self.pool.Used, list(self.paging.Count)
        lib, paging = self.hv.lib, self.paging
        if kind == "map":
            status = lib.HvPagingMap(paging, start, host, length, attributes)
        elif kind == "unmap":
            status = lib.HvPagingUnmap(paging, start, length)
        else:
            status = lib.HvPagingProtect(paging, start, length, attributes)
        if self.hv.name(status) != "SUCCESS":
            assert before == (self.memory.used(self.pool.Used), self.pool.Used, list(self.paging.Count))
            return self.hv.name(status)
        runs: list[Run] = []
        for run in self.runs:
            begin, end, delta, old = run
            low, high = max(begin, start), min(end, start + length)
            if low >= high:
                runs.append(run)
                continue
            runs.append((begin, low, delta, old))
            runs.append((high, end, delta, old))
            if kind == "protect":
                runs.append((low, high, delta, attributes))
        if kind == "map":
            runs.append((start, start + length, host - start, attributes))
        self.runs = join(runs)
        return "SUCCESS"


def join(runs: list[Run]) -> list[Run]:
    """Sorts runs, drops empty ones, and joins neighbours that say the same."""
    result: list[Run] = []
    for run in sorted(run for run in runs if run[0] < run[1]):
        if result and result[-1][1] == run[0] and result[-1][2:] == run[2:]:
            result[-1] = (result[-1][0], *run[1:])
        else:
            assert not result or result[-1][1] <= run[0]
            result.append(run)
    return result


PARTS = st.sampled_from((0, 0, 0, 1, 2, 3, 511))


@st.composite
def ranges(draw: st.DrawFn, form: Format, largest: int) -> tuple[int, int, int]:
    """Guest address, length and host address; lengths are kept so small that the walk stays fast."""
    limit = 1 << form.bits
    place = st.sampled_from((0, 0, 0, 0, 511 * G1, 512 * G1, limit // 2, limit - 4 * G1))
    small = st.integers(0, 3)
    start = draw(place) + draw(small) * G1 + draw(PARTS) * M2 + draw(PARTS) * K4
    step = draw(st.sampled_from((0, 0, G1, M2, K4)))
    gigabytes = 0 if largest == 1 or step == K4 else draw(st.sampled_from((0, 0, 0, 1, 2)))
    length = gigabytes * G1 + draw(small) * M2 + draw(PARTS) * K4
    host = (start + step * draw(st.integers(0, 3))) % (1 << 52)
    assume(start + length <= limit and host + length <= 1 << 52)
    return start, length, host


@settings(max_examples=800, deadline=None)
@given(data=st.data())
def test_any_sequence_of_changes(hv: HostLibrary, memory: Memory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    largest = data.draw(st.sampled_from((1, 2, 3)))
    pages = data.draw(st.sampled_from((POOL_PAGES, POOL_PAGES, POOL_PAGES, 1, 4, 7, 12, 20)))
    hv.lib.gHvTestFailEvery = data.draw(st.sampled_from((0, 2, 3, 7)))
    tables = Tables(hv, memory, form, largest, pages)
    points = {0, (1 << form.bits) - 1}
    try:
        for _ in range(data.draw(st.integers(1, 10))):
            kind = data.draw(st.sampled_from(("map", "map", "map", "unmap", "protect")))
            start, length, host = data.draw(ranges(form, largest))
            attributes = data.draw(st.sampled_from(form.attributes))
            status = tables.change(kind, start, length, host, attributes)
            assert status == "SUCCESS" or (status == "OUT_OF_RESOURCES" and pages < POOL_PAGES)
            points |= {start - 1, start, start + length - 1, start + length, start + 12345}
    finally:
        hv.lib.gHvTestFailEvery = 0
    tables.check()
    for point in points:
        if 0 <= point < 1 << form.bits:
            found = tables.query(point)
            assert (found and found[:2]) == tables.expected(point)


@settings(deadline=None)
@given(data=st.data())
def test_the_first_mapping_has_the_largest_leaves(hv: HostLibrary, memory: Memory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    largest = data.draw(st.sampled_from((1, 2, 3)))
    start, length, host = data.draw(ranges(form, largest))
    tables = Tables(hv, memory, form, largest)
    assert tables.change("map", start, length, host, READ | WB) == "SUCCESS"
    wanted = []
    end = start + length
    while start < end:
        fits = [n for n in range(1, largest + 1) if (start | host) % SIZE[n] == 0 and start + SIZE[n] <= end]
        wanted.append((start, max(fits), host, READ | WB))
        start, host = start + SIZE[max(fits)], host + SIZE[max(fits)]
    assert tables.leaves() == wanted


@settings(deadline=None)
@given(data=st.data())
def test_what_is_there_already_is_left_alone(hv: HostLibrary, memory: Memory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    tables = Tables(hv, memory, form)
    start, length, host = data.draw(ranges(form, 3))
    attributes = data.draw(st.sampled_from(form.attributes))
    tables.change("map", start, length, host, attributes)
    before = memory.used(tables.pool.Used)
    skip = data.draw(st.integers(0, length // K4)) * K4
    part = data.draw(st.integers(0, (length - skip) // K4)) * K4
    tables.change("map", start + skip, part, host + skip, attributes)
    tables.change("protect", start + skip, part, 0, attributes)
    assert memory.used(tables.pool.Used) == before


def estimate(hv: HostLibrary, form: Format, largest: int, wanted: list[tuple[int, int, int]]) -> int:
    """Pages that the library says ranges of (guest address, length, host address) need."""
    rows = hv.ffi.new("HV_PAGING_RANGE[]", [(start, host, length) for start, length, host in wanted])
    pages = hv.ffi.new("UINT64 *")
    status = hv.lib.HvPagingEstimate(getattr(hv.lib, form.enum), largest, rows, len(wanted), pages)
    assert hv.name(status) == "SUCCESS"
    return int(pages[0])


POINT = st.builds(lambda g, m, k: g * G1 + m * M2 + k * K4, st.integers(0, 2), PARTS, PARTS)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_estimate_is_exact_for_ranges_in_order(hv: HostLibrary, memory: Memory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    largest = data.draw(st.sampled_from((2, 3)))
    points = sorted(data.draw(st.sets(POINT, min_size=2, max_size=10)))
    pairs = list(zip(points, points[1:], strict=False))
    if data.draw(st.booleans()):
        pairs = pairs[::2]
    step = data.draw(st.sampled_from((0, 0, G1, M2)))
    wanted = [(start, end - start, start + step) for start, end in pairs]
    tables = Tables(hv, memory, form, largest)
    for start, length, host in wanted:
        assert tables.change("map", start, length, host, 7 | WB) == "SUCCESS"
    assert tables.pool.Used == estimate(hv, form, largest, wanted)


@settings(deadline=None)
@given(data=st.data())
def test_estimate_is_enough_for_any_ranges(hv: HostLibrary, memory: Memory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    largest = data.draw(st.sampled_from((1, 2, 3)))
    wanted = data.draw(st.lists(ranges(form, largest), max_size=5))
    tables = Tables(hv, memory, form, largest)
    for start, length, host in wanted:
        assert tables.change("map", start, length, host, 7 | WB) == "SUCCESS"
    assert tables.pool.Used <= estimate(hv, form, largest, wanted)


def test_estimate_refuses_bad_input(hv: HostLibrary) -> None:
    pages = hv.ffi.new("UINT64 *")
    rows = hv.ffi.new("HV_PAGING_RANGE *")
    npt = hv.lib.HvPagingNpt4

    def call(form: int, largest: int, row: tuple[int, int, int]) -> str:
        rows.GuestAddress, rows.HostAddress, rows.Length = row
        return hv.name(hv.lib.HvPagingEstimate(form, largest, rows, 1, pages))

    assert call(npt, 3, (0, 0, 0)) == "SUCCESS" and pages[0] == 1
    assert call(hv.lib.HvPagingFormatMax, 3, (0, 0, 0)) == "INVALID_PARAMETER"
    assert call(npt, 0, (0, 0, 0)) == call(npt, 4, (0, 0, 0)) == "INVALID_PARAMETER"
    for row in ((1, 0, K4), (0, 1, K4), (0, 0, 1)):
        assert call(npt, 3, row) == "INVALID_PARAMETER"
    for row in ((1 << 48, 0, K4), (0, 0, (1 << 48) + K4), (0, 1 << 52, K4), (K4, 0, 2**64 - K4)):
        assert call(npt, 3, row) == "UNSUPPORTED"
    assert hv.name(hv.lib.HvPagingEstimate(npt, 3, hv.ffi.NULL, 1, pages)) == "INVALID_PARAMETER"
    assert hv.name(hv.lib.HvPagingEstimate(npt, 3, rows, 1, hv.ffi.NULL)) == "INVALID_PARAMETER"
    assert hv.name(hv.lib.HvPagingEstimate(npt, 3, hv.ffi.NULL, 0, pages)) == "SUCCESS" and pages[0] == 1


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.enum)
def test_split_of_one_gibibyte_keeps_the_rest(hv: HostLibrary, memory: Memory, form: Format) -> None:
    tables = Tables(hv, memory, form)
    tables.change("map", 0, 4 * G1, 0, 7 | WB)
    assert list(tables.paging.Count) == [0, 0, 4]
    tables.change("unmap", G1 + 5 * M2 + 7 * K4, K4)
    assert list(tables.paging.Count) == [511, 511, 3]
    tables.check()
    tables.change("protect", 2 * G1, M2, 0, 1 | UC)
    assert list(tables.paging.Count) == [511, 1023, 2]
    tables.check()
    assert tables.query(2 * G1 + 5) == (2 * G1 + 5, 1 | UC, 2)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.enum)
def test_bad_input_is_refused(hv: HostLibrary, memory: Memory, form: Format) -> None:
    bits = form.bits - 3
    tables = Tables(hv, memory, form, bits=bits)
    limit = 1 << bits
    rwx = 7 | WB
    assert tables.change("map", 1, K4, 0, rwx) == "INVALID_PARAMETER"
    assert tables.change("map", 0, K4, 8, rwx) == "INVALID_PARAMETER"
    assert tables.change("map", 0, K4 - 1, 0, rwx) == "INVALID_PARAMETER"
    assert tables.change("unmap", 0, 1) == "INVALID_PARAMETER"
    assert tables.change("protect", 2048, K4, 0, rwx) == "INVALID_PARAMETER"
    assert tables.change("map", limit, K4, 0, rwx) == "UNSUPPORTED"
    assert tables.change("map", limit - K4, 2 * K4, 0, rwx) == "UNSUPPORTED"
    assert tables.change("map", K4, 2**64 - K4, 0, rwx) == "UNSUPPORTED"
    assert tables.change("map", 0, 2 * K4, (1 << 52) - K4, rwx) == "UNSUPPORTED"
    assert tables.change("unmap", 2**64 - K4, K4) == "UNSUPPORTED"
    assert tables.change("protect", limit, K4, 0, rwx) == "UNSUPPORTED"
    assert tables.change("map", 0, 0, 0, rwx) == "SUCCESS"
    assert tables.change("map", K4, 0, 0, rwx) == "SUCCESS"
    assert tables.change("map", limit - K4, K4, (1 << 52) - K4, rwx) == "SUCCESS"
    tables.check()
    for rights in range(8):
        possible = rights in (1, 3, 5, 7) or (form.ept and rights == 4)
        for kind in range(8):
            status = tables.change("map", 0, K4, 0, rights | kind << 8)
            if not possible:
                assert status == "INVALID_PARAMETER"
            elif kind in ((0, 1, 4, 5, 6) if form.ept else (0, 6)):
                assert status == "SUCCESS"
            else:
                assert status == "UNSUPPORTED"
    assert tables.change("map", 0, K4, 0, rwx | 0x8000) == "INVALID_PARAMETER"
    leaf = hv.ffi.new("HV_PAGING_LEAF *")
    assert hv.name(hv.lib.HvPagingQuery(tables.paging, limit, leaf)) == "UNSUPPORTED" and not leaf.Present


def test_bad_start_is_refused(hv: HostLibrary, memory: Memory) -> None:
    lib, ffi = hv.lib, hv.ffi
    pool, paging = ffi.new("HV_PAGE_POOL *"), ffi.new("HV_PAGING *")
    assert hv.name(lib.HvPagePoolInit(pool, memory.base + 8, 1)) == "INVALID_PARAMETER"
    assert hv.name(lib.HvPagePoolInit(pool, (1 << 52) - K4, 2)) == "INVALID_PARAMETER"
    assert hv.name(lib.HvPagePoolInit(ffi.NULL, memory.base, 2)) == "INVALID_PARAMETER"
    assert hv.name(lib.HvPagePoolInit(pool, memory.base, 1)) == "SUCCESS"

    def init(form: int, largest: int, bits: int, paging: Any = paging) -> str:  # noqa: ANN401
        return hv.name(lib.HvPagingInit(paging, form, pool, largest, bits))

    assert init(lib.HvPagingFormatMax, 3, 48) == "INVALID_PARAMETER"
    assert init(lib.HvPagingNpt4, 0, 48) == init(lib.HvPagingNpt4, 4, 48) == "INVALID_PARAMETER"
    assert init(lib.HvPagingNpt4, 3, 31) == init(lib.HvPagingNpt4, 3, 48, ffi.NULL) == "INVALID_PARAMETER"
    for form in FORMATS:
        assert lib.HvPagingFormatBits(getattr(lib, form.enum)) == form.bits
        assert init(getattr(lib, form.enum), 3, form.bits + 1) == "UNSUPPORTED"
    assert lib.HvPagingFormatBits(lib.HvPagingFormatMax) == 0
    assert pool.Used == 0
    assert init(lib.HvPagingNpt4, 3, 48) == "SUCCESS"
    assert init(lib.HvPagingNpt4, 3, 48) == "OUT_OF_RESOURCES"
    assert lib.HvPagePoolTake(pool) == ffi.NULL


def test_pages_are_taken_once_by_many_threads(hv: HostLibrary, memory: Memory) -> None:
    pool = hv.ffi.new("HV_PAGE_POOL *")
    owner = hv.ffi.new(f"UINT8[{POOL_PAGES}]")
    for _ in range(20):
        hv.ffi.memmove(owner, bytes(POOL_PAGES), POOL_PAGES)
        assert hv.name(hv.lib.HvPagePoolInit(pool, memory.base, POOL_PAGES)) == "SUCCESS"
        assert hv.lib.HvStressPool(pool, 6, owner) == POOL_PAGES == pool.Used
        assert set(owner) <= set(range(1, 7))
    memory.raw.seek(0)
    memory.raw.write(b"\xa5" * len(memory.raw))

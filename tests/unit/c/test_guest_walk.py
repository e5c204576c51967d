# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvGuestWalkLib against a translation that follows the manual's wording, with random tables."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.c.host import HostLibrary

PG, WP = 1 << 31, 1 << 16
PSE, PAE, LA57, SMEP, SMAP, PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21, 1 << 22
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
AC = 1 << 18
READ, WRITE, FETCH, SYSTEM = 0, 1, 2, 4
P, RW, US, PS, NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63

SHIFTS = {"none": [], "legacy": [22, 12], "pae": [30, 21, 12], "long4": [39, 30, 21, 12], "long5": [48, 39, 30, 21, 12]}


class Unreadable(Exception):
    """A part of memory that is not there."""


@dataclass
class Guest:
    """A guest's registers and memory."""

    mode: str
    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    pkru: int
    cpl: int
    width: int
    page1g: bool
    pdpte: list[int] | None = None
    memory: dict[int, int] = field(default_factory=dict)
    holes: set[int] = field(default_factory=set)

    def read(self, address: int, size: int) -> bytes:
        """Reads memory; what was never written is a pattern."""
        if address >> 12 in self.holes:
            raise Unreadable
        return self.peek(address, size)

    def peek(self, address: int, size: int) -> bytes:
        """Reads memory, holes or not."""
        return bytes(self.memory.get(a, (a ^ a >> 8) * 37 & 0xFF) for a in range(address, address + size))

    def write(self, address: int, value: int, size: int) -> None:
        """Writes a number."""
        self.memory.update(zip(range(address, address + size), value.to_bytes(size, "little"), strict=True))


@dataclass(frozen=True)
class Answer:
    """What a translation gives."""

    kind: str
    gpa: int = 0
    code: int = 0


def bits(low: int, high: int) -> set[int]:
    """Numbers of the bits from low to high."""
    return set(range(low, high + 1))


def reserved(guest: Guest, level: int, large: bool) -> set[int]:
    """Reserved bits of a present entry (SDM tables 4-4 to 4-20)."""
    m = guest.width
    no_nx = set() if guest.efer & NXE else {63}
    if guest.mode == "legacy":
        return bits(min(m, 40) - 19, 21) if large else set()
    if guest.mode == "pae":
        if level == 3:
            return {1, 2} | bits(5, 8) | bits(m, 63)
        return bits(m, 62) | no_nx | (bits(13, 20) if large else set())
    result = bits(m, 51) | no_nx
    if level >= 4 or (level == 3 and not guest.page1g):
        result |= {7}
    elif large:
        result |= bits(13, 29 if level == 3 else 20)
    return result


def model(guest: Guest, linear: int, access: int) -> Answer:
    """The translation as the manual tells it."""
    write, fetch, system = bool(access & WRITE), bool(access & FETCH), bool(access & SYSTEM)
    if not guest.efer & LMA:
        linear %= 1 << 32
    else:
        upper = linear >> (56 if guest.cr4 & LA57 else 47)
        if upper not in (0, (1 << (8 if guest.cr4 & LA57 else 17)) - 1):
            return Answer("noncanonical")
    if guest.mode == "none":
        return Answer("ok", linear)
    user = guest.cpl == 3 and not system
    has_nx = bool(guest.efer & NXE) and guest.mode != "legacy"
    code = 2 * write + 4 * user + 16 * (fetch and bool(has_nx or guest.cr4 & SMEP))
    size = 4 if guest.mode == "legacy" else 8
    table = guest.cr3 & (0xFFFF_FFE0 if guest.mode == "pae" else 0x000F_FFFF_FFFF_F000)
    entries = []
    shifts = SHIFTS[guest.mode]
    for level, shift in zip(range(len(shifts), 0, -1), shifts, strict=True):
        index = linear >> shift & (1023 if size == 4 else 511)
        if guest.mode == "pae" and level == 3 and guest.pdpte is not None:
            entry = guest.pdpte[index]
        else:
            try:
                entry = int.from_bytes(guest.read(table + index * size, size), "little")
            except Unreadable:
                return Answer("unreadable")
        if not entry & P:
            return Answer("fault", code=code)
        large = bool(entry & PS) and (
            (level == 2 and (guest.mode != "legacy" or bool(guest.cr4 & PSE)))
            or (level == 3 and guest.mode.startswith("long"))
        )
        if any(entry >> bit & 1 for bit in reserved(guest, level, large)):
            return Answer("fault", code=code | 1 | 8)
        if not (guest.mode == "pae" and level == 3):
            entries.append(entry)
        table = entry & 0x000F_FFFF_FFFF_F000
        if large or level == 1:
            break
    user_page = all(entry & US for entry in entries)
    writable = all(entry & RW for entry in entries)
    executable = not any(entry & NX for entry in entries if has_nx)
    wp = bool(guest.cr0 & WP)
    key_fault = False
    if user and not user_page:
        allowed = False
    elif fetch:
        allowed = executable and (user or not (user_page and guest.cr4 & SMEP))
    elif user:
        allowed = writable or not write
    else:
        smap = user_page and guest.cr4 & SMAP and (system or not guest.rflags & AC)
        allowed = not smap and (writable or not write or not wp)
    if guest.mode.startswith("long") and guest.cr4 & PKE and user_page and not fetch:
        rights = guest.pkru >> (entries[-1] >> 59 & 15) * 2 & 3
        key_fault = bool(rights & 1) or (bool(rights & 2) and write and (user or wp))
    if not allowed or key_fault:
        return Answer("fault", code=code | 1 | 32 * key_fault)
    offset = linear & (1 << shift) - 1
    frame = entries[-1] & 0x000F_FFFF_FFFF_F000
    if guest.mode == "legacy" and large:
        frame = (entries[-1] & 0xFFC0_0000) + ((entries[-1] >> 13 & 0xFF) << 32)
    return Answer("ok", frame >> shift << shift | offset)


class Walker:
    """The library with a guest behind its callback."""

    def __init__(self, hv: HostLibrary) -> None:
        """Makes the callback."""
        self.hv = hv
        self.guest: Guest | None = None
        self.context = hv.ffi.new("int *")
        self.callback = hv.ffi.callback("RETURN_STATUS(void *, UINT64, void *, UINTN)", self._read)
        self.gpa = hv.ffi.new("UINT64 *")
        self.fault = hv.ffi.new("HV_PAGE_FAULT *")

    def _read(self, context: Any, address: int, buffer: Any, size: int) -> int:  # noqa: ANN401
        assert self.guest is not None and context == self.context
        assert 0 < size and address // 4096 == (address + size - 1) // 4096
        try:
            data = self.guest.read(address, size)
        except Unreadable:
            self.hv.ffi.memmove(buffer, b"\xcc" * size, size)  # what a failed read leaves is nobody's business
            return self.hv.status["NOT_FOUND"]
        self.hv.ffi.memmove(buffer, data, size)
        return 0

    def state(self, guest: Guest) -> Any:  # noqa: ANN401
        """The guest's registers for the library."""
        self.guest = guest
        values = {"Cr0": guest.cr0, "Cr3": guest.cr3, "Cr4": guest.cr4, "Efer": guest.efer, "Rflags": guest.rflags}
        values |= {"Pkru": guest.pkru, "Cpl": guest.cpl, "AddressBits": guest.width, "Page1G": guest.page1g}
        if guest.pdpte is not None:
            values |= {"PdpteLoaded": 1}
        state = self.hv.ffi.new("HV_GUEST_PAGING *", values)
        if guest.pdpte is not None:
            state.Pdpte = guest.pdpte
        return state

    def walk(self, guest: Guest, linear: int, access: int) -> Answer:
        """Translates."""
        self.fault.ErrorCode, self.fault.Cr2 = 0xFFFF, 1
        status = self.hv.name(
            self.hv.lib.HvGuestWalk(
                self.state(guest), linear, access, self.callback, self.context, self.gpa, self.fault
            )
        )
        if status == "SUCCESS":
            return Answer("ok", self.gpa[0])
        if status == "ACCESS_DENIED":
            assert self.fault.Cr2 == (linear if guest.efer & LMA else linear % (1 << 32))
            return Answer("fault", code=self.fault.ErrorCode)
        return Answer({"NOT_FOUND": "noncanonical", "DEVICE_ERROR": "unreadable"}[status])


@pytest.fixture(scope="module")
def walker(hv: HostLibrary) -> Walker:
    return Walker(hv)


MODES = st.sampled_from(("none", "legacy", "pae", "pae", "long4", "long4", "long4", "long5", "long5"))


@st.composite
def guests(draw: st.DrawFn, mode: str) -> Guest:
    """Registers."""
    some = st.booleans()
    cr4 = sum(bit for bit in (PSE, SMEP, SMAP, PKE) if draw(some))
    cr4 |= {"pae": PAE, "long4": PAE, "long5": PAE | LA57}.get(mode, 0)
    efer = NXE * draw(some)
    if mode.startswith("long"):
        efer |= LME | LMA
    return Guest(
        mode=mode,
        cr0=1 | (0 if mode == "none" else PG) | WP * draw(some),
        cr3=0,
        cr4=cr4,
        efer=efer,
        rflags=AC * draw(some),
        pkru=draw(st.sampled_from((0, 1, 2, 3, 0xAAAA_AAA8, 0x1234_5678))),
        cpl=draw(st.sampled_from((0, 3, 3))),
        width=draw(st.sampled_from((32, 36, 39, 40, 46, 52))),
        page1g=draw(some),
    )


@st.composite
def linears(draw: st.DrawFn, mode: str) -> int:
    """Linear addresses, mostly canonical."""
    value = draw(st.integers(0, 2**64 - 1))
    width = {"long4": 47, "long5": 56}.get(mode, 32)
    low = value & (1 << width) - 1
    top = (1 << 64) - (1 << width) if width != 32 else 0
    return draw(st.sampled_from((low, low | top, low, low | top, value)))


ENTRY_FLAGS = st.sets(st.sampled_from((1, 2, 3, 4, 5, 6, 8, 9)), max_size=5).map(lambda s: sum(1 << n for n in s))


def build(data: st.DataObject, guest: Guest, linear: int) -> None:
    """Lays tables for one address into the guest's memory."""
    draw = data.draw
    small = guest.mode == "legacy"
    limit = 1 << (32 if small else guest.width)
    frames = st.integers(1, (limit >> 12) - 1).map(lambda n: n << 12)
    legacy_mode = not guest.efer & LMA
    linear = linear % (1 << 32) if legacy_mode else linear
    table = draw(st.integers(1, (1 << 20) - 1)) << 12 if legacy_mode else draw(frames)
    if guest.mode == "pae":
        table += draw(st.integers(0, 127)) * 32
    guest.cr3 = table | (draw(st.sampled_from((0, 0x18))) if guest.mode != "pae" else 0)
    shifts = SHIFTS[guest.mode]
    next_table = table
    for level, shift in zip(range(len(shifts), 0, -1), shifts, strict=True):
        top = guest.mode == "pae" and level == 3
        next_table = draw(frames)
        entry = next_table | P | (0 if top else RW | US if draw(st.integers(0, 3)) else draw(ENTRY_FLAGS))
        large = 1 < level <= 3 and not top and draw(st.integers(0, 3)) == 0
        if large and not (small and level == 3):
            entry = (entry >> shift << shift | entry & 0xFFF | PS) if draw(st.integers(0, 7)) else entry | PS
            if small:
                entry |= draw(st.integers(0, 255)) << 13 & ((1 << min(guest.width, 40) - 19) - 1)
        if not small and not top:
            entry |= draw(st.sampled_from((0, 0, 0, 0, NX))) | draw(st.integers(0, 3)) << 59 * (guest.mode != "pae")
        if draw(st.integers(0, 15)) == 0:
            entry ^= 1 << draw(st.integers(0, 31 if small else 63))
        size = 4 if small else 8
        index = linear >> shift & (1023 if small else 511)
        if top and draw(st.booleans()):
            guest.pdpte = [0x1111_1000] * 4
            guest.pdpte[index] = entry & ~0x1E6 & (1 << guest.width) - 1
            entry = guest.pdpte[index]
        else:
            guest.write(table + index * size, entry, size)
        table = entry & 0x000F_FFFF_FFFF_F000
    if draw(st.integers(0, 31)) == 0:
        guest.holes.add(next_table >> 12)


ACCESSES = st.sampled_from((READ, WRITE, FETCH, READ | SYSTEM, WRITE | SYSTEM))


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_translation(walker: Walker, data: st.DataObject) -> None:
    mode = data.draw(MODES)
    guest = data.draw(guests(mode))
    linear = data.draw(linears(mode))
    build(data, guest, linear)
    for access in (READ, WRITE, FETCH, READ | SYSTEM, WRITE | SYSTEM):
        assert walker.walk(guest, linear, access) == model(guest, linear, access)


@pytest.mark.parametrize("mode", ["legacy", "pae", "long4", "long5"])
@pytest.mark.parametrize("pse", [0, PSE])
@pytest.mark.parametrize("nxe", [0, NXE])
@pytest.mark.parametrize("page1g", [False, True])
def test_every_bit_of_every_entry(walker: Walker, mode: str, pse: int, nxe: int, page1g: bool) -> None:
    """One bit after the other is turned over, at each level, with large and small pages, for each width."""
    linear = 0x1234_5678
    long = mode.startswith("long")
    cr4 = pse | {"legacy": 0, "pae": PAE, "long4": PAE, "long5": PAE | LA57}[mode]
    shifts = SHIFTS[mode]
    size, mask = (4, 1023) if mode == "legacy" else (8, 511)
    for width, last in itertools.product((32, 35, 36, 40, 41, 52), range(1, len(shifts) + 1)):
        path = []
        guest = Guest(mode, PG | WP | 1, 0x1000, cr4, nxe | (LMA if long else 0), 0, 0, 3, width, page1g)
        for level in range(len(shifts), last - 1, -1):
            shift = shifts[len(shifts) - level]
            address = 0x1000 * (len(shifts) - level + 1) + (linear >> shift & mask) * size
            # The last one has an address that suits a page of any size.
            frame = 0x1000 * (len(shifts) - level + 2) if level > last else 0x4000_0000
            top = mode == "pae" and level == 3
            entry = frame | P | (0 if top else RW | US) | (PS if level == last > 1 and not top else 0)
            guest.write(address, entry, size)
            path.append((address, entry))
        for (address, entry), bit in itertools.product(path, range(size * 8)):
            guest.write(address, entry ^ 1 << bit, size)
            assert walker.walk(guest, linear, WRITE) == model(guest, linear, WRITE), (address, bit, width)
            guest.write(address, entry, size)


def every_right() -> Iterator[tuple[int, ...]]:
    """All combinations of what decides about an access in 4-level paging, with two levels that differ."""
    for flags in range(1 << 13):
        yield tuple(flags >> n & 1 for n in range(13))


def test_every_combination_of_rights(walker: Walker) -> None:
    linear = 0x7F12_3456_7ABC
    seen = set()
    for rw1, us1, nx1, rw2, us2, nx2, wp, smep, smap, ac, user, pke, disable in every_right():
        guest = Guest(
            mode="long4",
            cr0=1 | PG | WP * wp,
            cr3=0x1000,
            cr4=PAE | SMEP * smep | SMAP * smap | PKE * pke,
            efer=LMA | NXE,
            rflags=AC * ac,
            pkru=(disable + 1) << 10,
            cpl=3 * user,
            width=40,
            page1g=True,
        )
        high = P | RW * rw1 | US * us1 | NX * nx1
        low = P | RW * rw2 | US * us2 | NX * nx2 | 5 << 59
        for address, shift, entry in (
            (0x1000, 39, 0x2000 | P | RW | US),
            (0x2000, 30, 0x3000 | high),
            (0x3000, 21, 0x4000 | P | RW | US),
            (0x4000, 12, 0x5000 | low),
        ):
            guest.write(address + (linear >> shift & 511) * 8, entry, 8)
        for access in (READ, WRITE, FETCH, READ | SYSTEM, WRITE | SYSTEM):
            answer = walker.walk(guest, linear, access)
            assert answer == model(guest, linear, access)
            seen.add((answer.kind, answer.code))
    assert {("ok", 0), ("fault", 1), ("fault", 3), ("fault", 5), ("fault", 7), ("fault", 0x11), ("fault", 0x15)} <= seen
    assert {("fault", 0x21), ("fault", 0x23), ("fault", 0x25), ("fault", 0x27)} <= seen


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fetch(walker: Walker, data: st.DataObject) -> None:
    hv = walker.hv
    mode = data.draw(MODES)
    guest = data.draw(guests(mode))
    linear = data.draw(linears(mode))
    if data.draw(st.booleans()):
        linear = linear & ~0xFFF | data.draw(st.integers(0xFF0, 0xFFF))
    wrap = 1 << (64 if guest.efer & LMA else 32)
    build(data, guest, linear)
    first = guest.cr3, guest.pdpte
    if data.draw(st.booleans()):
        # The next page has an own entry where it has an own place in the table of the lowest level.
        build_next(data, guest, linear)
    assert (guest.cr3, guest.pdpte) == first
    if data.draw(st.integers(0, 7)) == 0 and (answer := model(guest, linear, FETCH)).kind == "ok":
        guest.holes.add(answer.gpa >> 12)

    wanted, end = b"", Answer("ok")
    for offset in range(15):
        end = model(guest, (linear + offset) % wrap, FETCH)
        if end.kind != "ok":
            break
        try:
            wanted += guest.read(end.gpa, 1)
        except Unreadable:
            end = Answer("unreadable")
            break

    buffer = hv.ffi.new("UINT8[15]", [0xEE] * 15)
    count = hv.ffi.new("UINTN *", 99)
    walker.fault.ErrorCode, walker.fault.Cr2 = 0xFFFF, 1
    status = hv.name(
        hv.lib.HvGuestFetch(walker.state(guest), linear, walker.callback, walker.context, buffer, count, walker.fault)
    )
    names = {"fault": "ACCESS_DENIED", "noncanonical": "NOT_FOUND", "unreadable": "DEVICE_ERROR"}
    assert status == ("SUCCESS" if wanted else names[end.kind])
    assert bytes(buffer) == wanted.ljust(15, b"\0") and count[0] == len(wanted)
    if end.kind == "fault":
        assert (walker.fault.ErrorCode, walker.fault.Cr2) == (end.code, (linear + len(wanted)) % wrap)
    else:
        assert (walker.fault.ErrorCode, walker.fault.Cr2) == (0, 0)


def build_next(data: st.DataObject, guest: Guest, linear: int) -> None:
    """Gives the page after an address an entry of its own, in the page table that exists."""
    if guest.mode == "none":
        return
    size = 4 if guest.mode == "legacy" else 8
    mask = 1023 if size == 4 else 511
    linear = linear % (1 << 32) if not guest.efer & LMA else linear
    table = guest.cr3 & (0xFFFF_FFE0 if guest.mode == "pae" else 0x000F_FFFF_FFFF_F000)
    shifts = SHIFTS[guest.mode]
    for shift in shifts[:-1]:
        index = linear >> shift & mask
        if guest.mode == "pae" and shift == 30 and guest.pdpte is not None:
            entry = guest.pdpte[index]
        else:
            entry = int.from_bytes(guest.peek(table + index * size, size), "little")
        table = entry & 0x000F_FFFF_FFFF_F000
    if linear >> 12 & mask != mask:
        entry = data.draw(st.integers(1, 0xFFFFF)) << 12 | data.draw(st.sampled_from((0, P, P | US, P | US | RW)))
        guest.write(table + ((linear >> 12 & mask) + 1) * size, entry, size)


def test_bad_parameters(walker: Walker) -> None:
    hv = walker.hv
    guest = Guest("none", 1, 0, 0, 0, 0, 0, 0, 40, True)
    null = hv.ffi.NULL

    def walk(**changes: Any) -> str:  # noqa: ANN401
        arguments = {"state": walker.state(guest), "linear": 0, "access": READ, "read": walker.callback}
        arguments |= {"context": walker.context, "gpa": walker.gpa, "fault": walker.fault} | changes
        return hv.name(hv.lib.HvGuestWalk(*arguments.values()))

    assert walk() == "SUCCESS"
    for name in ("state", "read", "gpa", "fault"):
        assert walk(**{name: null}) == "INVALID_PARAMETER"
    assert walk(access=WRITE | FETCH) == walk(access=8) == "INVALID_PARAMETER"
    for width in (0, 31, 53, 255):
        guest.width = width
        assert walk(state=walker.state(guest)) == "INVALID_PARAMETER"
    buffer, count = hv.ffi.new("UINT8[15]"), hv.ffi.new("UINTN *")
    fetch = hv.lib.HvGuestFetch
    state = walker.state(guest)
    good = [state, 0, walker.callback, walker.context, buffer, count, walker.fault]
    assert hv.name(fetch(*good)) == "INVALID_PARAMETER"  # the width is still 255
    guest.width = 40
    good[0] = walker.state(guest)
    assert hv.name(fetch(*good)) == "SUCCESS" and count[0] == 15
    for index in (0, 2, 4, 5, 6):
        assert hv.name(fetch(*good[:index], null, *good[index + 1 :])) == "INVALID_PARAMETER"


def test_constants(hv: HostLibrary) -> None:
    names = ("HV_ACCESS_READ", "HV_ACCESS_WRITE", "HV_ACCESS_FETCH", "HV_ACCESS_SYSTEM")
    assert [hv.constants[name] for name in names] == [READ, WRITE, FETCH, SYSTEM]
    errors = ("PRESENT", "WRITE", "USER", "RESERVED", "FETCH", "KEY")
    assert [hv.constants[f"HV_PF_{name}"] for name in errors] == [1 << n for n in range(6)]

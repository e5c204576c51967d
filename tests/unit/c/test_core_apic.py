# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Writes to the local APIC, and INIT and SIPI: what the wire gets, what mailboxes get, and what the target does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.c.core_host import CData, Core

APIC = 0xFEE00000
TPR, EOI, LDR, DFR, ICR, ICR2, TIMER = 0x80, 0xB0, 0xD0, 0xE0, 0x300, 0x310, 0x380
INIT_ASSERT, INIT_DEASSERT, SIPI, NMI, FIXED = 0xC500, 0x8500, 0x600, 0x400, 0
X2APIC_ICR = 0x830
WORD = 0xFFFFFFFF
CF, PF, AF, ZF, SF, OF = 1, 4, 16, 64, 128, 2048


def apic_write(core: Core, code: bytes, offset: int, cpu: int = 0, **fields: int) -> None:
    """A guest's store to the APIC page; the end of the run is checked where the caller cares."""
    core.run(core.exit("NestedFault", Gpa=APIC + offset, FaultFlags=3, code=code, **fields), cpu=cpu)


def raised(core: Core, cpu: int = 0) -> int | None:
    event = core.lib.gFake.Fake[cpu].Event
    return int(event.Vector) if event.Type == core.lib.HvEventException else None


def parity(value: int) -> bool:
    return (value & 0xFF).bit_count() % 2 == 0


# The stores that are carried out, with [RAX] as the operand: MOV, XCHG, AND, OR, XOR, with a register or an immediate.
def encodings(register: int, immediate: int) -> dict[str, tuple[bytes, int, bool]]:
    """By name: the code, its second operand, and whether it is one with a register."""
    wide = immediate.to_bytes(4, "little")
    short = immediate & 0xFF
    extended = short | (WORD ^ 0xFF) if short & 0x80 else short
    return {
        "mov r": (b"\x89\x08", register, True),
        "mov i": (b"\xc7\x00" + wide, immediate, False),
        "xchg r": (b"\x87\x08", register, True),
        "and r": (b"\x21\x08", register, True),
        "or r": (b"\x09\x08", register, True),
        "xor r": (b"\x31\x08", register, True),
        "and i": (b"\x81\x20" + wide, immediate, False),
        "or i": (b"\x81\x08" + wide, immediate, False),
        "xor i": (b"\x81\x30" + wide, immediate, False),
        "and b": (b"\x83\x20" + bytes([short]), extended, False),
        "or b": (b"\x83\x08" + bytes([short]), extended, False),
        "xor b": (b"\x83\x30" + bytes([short]), extended, False),
        "lock or r": (b"\xf0\x09\x08", register, True),
    }


@given(
    name=st.sampled_from(sorted(encodings(0, 0))),
    rcx=st.one_of(st.integers(0, 2**64 - 1), st.just(0)),
    immediate=st.one_of(st.integers(0, WORD), st.just(0)),
    old=st.one_of(st.integers(0, WORD), st.just(0)),
    offset=st.sampled_from([TPR, LDR, DFR, ICR2, TIMER, 0xF0, 0x3E0]),
    flags=st.sets(st.sampled_from([CF, PF, AF, ZF, SF, OF, 512, 1024])).map(sum),
)
def test_stores(core: Core, name: str, rcx: int, immediate: int, old: int, offset: int, flags: int) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    code, operand, _ = encodings(rcx & WORD, immediate)[name]
    regs.Rcx, regs.Rax, regs.Rip, regs.Rflags = rcx, APIC + offset, 0x7000, flags | 2
    fake.Fake[0].Apic[offset // 4] = old
    apic_write(core, code, offset)
    operation = name.split()[-2]
    value = {"mov": operand, "xchg": operand, "and": old & operand, "or": old | operand, "xor": old ^ operand}[
        operation
    ]
    assert raised(core) is None
    assert core.writes("ApicWrite") == [(offset, value)]
    assert regs.Rip == 0x7000 + len(code)
    # XCHG writes 32 bits, which clears the upper half.
    assert regs.Rcx == (old if operation == "xchg" else rcx)
    if operation in ("mov", "xchg"):
        assert regs.Rflags == flags | 2
    else:
        expected = flags & ~(CF | OF | PF | ZF | SF) | 2
        expected |= (PF if parity(value) else 0) | (ZF if value == 0 else 0) | (SF if value >> 31 else 0)
        # AF is undefined after a logical instruction.
        assert regs.Rflags & ~AF == expected & ~AF
    # A store alone must not read: reading changes some registers.
    assert fake.Fake[0].ApicReads == (0 if operation == "mov" else 1)
    assert (fake.Cpu[0].Apic.Ldr == value) == (offset == LDR or value == 1 << 24)
    if offset == DFR:
        assert fake.Cpu[0].Apic.Dfr == value
    assert fake.Cpu[0].Exits[core.lib.HvExitApicWrite] == 1


# Other instructions that write to [RAX]: the code, RCX and flags before, what is written, and RCX and flags after.
OTHERS = {
    "add": ("0108", 5, 0, 0x12345683, 5, AF),
    "adc": ("1108", 5, CF, 0x12345684, 5, PF | AF),
    "sub": ("2908", 0x1234567F, 0, 0xFFFFFFFF, 0x1234567F, CF | PF | AF | SF),
    "inc": ("FF00", 0, CF, 0x1234567F, 0, CF),
    "neg": ("F718", 0, 0, 0xEDCBA982, 0, CF | PF | AF | SF),
    "not": ("F710", 0, CF, 0xEDCBA981, 0, CF),
    "xadd": ("F00FC108", 2, 0, 0x12345680, 0x1234567E, AF),
    "cmpxchg, other": ("F00FB108", 9, 0, 0x1234567E, 9, AF | SF),
    "bts": ("0FAB08", 0, 0, 0x1234567F, 0, 0),
    "btr": ("0FBA3001", 0, 0, 0x1234567C, 0, CF),
    "shl": ("D120", 0, 0, 0x2468ACFC, 0, PF),
    "movnti": ("0FC308", 7, 0, 7, 7, 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_stores(core: Core, name: str) -> None:
    code, rcx, flags, written, rcx_after, flags_after = OTHERS[name]
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rip, regs.Rflags = rcx, APIC + TIMER, 0x7000, 2 | flags
    fake.Fake[0].Apic[TIMER // 4] = 0x1234567E
    apic_write(core, bytes.fromhex(code), TIMER)
    assert raised(core) is None
    assert core.writes("ApicWrite") == [(TIMER, written)]
    assert regs.Rip == 0x7000 + len(code) // 2
    assert (regs.Rcx, regs.Rflags & (CF | PF | AF | ZF | SF | OF)) == (rcx_after, flags_after)
    if name.startswith("cmpxchg"):
        assert regs.Rax == 0x1234567E


def test_strings_go_register_by_register(core: Core) -> None:
    fake = core.reset()
    ram = int(core.lib.HvFakeRam(0x1000))
    words = core.ffi.cast("uint32_t *", ram)
    for index in range(8):
        words[index] = 0x100 + index
    regs = fake.Vcpu[0].Regs
    # Four elements: one register, and twelve bytes behind it that are none.
    regs.Rcx, regs.Rsi, regs.Rdi, regs.Rip = 5, ram, APIC + TIMER, 0x7000
    for count in range(5):
        assert regs.Rip == 0x7000
        apic_write(core, b"\xf3\xa5", TIMER + 4 * count)
    assert (regs.Rcx, regs.Rsi, regs.Rdi, regs.Rip) == (0, ram + 20, APIC + TIMER + 20, 0x7002)
    assert core.writes("ApicWrite") == [(TIMER, 0x100), (TIMER + 16, 0x104)]
    assert raised(core) is None


@pytest.mark.parametrize(
    ("code", "offset"),
    [("668908", 0), ("8808", 0), ("488908", 0), ("8908", 4), ("8908", 1), ("660108", 0), ("480108", 0), ("0108", 8)],
)
def test_accesses_that_are_none_to_a_register_go_nowhere(core: Core, code: str, offset: int) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rip = 0x1234, APIC + TPR + offset, 0x7000
    apic_write(core, bytes.fromhex(code), TPR + offset)
    assert raised(core) is None
    assert (core.writes("ApicWrite"), fake.Fake[0].ApicReads, core.log()) == ([], 0, [])
    assert regs.Rip == 0x7000 + len(code) // 2


REFUSED = {
    "fxsave [rax]": b"\x0f\xae\x00",
    "movups [rax], xmm1": b"\x0f\x11\x08",
    "pop [rax]": b"\x8f\x00",
    "no such instruction": b"\x0f\x0b",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_carried_out_is_refused_and_named(core: Core, name: str) -> None:
    fake = core.reset()
    regs = fake.Vcpu[0].Regs
    regs.Rcx, regs.Rax, regs.Rip, regs.Rflags = 0x1234, APIC + TPR, 0x7000, 2
    apic_write(core, REFUSED[name], TPR)
    assert raised(core) == 13
    assert core.writes("ApicWrite") == []
    # An exception that is a fault pushes RF.
    assert (regs.Rcx, regs.Rip, regs.Rflags) == (0x1234, 0x7000, 2 | 1 << 16)
    assert core.log()[-1][0] == "DecodeFailed"
    assert core.log()[-1][1][0] == 0x7000


def test_page_tables_in_the_apic_page_are_refused(core: Core) -> None:
    core.reset()
    core.run(core.exit("NestedFault", Gpa=APIC, FaultFlags=11, code=b"\x89\x08"))
    assert raised(core) == 13
    assert core.log()[-1][0] == "NpfUnexpected"
    assert core.writes("ApicWrite") == []


def test_in_x2apic_mode_the_page_is_nobodys(core: Core) -> None:
    fake = core.reset(2, x2apic=True)
    fake.Vcpu[0].Regs.Rcx = INIT_ASSERT
    apic_write(core, b"\x89\x08", ICR)
    assert (core.writes("ApicWrite"), core.writes("Icr"), fake.Vcpu[0].Regs.Rip) == ([], [], 2)
    assert [cpu.Mailbox.Word for cpu in fake.Cpu[0:2]] == [0, 0]


# Interrupt commands.


def send(core: Core, icr: int, x2apic: bool, cpu: int = 0) -> int:
    """A guest's write to the ICR, in the way of the mode; returns why the run ended."""
    regs = core.lib.gFake.Vcpu[cpu].Regs
    if x2apic:
        regs.Rcx, regs.Rax, regs.Rdx = X2APIC_ICR, icr & WORD, icr >> 32
        made = core.exit("Wrmsr", NextRip=regs.Rip + 2)
    else:
        core.lib.gFake.Fake[cpu].Apic[ICR2 // 4] = icr >> 32
        regs.Rcx = icr & WORD
        made = core.exit("NestedFault", Gpa=APIC + ICR, FaultFlags=3, code=b"\x89\x08")
    return core.run(made, cpu=cpu)


def mail(core: Core, cpu: int) -> tuple[bool, int | None]:
    """What is in a mailbox: an INIT, and the vector of a SIPI."""
    box = core.ffi.new("HV_MAIL *")
    core.lib.HvMailboxPeek(core.ffi.addressof(core.lib.gFake.Cpu[cpu], "Mailbox"), box)
    return bool(box.Init), int(box.Vector) if box.Sipi else None


def destination(target: int, x2apic: bool) -> int:
    return target << (32 if x2apic else 56)


def targets(cpus: int, sender: int, shorthand: int, target: int) -> set[int]:
    """Whom a physical destination or a shorthand names."""
    everyone = set(range(cpus))
    return {0: {target} & everyone, 1: {sender}, 2: everyone, 3: everyone - {sender}}[shorthand]


@given(
    x2apic=st.booleans(),
    cpus=st.integers(2, 8),
    target=st.integers(0, 9),
    shorthand=st.sampled_from([0, 3]),
    vector=st.integers(0, 255),
    kind=st.sampled_from(["init", "sipi"]),
    native=st.sets(st.integers(1, 7)),
    waiting=st.sets(st.integers(1, 7)),
)
def test_init_and_sipi_go_to_mailboxes(
    core: Core,
    x2apic: bool,
    cpus: int,
    target: int,
    shorthand: int,
    vector: int,
    kind: str,
    native: set[int],
    waiting: set[int],
) -> None:
    fake = core.reset(cpus, x2apic)
    for index in native & set(range(cpus)):
        fake.Cpu[index].State = core.lib.HvMpNative
    for index in waiting - native & set(range(cpus)):
        # Something is in the mailbox already, and who put it there kicks.
        core.lib.HvMailboxPost(core.ffi.addressof(fake.Cpu[index], "Mailbox"), 0x10000)
    if target == 0 and shorthand == 0:
        target = 1
    icr = destination(target, x2apic) | shorthand << 18 | (INIT_ASSERT if kind == "init" else SIPI | vector)
    rip = fake.Vcpu[0].Regs.Rip
    assert send(core, icr, x2apic) == core.lib.HvFakeDone
    reached = targets(cpus, 0, shorthand, target)
    for index in range(1, cpus):
        posted = (kind == "init", vector if kind == "sipi" else None) if index in reached - native else (False, None)
        assert mail(core, index) == posted, index
    assert sorted(core.writes("Nmi")) == sorted((0, index) for index in reached - native - waiting - {0})
    # The wire gets it for those that run natively, for each alone, as the same command.
    wire = sorted((0, destination(index, x2apic) | (icr & 0x7FF) | 0x4000) for index in reached & native)
    assert sorted(core.writes("Icr")) == wire
    assert core.writes("ApicWrite") == []
    assert fake.Vcpu[0].Regs.Rip == rip + 2


@pytest.mark.parametrize("x2apic", [False, True])
def test_one_kick_is_enough(core: Core, x2apic: bool) -> None:
    core.reset(2, x2apic)
    for command in (INIT_ASSERT, SIPI | 9, SIPI | 10, INIT_ASSERT):
        send(core, destination(1, x2apic) | command, x2apic)
    assert core.writes("Nmi") == [(0, 1)]
    # The second INIT cancels the SIPIs before it.
    assert mail(core, 1) == (True, None)


@pytest.mark.parametrize("x2apic", [False, True])
def test_deassert_goes_nowhere(core: Core, x2apic: bool) -> None:
    fake = core.reset(2, x2apic)
    send(core, 2 << 18 | INIT_DEASSERT, x2apic)
    assert (core.writes("Icr"), core.writes("ApicWrite"), core.writes("Nmi")) == ([], [], [])
    assert [cpu.Mailbox.Word for cpu in fake.Cpu[0:2]] == [0, 0]
    assert fake.Vcpu[0].Regs.Rip == 2


@pytest.mark.parametrize("x2apic", [False, True])
@pytest.mark.parametrize("command", [FIXED | 0xFD, 0x100 | 0x30, 0x200, 0x800 | 0xFB, 3 << 18 | 0x40])
def test_other_commands_are_the_apics(core: Core, x2apic: bool, command: int) -> None:
    core.reset(2, x2apic)
    icr = destination(1, x2apic) | command | 0x4000
    send(core, icr, x2apic)
    if x2apic:
        assert core.writes("Icr") == [(0, icr)]
    else:
        assert core.writes("ApicWrite") == [(ICR, icr & WORD)]
    assert core.writes("Nmi") == []


@pytest.mark.parametrize("x2apic", [False, True])
@pytest.mark.parametrize("virtual_nmis", [False, True])
@pytest.mark.parametrize("kicks", [0, 2])
def test_an_nmi_that_the_guest_sends_does_not_merge_with_a_kick(
    core: Core, x2apic: bool, virtual_nmis: bool, kicks: int
) -> None:
    """Two NMIs at once are one in any processor: had it gone by the wire, the kick would have been all there is."""
    fake = core.reset(3, x2apic, virtual_nmis)
    own = fake.Fake[1]
    for _ in range(kicks):
        send(core, destination(1, x2apic) | SIPI | 9, x2apic)
    send(core, destination(1, x2apic) | NMI | 0x4000, x2apic)
    assert core.writes("Nmi") == [(0, 1)]
    assert (core.writes("Icr"), core.writes("ApicWrite")) == ([], [])
    assert core.run(kick(core, 1), cpu=1) == core.lib.HvFakeDone
    if virtual_nmis:
        assert (own.NmiWindow, own.Event.Type) == (1, core.lib.HvEventNone)
        core.run(core.exit("Window"), cpu=1)
    assert (own.Event.Type, own.Injections) == (core.lib.HvEventNmi, 1)
    assert not fake.Vcpu[1].NmiPending
    assert fake.Fake[2].Injections == 0


@pytest.mark.parametrize("x2apic", [False, True])
def test_an_nmi_that_a_processor_sends_to_itself(core: Core, x2apic: bool) -> None:
    fake = core.reset(2, x2apic)
    send(core, destination(0, x2apic) | NMI, x2apic)
    assert (fake.Fake[0].Event.Type, core.writes("Nmi")) == (core.lib.HvEventNmi, [])


@pytest.mark.parametrize("order", ["init", "wait"])
def test_an_nmi_does_not_reach_a_processor_that_waits_for_its_sipi(core: Core, order: str) -> None:
    fake = core.reset(2)
    if order == "wait":
        fake.Cpu[1].State = core.lib.HvMpWaitForSipi
    else:
        send(core, destination(1, False) | INIT_ASSERT, False)
    send(core, destination(1, False) | NMI, False)
    assert core.run(kick(core, 1), cpu=1) == core.lib.HvFakeWaiting
    assert not fake.Vcpu[1].NmiPending
    assert fake.Fake[1].Event.Type == core.lib.HvEventNone


@pytest.mark.parametrize("icr", [1 << 13 | SIPI, 1 << 16, 1 << 20, INIT_ASSERT | 1 << 31])
def test_reserved_bits_of_the_x2apic_command_are_refused(core: Core, icr: int) -> None:
    core.reset(2, True)
    send(core, icr, True)
    assert raised(core) == 13
    assert (core.writes("Icr"), core.writes("Nmi")) == ([], [])
    assert core.lib.gFake.Vcpu[0].Regs.Rip == 0


def test_the_x2apic_command_does_not_exist_in_xapic_mode(core: Core) -> None:
    core.reset(2, False)
    send(core, 1 << 32 | INIT_ASSERT, True)
    assert raised(core) == 13


def kick(core: Core, cpu: int) -> CData:
    """The NMI of a kick arrives."""
    core.lib.gFake.Fake[cpu].PendingNmis = 1
    return core.exit("Nmi")


def used(core: Core, cpu: int) -> None:
    """A processor with something in every part that INIT resets."""
    fake = core.lib.gFake
    state, vcpu = fake.Fake[cpu].State, fake.Vcpu[cpu]
    core.ffi.memmove(core.ffi.addressof(vcpu, "Regs"), b"\x5a" * 144, 144)
    state.Cr3, state.Cr2, state.Star = 0x1000, 0x2000, 0x3000
    state.Cr0 |= 0x60000000
    fake.Fake[cpu].Event.Type, fake.Fake[cpu].Event.Vector = core.lib.HvEventException, 14
    fake.Fake[cpu].IretIntercept = fake.Fake[cpu].DebugIntercept = 1
    vcpu.NmiBlocked = vcpu.NmiPending = vcpu.NmiStepping = vcpu.NmiIretSeen = 1
    fake.Dr = [1, 2, 3, 4]
    row = fake.Leaf[fake.LeafCount]
    row.Leaf, row.Registers = 1, [0x663, 0, 0, 0]
    fake.LeafCount += 1


@pytest.mark.parametrize("vector", [0x00, 0x9A, 0xFF])
def test_an_application_processor_is_reset_waits_and_starts(core: Core, vector: int) -> None:
    fake = core.reset(2)
    used(core, 1)
    send(core, destination(1, False) | INIT_ASSERT, False)
    assert core.run(kick(core, 1), cpu=1) == core.lib.HvFakeWaiting
    own, vcpu, state = fake.Fake[1], fake.Vcpu[1], fake.Fake[1].State
    assert (fake.Cpu[1].State, fake.Cpu[1].KickPending) == (core.lib.HvMpWaitForSipi, 0)
    assert (state.Cr0, state.Cr3, state.Star, own.ApicResets) == (0x60000010, 0, 0x3000, 1)
    assert (vcpu.Regs.Rip, vcpu.Regs.Rdx, vcpu.Regs.Rflags, vcpu.Regs.Rbx) == (0xFFF0, 0x663, 2, 0)
    assert own.Event.Type == core.lib.HvEventNone
    assert (own.IretIntercept, own.DebugIntercept, list(fake.Dr)) == (0, 0, [0] * 4)
    assert not (vcpu.NmiBlocked or vcpu.NmiPending or vcpu.NmiStepping or vcpu.NmiIretSeen)

    # It waits on. NMIs that come meanwhile are lost, as on a processor that waits for its SIPI.
    fake.Mail[0], fake.Mail[1], fake.Mails = 0x400, vector, 2
    own.Waits = 0
    core.lib.HvMailboxPost(core.ffi.addressof(fake.Cpu[1], "Mailbox"), 0x10000)
    fake.Cpu[1].KickPending = 1
    assert core.run(kick(core, 1), cpu=1) == core.lib.HvFakeDone
    code = state.Segment[core.lib.HvSegmentCs]
    assert (code.Selector, code.Base, code.Limit, vcpu.Regs.Rip) == (vector << 8, vector << 12, 0xFFFF, 0)
    assert (fake.Cpu[1].State, own.Waits, own.Flushes) == (core.lib.HvMpRunning, 2, 1)
    assert own.Event.Type == core.lib.HvEventNone
    assert not vcpu.NmiPending


def test_an_init_that_came_with_a_real_nmi_is_seen(core: Core) -> None:
    """It was redirected to #SX, which posts it at its own processor: nobody kicks."""
    fake = core.reset(2)
    used(core, 1)
    core.lib.HvMailboxPostInit(core.ffi.addressof(fake.Cpu[1], "Mailbox"))
    assert core.run(core.exit("Nmi"), cpu=1) == core.lib.HvFakeWaiting
    assert fake.Cpu[1].State == core.lib.HvMpWaitForSipi


def test_a_running_processor_ignores_a_sipi(core: Core) -> None:
    fake = core.reset(2)
    fake.Vcpu[1].Regs.Rip = 0x1234
    send(core, destination(1, False) | SIPI | 0x9A, False)
    assert core.run(kick(core, 1), cpu=1) == core.lib.HvFakeDone
    assert fake.Vcpu[1].Regs.Rip == 0x1234
    assert fake.Cpu[1].Exits[core.lib.HvExitKick] == 1


@pytest.mark.parametrize("x2apic", [False, True])
def test_the_boot_processor_that_resets_itself_runs_from_the_reset_vector(core: Core, x2apic: bool) -> None:
    fake = core.reset(2, x2apic)
    used(core, 0)
    fake.Vcpu[0].Regs.Rip = 0
    fake.Fake[0].Event.Type = core.lib.HvEventNone  # it executes an instruction: no delivery was cut off
    assert send(core, destination(0, x2apic) | INIT_ASSERT, x2apic) == core.lib.HvFakeDone
    assert (fake.Vcpu[0].Regs.Rip, fake.Cpu[0].State) == (0xFFF0, core.lib.HvMpRunning)
    assert fake.Fake[0].State.Segment[core.lib.HvSegmentCs].Base == 0xFFFF0000
    assert core.writes("Nmi") == []


@pytest.mark.parametrize("kind", ["Init", "Sipi"])
def test_signals_by_the_wire(core: Core, kind: str) -> None:
    fake = core.reset(2)
    if kind == "Sipi":
        fake.Cpu[1].State = core.lib.HvMpWaitForSipi
    end = core.run(core.exit(kind, Info1=0x9A), cpu=1)
    assert fake.Fake[1].Signals == 1
    if kind == "Init":
        assert (end, fake.Vcpu[1].Regs.Rip) == (core.lib.HvFakeWaiting, 0xFFF0)
    else:
        assert (end, fake.Fake[1].State.Segment[core.lib.HvSegmentCs].Base) == (core.lib.HvFakeDone, 0x9A000)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Numbers of the hardware in words. The values are those of the manuals' tables."""

from __future__ import annotations

from io import BytesIO

import pytest

from hvtools.decode import reader, words
from hvtools.generated import svm_exit, vmx_exit


@pytest.mark.parametrize(
    ("vendor", "code", "info1", "info2", "name", "details"),
    [
        ("vmx", 48, 0x182, 0, "EPT_VIOLATION", "WRITE, LINEAR_VALID, FINAL"),  # SDM table 28-7
        ("vmx", 28, 0x300, 0, "CR_ACCESS", "REGISTER=0x3"),  # MOV to CR0 from RBX, table 28-3
        ("vmx", 30, 0x3F8_0008, 0, "IO", "IN, PORT=0x3f8"),  # table 28-5
        ("vmx", 0x8000_0021, 0, 0, "INVALID_GUEST_STATE, the entry failed", ""),  # 27.8
        ("vmx", 10, 0, 0, "CPUID", ""),
        ("vmx", 9999, 0, 0, "no such reason", ""),
        (
            "svm",
            0x400,
            0x2_0000_0006,
            0x5000,
            "NPF",
            "guest-physical 0x5000: write, not present, in the guest's own page walk",
        ),  # APM2 15.25.6
        (
            "svm",
            0x400,
            0x1_0000_0015,
            0,
            "NPF",
            "guest-physical 0x0: fetch, forbidden by the entry, at the final address",
        ),
        ("svm", 0x7B, 0x03F8_0011, 0, "IOIO", "IN, SIZE8, PORT=0x3f8"),  # APM2 15.10.2
        ("svm", 0xFFFF_FFFF, 0, 0, "INVALID", ""),  # QEMU
        ("svm", (1 << 64) - 1, 0, 0, "INVALID", ""),  # APM2 appendix C
        ("svm", 0xFFFF_FFFE, 0, 0, "BUSY", ""),
        ("svm", 0x1_0000_0072, 0, 0, "no such code", ""),
        ("svm", 0x9999, 0, 0, "no such code", ""),
    ],
)
def test_an_exit_in_words(vendor: str, code: int, info1: int, info2: int, name: str, details: str) -> None:
    assert words.exit_name(vendor, code) == name
    assert words.exit_details(vendor, code, info1, info2) == details


def test_exits_have_the_names_of_both_manuals() -> None:
    for vendor, table in (("svm", svm_exit.EXITS), ("vmx", vmx_exit.EXITS)):
        assert {code: words.exit_name(vendor, code) for code in table} == table


def test_bits_without_a_name_are_given_as_numbers() -> None:
    assert words.word(0x8001_0033 | 1 << 7, "HV_CR0") == "PE, MP, ET, NE, WP, PG, bit 7"
    assert words.fields(0b1011_0000, (("LOW", 0, 3), ("WIDE", 4, 5))) == "WIDE=0x3, bit 7"
    assert words.fields(0x300, ()) == "bits 8 9"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "read where nothing is mapped []"),
        (0x3, "write of a present page [present, write]"),
        (0x19, "fetch of a present page [present, reserved bit, fetch]"),
    ],
)
def test_a_page_fault_in_words(code: int, said: str) -> None:
    assert words.page_fault(code) == said


def test_addresses_that_are_canonical() -> None:
    assert words.canonical(0x7FFF_FFFF_FFFF) and words.canonical(0xFFFF_8000_0000_0000)
    assert not words.canonical(0x8000_0000_0000) and not words.canonical(0xFFFF_0000_0000_0000)
    assert words.canonical(0x8000_0000_0000, 57) and not words.canonical(1 << 56, 57)


@pytest.mark.parametrize(
    ("backend", "line", "said"),
    [
        (
            "vmx",
            "error cpu0 exit-unknown code=0x30 info1=0x182 info2=0x0 rip=0x10",
            "exit 0x30 EPT_VIOLATION (WRITE, LINEAR_VALID, FINAL) at rip 0x10: no row expects it, the root got #GP",
        ),
        (
            "svm",
            "error cpu0 exit-unknown code=0x78 info1=0x0 info2=0x0 rip=0x10",
            "exit 0x78 HLT at rip 0x10: no row expects it, the root got #GP",
        ),
        (
            "vmx",
            'error cpu0 entry-failed code=0x7 reason="x y"',
            "the processor refused the entry: VM-instruction error 7: entry controls",
        ),
        ("vmx", "error cpu0 entry-failed code=0x0 reason=x", "the processor refused the entry: no current VMCS"),
        (
            "svm",
            "error cpu0 entry-failed code=0xffffffff reason=x",
            "the processor refused the entry: INVALID (0xffffffff)",
        ),
        (
            "vmx",
            "warn cpu0 npf-unexpected gpa=0x1000 error=0x181 rip=0x2",
            "nested page fault at guest-physical 0x1000 that nothing claims, at rip 0x2: READ, LINEAR_VALID, FINAL",
        ),
        (
            "svm",
            "warn cpu0 npf-unexpected gpa=0x1000 error=0x100000004 rip=0x2",
            "nested page fault at guest-physical 0x1000 that nothing claims, at rip 0x2:"
            " read, not present, at the final address",
        ),
        (
            "svm",
            "debug cpu0 msr-gp msr=0x1234 write=1 value=0x5 rip=0x2",
            "WRMSR of 0x5 to 0x1234, which no row of the table names raised #GP in the root at rip 0x2:"
            " the processor or the policy refuses it",
        ),
    ],
)
def test_an_event_in_words(backend: str, line: str, said: str) -> None:
    vendor = {"vmx": "Intel", "svm": "AMD"}[backend]
    log = f"hv: info cpu0 backend name={backend} vendor={vendor}\nhv: {line}\n"
    (report,) = reader.read(BytesIO(log.encode()))
    assert report.explanations == [f"cpu0: {said}"]


def test_the_ring_in_a_dump_of_memory_is_read() -> None:
    """Its header and whatever else is in memory around it do not matter, nor does a line that the end cut off."""
    ring = b"\x00\xffHvLogRng\x00\x00\x01\x00nfo cpu0 boot-done\nhv: error cpu2 page-pool-empty used=9\n\x00\x00\xfe"
    (report,) = reader.read(BytesIO(ring))
    assert report.explanations == ["cpu2: no page is left for nested tables (9 used)"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "80000021",
            "the VM entry failed: INVALID_GUEST_STATE (0x80000021): the state breaks a rule of SDM 27.3; on an",
        ),
        ("80000022", "the VM entry failed: MSR_LOADING (0x80000022): the state breaks a rule of SDM 27.3"),
        ("7", "the VM entry failed: VM-instruction error 7: entry controls"),
        ("ffffffffffffffff", "VMRUN failed: INVALID: the VMCB breaks a rule of APM2 15.5.1"),
        ("ffffffff", "VMRUN failed: INVALID: the VMCB breaks a rule of APM2 15.5.1"),
        ("1234", "the VM entry failed: 0x1234"),
    ],
)
def test_what_kvm_says_of_a_failed_entry(code: str, said: str) -> None:
    (report,) = reader.read(BytesIO(f"KVM: entry failed, hardware error 0x{code}\n".encode()))
    assert report.explanations[0].startswith(said)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("Suberror: 2", "an exception came while another event was being delivered, and KVM cannot merge the two"),
        ("Suberror: 4\nextra data[0]: 0x0000000000000400", "exit 0x400: no such reason on Intel, NPF on AMD"),
        ("Suberror: 77", "KVM internal error 77: not known"),
        (
            "Suberror: 3\nextra data[0]: 0x80000202\nextra data[1]: 0x30",
            "the event was NMI, the exit EPT_VIOLATION",
        ),
    ],
)
def test_other_internal_errors_of_kvm(lines: str, said: str) -> None:
    (report,) = reader.read(BytesIO(f"KVM internal error. {lines}\n".encode()))
    assert any(said in line for line in report.explanations), report.explanations


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "00000000010p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution",
            "panic at tick 10 of CPU0: exception(): 3rd (13) exception with no resolution: triple fault outside of any"
            " guest: a fault, while handling a fault, while handling the first",
        ),
        (
            "00000000010e[CPU1  ] exception(): 3rd (14) exception with no resolution,"
            " shutdown status is 00h, resetting",
            "CPU1: triple fault, the machine resets: exception(): 3rd (14) exception with no resolution,"
            " shutdown status is 00h, resetting",
        ),
        (
            "01586380480e[CPU0  ] VMRUN: invalid memory type in guest PAT_MSR !",
            "CPU0: VMRUN was refused (VMEXIT_INVALID), the VMCB breaks a rule of APM2 15.5.1:"
            " invalid memory type in guest PAT_MSR !",
        ),
        (
            "00000000010p[ACPI  ] >>PANIC<< ACPI control: soft power off",
            "the machine powered itself off at tick 10: a normal end",
        ),
        ("00000000010i[CPU0  ] something", "the log ends without a power-off: the machine was stopped, or still runs"),
    ],
)
def test_a_line_of_bochs_in_words(line: str, said: str) -> None:
    (report,) = reader.read(BytesIO(f"{line}\n".encode()))
    assert report.explanations[0] == said


def test_a_walk_that_failed_for_the_width_of_addresses() -> None:
    trace = (
        " a-1 [000] 1.0: kvm_mmu_pagetable_walk: addr 1234 pferr 2 W\n"
        " a-1 [000] 1.1: kvm_mmu_paging_element: pte 1003 level 4\n"
        " a-1 [000] 1.2: kvm_mmu_paging_element: pte 4000000002003 level 3\n"
        " a-1 [000] 1.3: kvm_mmu_walker_error: pferr b P|W|RSVD\n"
    )
    (report,) = reader.read(BytesIO(trace.encode()))
    assert report.explanations == [
        "the walk of the guest's tables for 0x1234 failed [present, write, reserved bit] at level 3,"
        " entry 0x4000000002003: level 3 entry has bit 50 set, guest has fewer than 51 physical address bits"
    ]

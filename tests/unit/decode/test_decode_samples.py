# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Samples of every format with all that is said about them. Each file says where it is from."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from hvtools import build
from hvtools.decode import hypervisor, reader
from hvtools.decode.hypervisor import EXPLAINED
from hvtools.decode.report import Report
from hvtools.elf import Image
from hvtools.generated.log_events import EVENTS
from tests.unit.decode.test_decode_dump import SAMPLES

BOCHS, HVDXE, TRACE = "log of Bochs", "log of HvDxe", "trace of KVM"
KVM, QEMU = "KVM failure report of QEMU", "register dump of QEMU"
GAVE_UP = "KVM gave up the vCPU: KVM_EXIT_SHUTDOWN"
UNRESTRICTED = (
    "on an Intel host without unrestricted guest, real mode and half-switched segments fail so: every segment must fit"
    " virtual-8086 mode"
)
IGNORED = (
    "MSRs were accessed that the model does not have: #GP for the guest, or with ignore_bad_msrs=1 reads of 0 and lost"
    " writes"
)

EXPECTED: dict[str, tuple[str, ...]] = {
    "bochs-entry-failed.log": (
        BOCHS,
        "CPU0: the VM entry failed, the guest's state breaks a rule of SDM 27.3: VMCS guest CS.TYPE",
        "CPU0: the VM entry was refused with exit reason 33: the line before names the rule",
        f"3 {IGNORED}",
        "the machine powered itself off at tick 2995742944: a normal end",
    ),
    "bochs-host-state.log": (
        BOCHS,
        "CPU0: VMLAUNCH or VMRESUME failed, a control or the host's state breaks a rule of SDM 27.2:"
        " VMCS host state invalid CR4 0x0000000000040060",
        f"2 {IGNORED}",
        "the machine powered itself off at tick 2997122952: a normal end",
    ),
    "bochs-panic.log": (
        BOCHS,
        "panic at tick 1397081551 of CPU0: change_cpu_mode: EFER.LMA is set when CR0.PE=0 !:"
        " VMRUN got EFER.LMA without CR0.PE: a processor gives VMEXIT_INVALID",
        "CPU0, active: real mode, at 0x1e14941e: inc cx (41)",
        "  CR0.PG is set without PE: no processor enters that",
    ),
    "hv-entry-refused-by-bochs.log": (
        HVDXE,
        "cpu0: VMCS: breaks guest-cs-type (SDM 27.3.1.2): GUEST_CS_ACCESS_RIGHTS = 0xa09a,"
        " expected accessed code, or type 3 for an unrestricted guest; as the log says",
        "cpu0: processor 0 (APIC id 0x0) could not be virtualised: the first entry was refused,"
        " INVALID_GUEST_STATE, the entry failed (0x80000021)",
        "cpu0: the launch was undone because of processor 0: the first entry was refused",
    ),
    "hv-host-exception.log": (
        HVDXE,
        "cpu0: triple fault of the root at rip 0xffffffff896606f9: the platform resets, as without a hypervisor",
        "cpu0: the hypervisor itself took #PF at 0x1dc16efe, HvDxe+0x4efe (the build in /elsewhere is not the one that"
        " ran: --symbols FILE): write where nothing is mapped [write], address 0x500000000018",
        "cpu0: this processor stopped: exception",
    ),
    "hv-msr.log": (
        HVDXE,
        *(
            f"cpu0: RDMSR of {name} raised #GP in the root at rip 0xffffffffaee73783:"
            " the processor or the policy refuses it"
            for name in ("VMX_BASIC (0x480)", "VM_CR (0xc0010114)", "VM_HSAVE_PA (0xc0010117)")
        ),
    ),
    "hv-triple-fault.log": (
        HVDXE,
        "cpu0: triple fault of the root at rip 0xffffffff870606f9: the platform resets, as without a hypervisor",
    ),
    "hv-vmcb-refused.log": (
        HVDXE,
        "cpu1: VMCB: breaks cr0-nw (APM2 15.5.1): Save.Cr0 = 0xa0010033, expected NW = 0 while CD = 0; as the log says",
        "cpu0: processor 1 (APIC id 0x1) could not be virtualised: the state for the first entry breaks a rule,"
        " detail 0xffffffffffffffff",
        "cpu0: the launch was undone because of processor 1: the state for the first entry breaks a rule",
    ),
    "hv-vmcs-refused.log": (
        HVDXE,
        "cpu0: VMCS: breaks guest-rip (SDM 27.3.1.4): GUEST_RIP = 0x400000001e13d85e, expected bits above the linear"
        " address width alike in 64-bit mode, bits 63:32 = 0 elsewhere; as the log says",
        "cpu0: processor 0 (APIC id 0x0) could not be virtualised: the state for the first entry breaks a rule,"
        " detail 0x0",
        "cpu0: the launch was undone because of processor 0: the state for the first entry breaks a rule",
    ),
    "kvm-emulation-failed.trace": (
        TRACE,
        "KVM could not emulate 66 0f fc (cut off) at 0x1005 (prot32)",
        "KVM gave up the vCPU: KVM_EXIT_INTERNAL_ERROR",
    ),
    "kvm-entry-failed.txt": (
        KVM,
        "the VM entry failed: INVALID_GUEST_STATE (0x80000021): the state breaks a rule of SDM 27.3; " + UNRESTRICTED,
        "real mode, CPL 0, at 0xe05b: jne near 0xD0C1 (0f 85 62 f0)",
    ),
    "kvm-kernel.log": (
        TRACE,
        "RDMSR of MSR 0x1b0 is not known to KVM",
        "WRMSR of MSR 0x1d9 (DEBUGCTL) is not known to KVM",
        "KVM's own tables for 0x7fee3000 have reserved bits set: a fault in KVM or memory",
        "level 2 entry 0x4010110b9cb77 has reserved bits set: 50",
    ),
    "kvm-reserved-bit.trace": (
        TRACE,
        "the walk of the guest's tables for 0x40000000 failed [present, reserved bit] at level 3, entry 0x83:"
        " level 3 entry has bit 7 set, guest has no pdpe1gb",
        "triple fault of the guest at rip 0x1007, after KVM injected #PF (read of a present page [present,"
        " reserved bit])",
        GAVE_UP,
    ),
    "kvm-suberror-1.txt": (
        KVM,
        "KVM internal error 1: emulation failed: KVM had to carry out an instruction itself and cannot",
        "the instruction that KVM read: paddb xmm0,[0xD0000000] (66 0f fc 05 00 00 00 d0)",
        "the exit before it: NPF (guest-physical 0xd0000000: read, not present, at the final address)",
        "likely cause: an SSE or AVX instruction touches emulated MMIO; KVM emulates few of them",
        "32-bit protected mode without paging, CPL 0, at 0x1005: paddb xmm0,[0xD0000000] (66 0f fc 05 00 00 00 d0)",
    ),
    "kvm-suberror-3.txt": (
        KVM,
        "KVM internal error 3: an exit cut off the delivery of an event, and KVM cannot repeat it",
        "the event was exception #PF, the exit EPT_MISCONFIG (on Intel)",
        "likely cause: the guest's stack or IDT lies in emulated MMIO, or nowhere",
        "64-bit mode, CPL 0, at 0xffffffff81000110: mov rax,[8] (48 8b 04 25 08 00 00 00)",
    ),
    "kvm-svm-mmio-msr.trace": (
        TRACE,
        "RDMSR of MSR 0x1234 raised #GP in the guest",
        "triple fault of the guest at rip 0x1019, after KVM injected #GP",
        GAVE_UP,
    ),
    "kvm-trace-cmd.txt": (
        TRACE,
        "EPT misconfiguration at rip 0xffffffff81e4a2f4: not followed by MMIO: an entry of the nested tables has"
        " reserved bits or a combination that the processor does not take (SDM 29.3.3.1)",
        "KVM gave up the vCPU: KVM_EXIT_INTERNAL_ERROR",
        "a nested VM entry failed: vcpu 1: VMENTRY invalid guest state",
    ),
    "kvm-vmx-mmio-msr.trace": (
        TRACE,
        "EPT misconfiguration at rip 0x100a, guest-physical 0xd0000004: emulated MMIO, which KVM marks so on purpose",
        "EPT misconfiguration at rip 0x100f, guest-physical 0xd0000008: emulated MMIO, which KVM marks so on purpose",
        "RDMSR of MSR 0x1234 raised #GP in the guest",
        "triple fault of the guest at rip 0x1019, after KVM injected #GP",
        GAVE_UP,
    ),
    "qemu-info-registers.txt": (
        QEMU,
        "CPU 0: 64-bit mode, CPL 0, at 0x7059731",
        "CPU 1: 64-bit mode, CPL 0, at 0x7059731",
        "  halted with interrupts off: it stops for good, only NMI, SMI or INIT wake it",
    ),
    "qemu-triple-fault.log": (
        QEMU,
        "triple fault: the machine resets; before it #GP, then #GP during the delivery of #GP, then #GP during the"
        " delivery of #DF",
        "on entry to SMM: 32-bit protected mode without paging, CPL 0, at 0xf7b78",
        "after RSM: real mode, CPL 0, at 0x7b79",
    ),
}
"""By file: its format, and the explanations."""


@pytest.fixture(autouse=True)
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The build of the moment is not the one that wrote the samples."""
    monkeypatch.setattr(build, "image_dir", lambda *_: Path("/elsewhere"))


def decoded(name: str) -> Report:
    """The one report of a sample."""
    (found,) = reader.read_path(SAMPLES / name).values()
    (report,) = found
    return report


def test_every_sample_is_here_and_says_where_it_is_from() -> None:
    files = sorted(SAMPLES.iterdir())
    assert [file.name for file in files] == sorted(EXPECTED)
    for file in files:
        licence, origin, *_ = file.read_text().splitlines()
        assert licence == "# SPDX-License-Identifier: BSD-2-Clause-Patent" and origin.startswith("# ")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sample_is_explained(name: str) -> None:
    report = decoded(name)
    assert (report.format, *report.explanations) == EXPECTED[name]


def table(report: Report, title: str) -> list[tuple[str, ...]]:
    """The rows of a table."""
    (found,) = [each for each in report.tables if each.title == title]
    return list(found.rows)


def test_a_trace_is_counted_by_reason_and_place_and_its_end_is_kept() -> None:
    report = decoded("kvm-vmx-mmio-msr.trace")
    assert table(report, "exits by reason") == [
        ("EPT_VIOLATION", "3"),
        ("EPT_MISCONFIG", "2"),
        ("MSR_READ", "1"),
        ("TRIPLE_FAULT", "1"),
    ]
    assert ("EPT_MISCONFIG at 0x100f", "1") in table(report, "exits by reason and rip")
    assert ("EPT_VIOLATION WRITE, LINEAR_VALID, FINAL, USER, WRITABLE_PAGE", "1") in table(report, "nested page faults")
    last = table(report, "before the first failure")[-1]
    assert last[1] == "kvm_exit" and "TRIPLE_FAULT" in last[2]


def test_the_errors_of_nested_page_faults_are_in_words() -> None:
    faults = table(decoded("kvm-svm-mmio-msr.trace"), "nested page faults")
    assert ("npf write, not present, a reserved bit is set in an entry, at the final address", "1") in faults
    assert ("npf fetch, not present, at the final address", "1") in faults


def test_a_register_dump_has_its_words_and_segments() -> None:
    report = decoded("qemu-info-registers.txt")
    assert ("CR0", "0x80010033", "PE, MP, ET, NE, WP, PG") in table(report, "CPU 0: control")
    assert ("CS", "0x0038", "0x0", "0xffffffff", "DPL=0 CS64 [-R-]") in table(report, "CPU 1: segments")
    first = report.data["processors"][0]
    assert first["registers"]["rsp"] == "0x7e90518" and first["mode"] == "64-bit mode"


def test_symbols_of_the_build_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in the log is the function and the line of it in the present build."""
    monkeypatch.undo()
    folder = build.ensure_built("DEBUG").folder
    symbol = Image((folder / "HvDxe.efi").read_bytes(), folder / "HvDxe.debug").named("HvHostException")
    base = 0x7000_0000
    size = (folder / "HvDxe.efi").stat().st_size + 0xFFF & ~0xFFF
    log = (
        "hv: info cpu0 start version=0.1 build=DEBUG\n"
        f"hv: info cpu0 image base={base:#x} bytes={size:#x} entry={base + 16:#x} text={base:#x}\n"
        f"hv: error cpu1 host-exception vector=13 error=0x0 rip={base + symbol.address:#x} rsp=0x1000 cr2=0x0\n"
        f"hv: error cpu1 host-exception vector=14 error=0x0 rip={base + size:#x} rsp=0x1000 cr2=0x8\n"
    )
    (report,) = reader.read(BytesIO(log.encode()))
    first, second = report.explanations
    assert first.startswith(
        f"cpu1: the hypervisor itself took #GP at {base + symbol.address:#x}, HvHostException+0x0 ("
    )
    assert "(HvPkg/Library/HvHostLib/Exception.c:" in first
    assert second.endswith(f"at {base + size:#x}: read where nothing is mapped [], address 0x8 (a null pointer)")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("there", [("DEBUG", "RELEASE"), ("RELEASE",)])
def test_symbols_of_a_build_that_the_log_does_not_name_may_be_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, there: tuple[str, ...]
) -> None:
    """Of the builds, one size in pages is common; RELEASE ran."""

    class Named:
        def __init__(self, debug: Path) -> None:
            self._build = debug.parent.name

        def name(self, address: int) -> str:
            return f"{self._build}+{address:#x}"

    monkeypatch.setattr(build, "image_dir", lambda target: tmp_path / target)
    monkeypatch.setattr(hypervisor, "Symbols", Named)
    for target in there:
        (tmp_path / target).mkdir()
        (tmp_path / target / "HvDxe.efi").write_bytes(bytes(0x1F00 + len(target)))
    start = "hv: info cpu0 start version=0.1 build=RELEASE\n" if named else ""
    image = "hv: info cpu0 image base=0x4000 bytes=0x2000 entry=0x4010 text=0x4000\n"
    error = "hv: error cpu0 host-exception vector=13 error=0x0 rip=0x5000 rsp=0x1000 cr2=0x0\n"
    (report,) = reader.read(BytesIO((start + image + error).encode()))
    first, *more = report.explanations
    assert f"{'RELEASE' if named else there[0]}+0x1000" in first
    assert [line.startswith("the log does not name the build") for line in more] == [True] * (not named)
    # What a run before this one left is not of the build that this one names.
    before = f"hv: warn cpu0 previous-run base=0x4000 bytes=0x2000 cpu=0\n{error}"
    end = "hv: warn cpu0 previous-run-end lines=0\n"
    now = error.replace("cpu0", "cpu1")
    (report,) = reader.read(BytesIO((start + before + end + image + now).encode()))
    of_before, of_now, note = report.explanations[1:]
    assert f"{there[0]}+0x1000" in of_before and f"{'RELEASE' if named else there[0]}+0x1000" in of_now
    assert note.startswith("the log does not name the build")


def test_no_error_is_passed_over() -> None:
    """Also one that was added to the table after the words were written."""
    assert EXPLAINED.keys() <= EVENTS.keys()
    for name, event in EVENTS.items():
        fields = "".join(
            f" {key}={'a' if kind == 's' else '0x1' if kind == 'x' else '1'}" for key, kind in event.fields
        )
        (report,) = reader.read(BytesIO(f"hv: {event.level} cpu3 {name}{fields}\n".encode()))
        if event.level == "error" or name in EXPLAINED:
            assert report.explanations[0].startswith("cpu3: "), name


def test_an_error_without_words_is_given_as_the_table_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EXPLAINED, "map-failed")
    image = b"hv: info cpu0 image base=0x4000 bytes=0x2000 entry=0x4000 text=0x4000\n"
    (report,) = reader.read(BytesIO(image + b'hv: error cpu0 map-failed gpa=0x5000 reason="no page"\n'))
    assert report.explanations == [
        "cpu0: an address could not be mapped: map-failed gpa=0x5000 reason=no page; gpa is HvDxe+0x1000 (the build in"
        " /elsewhere is not the one that ran: --symbols FILE)"
    ]

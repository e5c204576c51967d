# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The doctor, with a /dev/kvm of our own that answers byte for byte as linux/kvm.h lays it out."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hvtools import cache, cli, toolchain
from hvtools.doctor import device, kvm, tools
from hvtools.doctor.check import Check, Mark
from hvtools.doctor.device import Host, KvmDevice

Leaves = Mapping[tuple[int, int], tuple[int, int, int, int]]

SVM = 1 << 2
VMX = 1 << 5
PDPE1GB = 1 << 26
XSAVES = 1 << 3
NPT, NRIP = 1 << 0, 1 << 3

PLAIN: Leaves = {
    (0, 0): (0x1C, 0x68747541, 0x444D4163, 0x69746E65),
    (1, 0): (0xB00F21, 0x20800, 0x81202000, 0x78BFBFF),
    (0x80000001, 0): (0xB00F21, 0x40000000, 0x400393, 0x23D3FBFF),
    (0x80000008, 0): (0x3030, 0x50020005, 0x7001, 0),
}
"""What a KVM without SVM and VMX for its guests was seen to answer."""
AMD: Leaves = {
    **PLAIN,
    (0xD, 1): (XSAVES, 0, 0, 0),
    (0x80000001, 0): (0, 0, SVM, PDPE1GB),
    (0x8000000A, 0): (1, 16, 0, NPT | NRIP),
}
INTEL: Leaves = {
    **PLAIN,
    (1, 0): (0, 0, VMX, 0),
    (0xD, 1): (XSAVES, 0, 0, 0),
    (0x80000001, 0): (0, 0, 0, PDPE1GB),
}
# SDM A.1, A.3.3, A.10: true controls; EPT, RDTSCP, VPID, unrestricted guest, INVPCID, XSAVES; what EPT and VPID can do.
BASIC, CTLS2, EPT_CAP = 0x480, 0x48B, 0x48C
INTEL_MSRS = {BASIC: 1 << 55, CTLS2: 0x0010_10AA_0000_0000, EPT_CAP: 0x0F01_0673_4141}
NESTED = {"nested": "1", "npt": "Y"}
NESTED_INTEL = {"nested": "Y", "ept": "Y", "unrestricted_guest": "Y"}


class FakeHost(Host):
    """A Linux whose KVM answers as it is told."""

    def __init__(
        self,
        leaves: Leaves,
        msrs: Mapping[int, int] | None = None,
        module: str | None = "kvm_amd",
        parameters: Mapping[str, str] | None = None,
        opens: int = 0,
        answers: int = 0,
        bits: int = 48,
        padding: int = 0,
        version: int = 12,
    ) -> None:
        self.leaves = [*leaves.items(), *(((0x40001000 + number, 0), (0, 0, 0, 0)) for number in range(padding))]
        self.msrs = msrs
        self.module = module
        self.given = parameters or {}
        self.opens = opens
        self.answers = answers
        self.bits = bits
        self.version = version

    def open_kvm(self) -> KvmDevice:
        if self.opens:
            raise OSError(self.opens, os.strerror(self.opens), "/dev/kvm")
        return KvmDevice(os.open(os.devnull, os.O_RDONLY), self.ioctl)

    def modules(self) -> list[str]:
        return [self.module] if self.module else []

    def parameter(self, module: str, name: str) -> str | None:
        assert module == self.module
        return self.given.get(name)

    def cpuinfo(self) -> str:
        return f"flags\t\t: fpu hypervisor\naddress sizes\t: {self.bits} bits physical, 48 bits virtual\n"

    def ioctl(self, _descriptor: int, request: int, argument: int | bytearray) -> int:
        if self.answers:
            raise OSError(self.answers, os.strerror(self.answers))
        if request == 0xAE00:
            return self.version
        assert isinstance(argument, bytearray)
        (room,) = struct.unpack_from("<I", argument)
        if request == 0xC008AE05:
            self._fill(argument, room, 8, [struct.pack("<10I", *key, 0, *four, 0, 0, 0) for key, four in self.leaves])
            return 0
        if request == 0xC004AE0A:
            if self.msrs is None:
                raise OSError(errno.EINVAL, "Invalid argument")
            self._fill(argument, room, 4, [struct.pack("<I", number) for number in self.msrs])
            return 0
        assert request == 0xC008AE88 and room == 1 and self.msrs is not None
        number = struct.unpack_from("<I", argument, 8)[0]
        struct.pack_into("<Q", argument, 16, self.msrs[number])
        return 1

    @staticmethod
    def _fill(buffer: bytearray, room: int, head: int, entries: list[bytes]) -> None:
        struct.pack_into("<I", buffer, 0, len(entries))
        if room < len(entries):
            raise OSError(errno.E2BIG, "Argument list too long")
        buffer[head : head + len(b"".join(entries))] = b"".join(entries)


def named(found: kvm.Kvm, name: str) -> Check:
    (check,) = [check for check in found.checks if check.name == name]
    return check


def test_the_numbers_are_those_of_the_kernel_header(tmp_path: Path) -> None:
    source = tmp_path / "numbers.c"
    ioctls = ["KVM_GET_API_VERSION", "KVM_GET_MSR_FEATURE_INDEX_LIST", "KVM_GET_SUPPORTED_CPUID", "KVM_GET_MSRS"]
    sizes = {
        "kvm_cpuid2": device.CPUID_HEAD.size,
        "kvm_cpuid_entry2": device.CPUID_ENTRY.size,
        "kvm_msr_list": device.MSR_LIST_HEAD.size,
        "kvm_msrs": device.MSR_HEAD.size,
        "kvm_msr_entry": device.MSR_ENTRY.size,
    }
    lines = [f'_Static_assert ((unsigned){name} == {getattr(device, name)}u, "{name}");' for name in ioctls]
    lines += [f'_Static_assert (sizeof (struct {name}) == {size}, "{name}");' for name, size in sizes.items()]
    lines += [
        f'_Static_assert (__builtin_offsetof (struct kvm_cpuid_entry2, {name}) == {4 * place}, "{name}");'
        for place, name in enumerate(["function", "index", "flags", "eax", "ebx", "ecx", "edx"])
    ]
    source.write_text("#include <linux/kvm.h>\n#include <sys/ioctl.h>\n" + "\n".join(lines) + "\n")
    subprocess.run(["gcc", "-fsyntax-only", str(source)], check=True)


@pytest.mark.parametrize(
    ("number", "module", "said", "fix"),
    [
        (errno.ENOENT, None, "not there", "modprobe kvm_amd or kvm_intel"),
        (errno.ENOENT, "kvm_amd", "though kvm_amd is", "--device /dev/kvm"),
        (errno.ENODEV, None, "not there", "modprobe"),
        (errno.EACCES, "kvm_amd", "not permitted", "usermod -aG kvm"),
        (errno.EPERM, "kvm_amd", "not permitted", "usermod -aG kvm"),
        (errno.EBUSY, "kvm_amd", "does not open", "fuser"),
    ],
)
def test_a_device_that_does_not_open_has_a_reason_and_a_fix(
    number: int, module: str | None, said: str, fix: str
) -> None:
    found = kvm.examine(FakeHost(PLAIN, module=module, opens=number))
    assert not found.ready and found.vendor is None
    assert said in found.reason and fix in found.reason


def test_what_opens_but_is_no_kvm_is_told() -> None:
    found = kvm.examine(FakeHost(PLAIN, answers=errno.ENOTTY))
    assert not found.ready and "refuses to answer" in found.reason


def test_a_device_alone_makes_nothing_ready() -> None:
    found = kvm.examine(FakeHost(PLAIN, {0x8B: 0}, module="kvm_pvm"))
    assert not found.ready
    assert found.reason.startswith("virtualization for guests: neither SVM nor VMX")
    assert "bochs-vmx" in found.reason
    assert named(found, "module").value.startswith("kvm_pvm")
    assert all(named(found, f"trap: {name}").value.startswith("does not apply") for name, _ in kvm.TRAPS)


def test_svm_that_is_ready() -> None:
    found = kvm.examine(FakeHost(AMD, {}, parameters=NESTED))
    assert found.ready and found.vendor == "svm" and found.reason == ""
    assert [check.name for check in found.checks if check.mark is not Mark.OK] == ["trap: #SX redirection ignored"]


def test_vmx_that_is_ready() -> None:
    found = kvm.examine(FakeHost(INTEL, INTEL_MSRS, module="kvm_intel", parameters=NESTED_INTEL))
    assert found.ready and found.vendor == "vmx"
    assert all(check.mark is Mark.OK for check in found.checks)


def test_more_leaves_than_first_expected_are_asked_for_again() -> None:
    assert kvm.examine(FakeHost(AMD, {}, parameters=NESTED, padding=700)).ready


def test_a_count_without_end_is_an_error_and_no_endless_loop() -> None:
    assert "refuses to answer" in kvm.examine(FakeHost(AMD, {}, padding=1 << 13)).reason


def test_nested_off_is_named_with_the_module_option() -> None:
    found = kvm.examine(FakeHost(PLAIN, {}, parameters={"nested": "0", "npt": "Y"}))
    assert not found.ready
    assert found.reason.startswith("nested: off") and "modprobe kvm_amd nested=1" in found.reason


@pytest.mark.parametrize(
    ("host", "name", "fix"),
    [
        (FakeHost({**AMD, (0x8000000A, 0): (1, 16, 0, NRIP)}, {}, parameters=NESTED), "NPT", "npt=1"),
        (FakeHost({**AMD, (0x8000000A, 0): (1, 1, 0, NPT)}, {}, parameters=NESTED), "ASIDs", "kernel"),
        (FakeHost(AMD, {}, parameters={"nested": "1", "npt": "N"}), "npt", "npt=1"),
        (FakeHost(AMD, {}, parameters=NESTED, version=11), "API", "Linux"),
    ],
)
def test_what_svm_lacks(host: FakeHost, name: str, fix: str) -> None:
    found = kvm.examine(host)
    assert not found.ready and named(found, name).is_bad and fix in named(found, name).fix


@pytest.mark.parametrize(
    ("msr", "bit", "name", "fix"),
    [
        (CTLS2, 32 + 1, "EPT", "ept=1"),
        (CTLS2, 32 + 7, "unrestricted guest", "unrestricted_guest=1"),
        (BASIC, 55, "true controls", "kernel"),
        (EPT_CAP, 6, "EPT of 4 levels", "ept=1"),
        (EPT_CAP, 14, "EPT write-back", "ept=1"),
        (EPT_CAP, 26, "INVEPT of all contexts", "ept=1"),
        (EPT_CAP, 42, "INVVPID of all contexts", "vpid=1"),
    ],
)
def test_what_vmx_lacks(msr: int, bit: int, name: str, fix: str) -> None:
    assert INTEL_MSRS[msr] >> bit & 1, "the test takes nothing away"
    found = kvm.examine(FakeHost(INTEL, {**INTEL_MSRS, msr: INTEL_MSRS[msr] & ~(1 << bit)}, "kvm_intel", NESTED_INTEL))
    assert not found.ready
    assert [check.name for check in found.checks if check.is_bad] == [name] and fix in named(found, name).fix


def test_vmx_that_an_old_kvm_does_not_explain_is_left_to_the_hypervisor() -> None:
    found = kvm.examine(FakeHost(INTEL, None, "kvm_intel", NESTED_INTEL))
    assert found.ready and named(found, "VMX capabilities").mark is Mark.NOTE


def test_no_nrip_and_no_1g_pages_are_notes() -> None:
    leaves = {**AMD, (0x80000001, 0): (0, 0, SVM, 0), (0x8000000A, 0): (1, 16, 0, NPT)}
    found = kvm.examine(FakeHost(leaves, {}, parameters=NESTED))
    assert found.ready
    assert named(found, "nRIP").mark is Mark.NOTE and named(found, "1 GiB pages (pdpe1gb)").mark is Mark.NOTE
    assert "+pdpe1gb" in named(found, "1 GiB pages (pdpe1gb)").fix


def test_xsaves_without_its_control() -> None:
    msrs = {**INTEL_MSRS, CTLS2: INTEL_MSRS[CTLS2] & ~(1 << 52)}
    found = kvm.examine(FakeHost(INTEL, msrs, "kvm_intel", NESTED_INTEL))
    assert found.ready and named(found, "XSAVES").mark is Mark.NOTE and "-xsaves" in named(found, "XSAVES").fix
    assert named(found, "trap: XSAVES missing in nested guests").mark is Mark.NOTE


def test_large_ept_leaves_without_pdpe1gb_are_the_trap_that_hangs() -> None:
    leaves = {**INTEL, (0x80000001, 0): (0, 0, 0, 0)}
    trap = named(
        kvm.examine(FakeHost(leaves, INTEL_MSRS, "kvm_intel", NESTED_INTEL)), "trap: 1 GiB nested pages that hang"
    )
    assert trap.mark is Mark.NOTE and "nested_page=2m" in trap.value


def test_widths_that_differ_are_shown() -> None:
    found = kvm.examine(FakeHost(AMD, {}, parameters=NESTED, bits=47))
    assert named(found, "physical address bits").mark is Mark.NOTE
    assert named(found, "physical address bits").value == "host 47, guest 48"
    leaves = {**AMD, (0x80000008, 0): (0x303034, 0, 0, 0)}
    found = kvm.examine(FakeHost(leaves, {}, parameters=NESTED, bits=52))
    trap = named(found, "trap: widths that are off")
    assert trap.mark is Mark.NOTE and "52 address bits" in trap.value and "48" in trap.value


def test_a_bad_finding_has_a_fix() -> None:
    with pytest.raises(ValueError, match="needs a fix"):
        Check("x", Mark.BAD, "broken")


def test_versions_are_found_in_what_programs_print() -> None:
    assert tools.version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == "7.2.22"
    assert tools.version_in("ASL+ Optimizing Compiler/Disassembler version 20200925\n") == "20200925"
    assert tools.version_in("no number") == ""


def test_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some programs print the kernel's before their own."""
    of_package = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "flashrom"], capture_output=True, text=True)
    assert tools.need(toolchain.Need("flashrom", "flashrom")).value == of_package.stdout != ""
    own = tmp_path / "flashrom"
    own.write_text("#!/bin/sh\necho flashrom v9.8\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert tools.need(toolchain.Need("flashrom", "flashrom")).value == "9.8"


def test_what_is_not_installed_names_package_and_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tools.need(toolchain.Need("no-such-package", "no-such-program"))
    assert missing.is_bad and "no-such-package" in missing.fix and tools.SETUP in missing.fix
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.qemu_svm().is_bad and tools.SETUP in tools.qemu_svm().fix


def test_a_qemu_that_cannot_emulate_svm_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo version 9.9.9 && exit\necho "no svm here"; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    check = tools.qemu_svm()
    assert check.is_bad and "9.9.9" in check.value and "no svm here" in check.value


def test_with_an_empty_cache_bochs_edk2_and_linux_have_to_be_set_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HV_BOCHS", "HV_EDK2_DIR"):
        monkeypatch.delenv(name, raising=False)
    store = cache.Cache(tmp_path / "cache")
    monkeypatch.setattr(cache, "default", lambda: store)
    checks = [*tools.bochs_platforms(), *tools.sources()]
    store.close()
    assert [check.name for check in checks] == ["bochs-vmx", "bochs-svm", "EDK2", "Linux"]
    assert all(check.is_bad and tools.SETUP in check.fix for check in checks)
    assert not (store.root / "trees").exists()


def test_own_parts_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HV_BOCHS", str(tmp_path / "no-bochs"))
    monkeypatch.setenv("HV_EDK2_DIR", str(tmp_path))
    checks = [*tools.bochs_platforms(), tools.sources()[0]]
    assert all(check.is_bad for check in checks)
    assert "unset HV_BOCHS" in checks[0].fix and "HV_EDK2_DIR" in checks[2].fix


def test_too_little_room_is_told(tmp_path: Path) -> None:
    assert tools._room("disk", tmp_path / "not" / "yet", 0, "").mark is Mark.OK
    full = tools._room("disk", tmp_path, 1 << 40, "make room")
    assert full.is_bad and str(tmp_path) in full.value and full.fix == "make room"


def test_the_verb_reports_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "doctor.json"
    assert cli.run(["doctor", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {name: found["ready"][name] for name in ("qemu-svm", "bochs-vmx", "bochs-svm")} == {
        "qemu-svm": True,
        "bochs-vmx": True,
        "bochs-svm": True,
    }
    assert found["ready"]["kvm"] == kvm.examine().ready
    text = capsys.readouterr().out
    for check in found["kvm"]:
        assert check["name"] in text and check["value"] in text
    assert "EDK2 2025.02" in text and "cloud-amd64" in text


def test_a_platform_that_is_not_ready_is_exit_code_1_and_kvm_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = Check("qemu-svm", Mark.BAD, "it is [broken]", "./hv setup")
    monkeypatch.setattr(tools, "qemu_svm", lambda: broken)
    ready = kvm.examine(FakeHost(AMD, {}, parameters=NESTED))
    monkeypatch.setattr(kvm, "examine", lambda: ready)
    out = tmp_path / "doctor.json"
    assert cli.run(["doctor", "--json", str(out)]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("hv: error: not ready: qemu-svm")
    assert "it is [broken]" in told.out and "fix: ./hv setup" in told.out and "ready: SVM in guests of KVM" in told.out
    assert json.loads(out.read_text())["ready"] | {"bochs-vmx": True, "bochs-svm": True} == {
        "qemu-svm": False,
        "bochs-vmx": True,
        "bochs-svm": True,
        "kvm": True,
    }

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Whether HvDxe can run in a virtual machine of this Linux's KVM, by what KVM itself says about its guests."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from hvtools.doctor.check import Check, Mark, passed
from hvtools.doctor.device import KVM_API_VERSION, Host, KvmDevice, Registers
from hvtools.generated.cpuid import CONSTANTS as CPUID
from hvtools.generated.msr import CONSTANTS as MSR
from hvtools.generated.msr import MSRS
from hvtools.generated.vmcb import CONSTANTS as SVM
from hvtools.generated.vmx_controls import CONSTANTS as VMX

CPU = "host,host-phys-bits=on"
"""The processor of guests, in QEMU's words."""

_EMULATED = "`hv boot --on qemu-svm`, bochs-vmx or bochs-svm need no KVM"
_MSR_NUMBERS = {name: number for number, name in MSRS.items()}
_YES = ("Y", "y", "1")

# Of the modules that come with Linux; whatever else stands behind /dev/kvm has no guests with SVM or VMX.
_MODULES = {"kvm_amd": "svm", "kvm_intel": "vmx"}


@dataclass(frozen=True)
class Guest:
    """What a guest of KVM would see."""

    cpuid: dict[tuple[int, int], Registers] = field(default_factory=dict)
    msrs: dict[int, int] = field(default_factory=dict)

    def leaf(self, name: str, sub: int = 0) -> Registers:
        """A CPUID leaf by its generated name; zeros where it has none."""
        return self.cpuid.get((CPUID[name], sub), Registers())

    def msr(self, name: str) -> int:
        """A feature MSR by its name in the table; 0 where it has none."""
        return self.msrs.get(_MSR_NUMBERS[name], 0)

    def may(self, control: str) -> bool:
        """A secondary control of VMX can be set: it is in the upper half of its capability MSR (SDM A.3.3)."""
        return bool(self.msr("VMX_PROCBASED_CTLS2") >> 32 & VMX[control])

    @property
    def vendor(self) -> str | None:
        """Whose virtualization it has: "svm", "vmx", or None."""
        if self.leaf("HV_CPUID_80000001").ecx & CPUID["HV_CPUID_80000001_ECX_SVM"]:
            return "svm"
        if self.leaf("HV_CPUID_1").ecx & CPUID["HV_CPUID_1_ECX_VMX"]:
            return "vmx"
        return None

    @property
    def has_1g_pages(self) -> bool:
        """CPUID says that 1 GiB pages are there (pdpe1gb)."""
        return bool(self.leaf("HV_CPUID_80000001").edx & CPUID["HV_CPUID_80000001_EDX_PAGE1GB"])

    @property
    def address_bits(self) -> int:
        """Width of its physical addresses (CPUID 80000008h EAX bits 7:0)."""
        return self.leaf("HV_CPUID_80000008").eax & 0xFF

    @property
    def nested_address_bits(self) -> int:
        """Width that nested paging can map, 0 for the same (CPUID 80000008h EAX bits 23:16)."""
        return self.leaf("HV_CPUID_80000008").eax >> 16 & 0xFF


@dataclass(frozen=True)
class Kvm:
    """The findings.

    Attributes:
        checks: what was looked at.
        vendor: "svm" or "vmx" as a guest would have it, None for neither.
    """

    checks: list[Check]
    vendor: str | None

    @property
    def ready(self) -> bool:
        """HvDxe can run in a guest."""
        return self.vendor is not None and not any(check.is_bad for check in self.checks)

    @property
    def reason(self) -> str:
        """Why not, and what to do; empty when it is ready."""
        bad = next((check for check in self.checks if check.is_bad), None)
        return "" if bad is None else f"{bad.name}: {bad.value} ({bad.fix})"


def _open_error(error: OSError, host: Host) -> Check:
    modules = ", ".join(host.modules())
    if error.errno in (errno.EACCES, errno.EPERM):
        return Check(
            "device", Mark.BAD, "/dev/kvm is not permitted to you", 'sudo usermod -aG kvm "$USER"; log in anew'
        )
    if error.errno == errno.ENOENT and modules:
        return Check(
            "device", Mark.BAD, f"/dev/kvm is not there, though {modules} is", "pass the device in: --device /dev/kvm"
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        fix = "sudo modprobe kvm_amd or kvm_intel; in a virtual machine first switch its nested virtualization on"
        return Check("device", Mark.BAD, "/dev/kvm is not there", fix)
    return Check(
        "device", Mark.BAD, f"/dev/kvm does not open: {error.strerror}", "end what holds it, see: fuser -v /dev/kvm"
    )


def _module(host: Host, guest: Guest) -> list[Check]:
    """The module behind the device, and whether it lets its guests have guests."""
    found = host.modules()
    known = [name for name in found if name in _MODULES]
    if not known:
        what = f"{', '.join(found)}, not kvm_amd or kvm_intel" if found else "built into the kernel"
        return [Check("module", Mark.NOTE, what, "")]
    name = known[0]
    nested = host.parameter(name, "nested")
    on = nested in _YES
    reload = (
        f"sudo modprobe -r {name}; sudo modprobe {name} nested=1 (to stay: options {name} nested=1 in /etc/modprobe.d)"
    )
    checks = [
        Check("module", Mark.OK, name),
        passed(on or guest.vendor is not None, "nested", "on" if on else f"off (nested={nested})", reload),
    ]
    for parameter, why in (
        ("npt", "nested paging"),
        ("ept", "nested paging"),
        ("unrestricted_guest", "real mode in guests"),
    ):
        value = host.parameter(name, parameter)
        if value is not None:
            fix = f"sudo modprobe -r {name}; sudo modprobe {name} {parameter}=1"
            checks.append(passed(value in _YES, parameter, f"{value} ({why})", fix))
    return checks


def _virtualization(host: Host, guest: Guest) -> Check:
    if guest.vendor is not None:
        return Check("virtualization for guests", Mark.OK, guest.vendor.upper())
    outer = "hypervisor" in _flags(host)
    where = (
        "ask who runs this virtual machine for nested virtualization; " if outer else "switch nested=1 on, see above; "
    )
    return Check("virtualization for guests", Mark.BAD, "neither SVM nor VMX", where + _EMULATED)


def _svm(guest: Guest) -> list[Check]:
    """What HvDxe needs of SVM (HvSvmLib/Probe.c), as far as CPUID shows it."""
    leaf = guest.leaf("HV_CPUID_8000000A")
    return [
        passed(bool(leaf.edx & SVM["HV_SVM_FEATURE_NP"]), "NPT", _yes(leaf.edx & SVM["HV_SVM_FEATURE_NP"]),
               "sudo modprobe -r kvm_amd; sudo modprobe kvm_amd npt=1 nested=1"),
        passed(leaf.ebx >= 2, "ASIDs", str(leaf.ebx), "update the kernel: a guest with SVM has at least 2"),
        passed(bool(leaf.edx & SVM["HV_SVM_FEATURE_NRIP"]), "nRIP", _yes(leaf.edx & SVM["HV_SVM_FEATURE_NRIP"]),
               "optional, instructions are decoded instead: kvm_amd nrips=1", Mark.NOTE),
    ]  # fmt: skip


_VMX_MSRS: tuple[tuple[str, str, str, str], ...] = (
    # name, MSR, bit, needed because
    ("true controls", "VMX_BASIC", "HV_VMX_BASIC_TRUE_CTLS", "update the kernel"),
    ("EPT of 4 levels", "VMX_EPT_VPID_CAP", "HV_VMX_EPT_VPID_CAP_WALK4", "kvm_intel ept=1"),
    ("EPT write-back", "VMX_EPT_VPID_CAP", "HV_VMX_EPT_VPID_CAP_WB", "kvm_intel ept=1"),
    ("INVEPT of all contexts", "VMX_EPT_VPID_CAP", "HV_VMX_EPT_VPID_CAP_INVEPT_ALL", "kvm_intel ept=1"),
    ("INVVPID of all contexts", "VMX_EPT_VPID_CAP", "HV_VMX_EPT_VPID_CAP_INVVPID_ALL", "kvm_intel vpid=1"),
)
_VMX_CONTROLS: tuple[tuple[str, str, str, Mark], ...] = (
    ("EPT", "HV_VMX_PROC2_EPT", "sudo modprobe -r kvm_intel; sudo modprobe kvm_intel ept=1 nested=1", Mark.BAD),
    ("unrestricted guest", "HV_VMX_PROC2_UNRESTRICTED_GUEST",
     "sudo modprobe -r kvm_intel; sudo modprobe kvm_intel unrestricted_guest=1 nested=1", Mark.BAD),
)  # fmt: skip


def _vmx(guest: Guest) -> list[Check]:
    """What HvDxe needs of VMX (HvVmxLib), as far as the feature MSRs show it."""
    if not guest.msrs:
        return [
            Check(
                "VMX capabilities", Mark.NOTE, "KVM does not tell them", "Linux 4.18 or newer; HvDxe checks them itself"
            )
        ]
    checks = [passed(guest.may(bit), name, _yes(guest.may(bit)), fix, mark) for name, bit, fix, mark in _VMX_CONTROLS]
    for name, msr, bit, fix in _VMX_MSRS:
        checks.append(passed(bool(guest.msr(msr) & MSR[bit]), name, _yes(guest.msr(msr) & MSR[bit]), fix))
    return checks


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _flags(host: Host) -> list[str]:
    match = re.search(r"^flags\s*:(.*)$", host.cpuinfo(), re.MULTILINE)
    return match[1].split() if match else []


def host_address_bits(host: Host) -> int | None:
    """The width of the host's physical addresses, None where Linux does not say."""
    match = re.search(r"^address sizes\s*:\s*(\d+) bits physical", host.cpuinfo(), re.MULTILINE)
    return int(match[1]) if match else None


def _widths(host: Host, guest: Guest) -> Check:
    theirs = host_address_bits(host)
    shown = f"host {theirs if theirs is not None else '?'}, guest {guest.address_bits}"
    if guest.nested_address_bits:
        shown += f", nested tables {guest.nested_address_bits}"
    agree = theirs in (None, guest.address_bits)
    fix = f"QEMU -cpu {CPU}, which hv uses; memory encryption takes bits off one of the two"
    return passed(agree, "physical address bits", shown, fix, Mark.NOTE)


def _pages(guest: Guest) -> Check:
    fix = f"QEMU -cpu {CPU},+pdpe1gb; without it nested pages have 2 MiB"
    return passed(guest.has_1g_pages, "1 GiB pages (pdpe1gb)", _yes(guest.has_1g_pages), fix, Mark.NOTE)


def _xsaves(guest: Guest) -> Check:
    if not _offers_xsaves(guest):
        return Check("XSAVES", Mark.OK, "not offered")
    usable = _can_pass_on_xsaves(guest)
    fix = "QEMU -cpu host,-xsaves gives boots with and without HvDxe the same processor"
    return passed(usable, "XSAVES", "offered" if usable else "offered, but its VMX control is not", fix, Mark.NOTE)


def _offers_xsaves(guest: Guest) -> bool:
    return bool(guest.leaf("HV_CPUID_D", 1).eax & CPUID["HV_CPUID_D_1_EAX_XSAVES"])


def _can_pass_on_xsaves(guest: Guest) -> bool:
    """The guest's own guests can have XSAVES too: under VMX that takes a control (SDM 26.6.2)."""
    return guest.vendor != "vmx" or not guest.msrs or guest.may("HV_VMX_PROC2_XSAVES")


def _trap_xsaves(guest: Guest) -> str:
    if not _offers_xsaves(guest) or _can_pass_on_xsaves(guest):
        return ""
    return "CPUID promises the guest what its guests cannot have: HvDxe hides XSAVES from the root"


def _trap_sx(guest: Guest) -> str:
    if guest.vendor != "svm":
        return ""
    return "VM_CR.R_INIT is written and does nothing: an INIT is no #SX. HvDxe kicks by NMI and traps the APIC"


def _trap_1g(guest: Guest) -> str:
    ept = guest.vendor == "vmx" and guest.msr("VMX_EPT_VPID_CAP") & MSR["HV_VMX_EPT_VPID_CAP_PAGE_1G"]
    if not ept or guest.has_1g_pages:
        return ""
    return "EPT offers 1 GiB leaves, CPUID does not: the KVM below can fault on them for ever; use --set nested_page=2m"


def _trap_width(guest: Guest) -> str:
    if guest.vendor is None or guest.nested_address_bits in (0, guest.address_bits):
        return ""
    return (
        f"the guest counts {guest.address_bits} address bits, its nested tables can map {guest.nested_address_bits}: "
        "an address above that faults for ever, give the machine less memory than that"
    )


TRAPS: tuple[tuple[str, Callable[[Guest], str]], ...] = (
    ("XSAVES missing in nested guests", _trap_xsaves),
    ("#SX redirection ignored", _trap_sx),
    ("1 GiB nested pages that hang", _trap_1g),
    ("widths that are off", _trap_width),
)
"""What is known to go wrong in a guest of KVM that runs a hypervisor: a name, and what it means for this guest."""


def traps(guest: Guest) -> list[Check]:
    """The known traps, and which of them this guest would meet."""
    checks = []
    for name, meaning in TRAPS:
        text = meaning(guest) if guest.vendor is not None else ""
        none = "does not apply: no guest has SVM or VMX" if guest.vendor is None else "not met"
        checks.append(Check(f"trap: {name}", Mark.NOTE if text else Mark.OK, text or none))
    return checks


def examine(host: Host | None = None) -> Kvm:
    """Look at this machine's KVM. Nothing is changed, no virtual machine is made."""
    host = host or Host()
    try:
        device = host.open_kvm()
    except OSError as error:
        return Kvm([_open_error(error, host)], None)
    try:
        return _examine_device(host, device)
    except OSError as error:
        fix = "is it KVM at all? see: ls -l /dev/kvm; dmesg | grep -i kvm"
        return Kvm([Check("device", Mark.BAD, f"/dev/kvm opens, but refuses to answer: {error.strerror}", fix)], None)
    finally:
        device.close()


def _examine_device(host: Host, device: KvmDevice) -> Kvm:
    version = device.api_version()
    guest = Guest(device.cpuid(), device.feature_msrs())
    checks = [
        Check("device", Mark.OK, "/dev/kvm is there, and yours"),
        passed(version == KVM_API_VERSION, "API", f"version {version}", "a Linux of this century"),
        *_module(host, guest),
        _virtualization(host, guest),
        *(_svm(guest) if guest.vendor == "svm" else _vmx(guest) if guest.vendor == "vmx" else []),
        _pages(guest),
        _xsaves(guest),
        _widths(host, guest),
        *traps(guest),
    ]
    return Kvm(checks, guest.vendor)

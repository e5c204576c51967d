# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The platforms, and what each can do. Tests ask for capabilities, never for an emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath

from hvtools import bochs, toolchain
from hvtools.doctor.kvm import CPU as KVM_CPU
from hvtools.doctor.kvm import Kvm, examine
from hvtools.errors import UsageError
from hvtools.machines.bochs import ACCELERATOR, SVM_CPU, VMX_CPU, WITHOUT_MWAIT, BochsMachine
from hvtools.machines.protocols import Machine
from hvtools.machines.qemu import DEFAULT_ACCELERATOR, DEFAULT_CPU, Firmware, QemuMachine
from hvtools.machines.spec import MachineSpec

Listener = Callable[[str], None]

CAPABILITIES = {
    "svm": "the processors have SVM with nested paging",
    "vmx": "the processors have VMX with EPT and unrestricted guest",
    "hypervisor": "HvDxe runs on the processors",
    "smp": "more than one processor",
    "concurrent": "processors that really run at the same time, by an accelerator of their own",
    "fast": "boots within a few seconds, so that every test can run on it by default",
    "ticks": "counts instructions exactly, and can run twice the same",
    "many": "32 processors (Bochs has timers for less than that)",
    "high-memory": "memory above 4 GiB (Bochs 3.0 does not start with it)",
    "xapic": "local APICs in xAPIC mode",
    "x2apic": "local APICs that can be put into x2APIC mode",
    "sipi-exits": "INIT and SIPI exit at the processor that they are for (VMX with the activity state wait-for-SIPI)",
    "variables": "EFI variables survive a reset",
    "usb": "the disk can be a USB stick, with a second disk beside it",
    "poweroff": "the end of a machine tells power-off from reset",
    "s3": "can suspend to RAM",
    "high-mmio": "a device has registers above 512 GiB",
    "devices": "takes further devices",
    "hard-reset": "the firmware starts again after a reset of all devices",
    "memory": "its memory can be read from outside while it runs",
    "nmi": "NMIs can be sent to it from outside",
    "debugger": "GDB can be attached",
    "secure-boot": "its firmware can check signatures",
    "tpm": "there can be a TPM 2.0",
    "process": "a process of this host, which is no box in a lab",
    "linux": "the firmware gives Linux all that it needs (ACPI, SMP)",
}


@dataclass(frozen=True)
class Box:
    """A machine that is there already.

    Attributes:
        cpus: its processors.
        memory_mib: its RAM in MiB.
        flash: its firmware can be written.
        shell: a UEFI shell that goes onto its boot medium, None where the firmware has one.
    """

    cpus: int
    memory_mib: int
    flash: bool
    shell: Path | None = None


@dataclass(frozen=True)
class Platform:
    """One way to get machines.

    Attributes:
        name: as the command line says it.
        vendor: whose virtualization it has ("svm" or "vmx").
        capabilities: keys of CAPABILITIES.
        cpu_model: the default processor.
        accelerator: the default accelerator.
        concurrent_accelerator: the one that gives the capability "concurrent".
        counting_accelerator: the one with which the time stamp counter counts instructions, None for the default.
        ticks_per_instruction: how far the counter goes with each then, 0 where it does not count them. On Bochs, with
            one processor.
        create: makes a machine of a specification.
        plain_cpu: a processor without virtualization.
        lesser_cpus: processors that lack one thing, by the name of the requirement.
        exact_cpu: one that does the same in each run, where the platform can do that.
        debugger_cpus: how many processors it can have with a debugger attached, None for any number.
        patience: how much longer than on the fastest platform a boot may take.
        drivers: EFI drivers of ours that make up for what the firmware lacks there; they do nothing where it does not.
        variables: the store of UEFI variables of its firmware, without keys; None where that cannot check signatures.
        prepare: fetches and builds the platform itself; True for what it needs to have GDB attached.
        box: what a real machine is made of, None where a machine is made as it is asked for.
    """

    name: str
    vendor: str
    capabilities: frozenset[str]
    cpu_model: str
    accelerator: str
    concurrent_accelerator: str | None
    create: Callable[[MachineSpec, Listener | None], Machine]
    plain_cpu: str
    lesser_cpus: Mapping[str, str] = field(default_factory=dict)
    exact_cpu: str | None = None
    counting_accelerator: str | None = None
    ticks_per_instruction: int = 0
    patience: float = 1.0
    debugger_cpus: int | None = None
    drivers: tuple[PurePosixPath, ...] = ()
    variables: Path | None = None
    prepare: Callable[[bool], None] = lambda debugger: None
    box: Box | None = None

    @property
    def counter(self) -> str:
        """What the time stamp counter counts where it counts no instructions: a unit of figures."""
        if "ticks" in self.capabilities:
            return "ticks"
        return "cycles" if self.accelerator in (KVM, HARDWARE) else "TSC"

    def __post_init__(self) -> None:
        """Refuse capabilities that nobody can ask for.

        Raises:
            ValueError: a capability is unknown.
        """
        unknown = self.capabilities - CAPABILITIES.keys()
        if unknown:
            raise ValueError(f"{self.name}: unknown capabilities {sorted(unknown)}")


def _prepare_bochs(debugger: bool) -> None:
    toolchain.require("bochs")
    bochs.provide(debugger)


_BOCHS_CAPABILITIES = ("process", "smp", "xapic", "poweroff", "linux", "ticks", "memory", "debugger")


def _bochs(vendor: str, cpu_model: str, capabilities: set[str], lesser: dict[str, str]) -> Platform:
    return Platform(
        name=f"bochs-{vendor}",
        vendor=vendor,
        capabilities=frozenset({vendor, *_BOCHS_CAPABILITIES} | capabilities),
        cpu_model=cpu_model,
        accelerator=ACCELERATOR,
        concurrent_accelerator=None,
        create=partial(BochsMachine, default_cpu=cpu_model),
        plain_cpu=f"{cpu_model},-{vendor}",
        lesser_cpus={name: f"{model},{WITHOUT_MWAIT}" for name, model in lesser.items()},
        exact_cpu=f"{cpu_model},-rdrand,-rdseed",  # their numbers depend on the host's clock
        ticks_per_instruction=1,
        patience=2.0,
        debugger_cpus=1,
        drivers=(PurePosixPath("BochsAcpiDxe.efi"),),
        prepare=_prepare_bochs,
    )


# Those that every machine can be made ready for; KVM is only known when it is asked for.
PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            name="qemu-svm",
            vendor="svm",
            capabilities=frozenset(
                {
                    "svm",
                    "hypervisor",
                    "process",
                    "fast",
                    "smp",
                    "concurrent",
                    "many",
                    "high-memory",
                    "xapic",
                    "variables",
                    "usb",
                    "poweroff",
                    "s3",
                    "high-mmio",
                    "devices",
                    "hard-reset",
                    "memory",
                    "nmi",
                    "linux",
                    "debugger",
                    "secure-boot",
                    "tpm",
                },
            ),
            cpu_model=DEFAULT_CPU,
            accelerator=DEFAULT_ACCELERATOR,
            concurrent_accelerator="tcg,thread=multi",
            create=QemuMachine,
            plain_cpu="qemu64,-svm",
            lesser_cpus={"nested-paging": f"{DEFAULT_CPU},-npt"},
            counting_accelerator="tcg,icount:shift=3,sleep=off",
            ticks_per_instruction=8,
            variables=Firmware().variables,
        ),
        _bochs(
            "vmx",
            VMX_CPU,
            {"hypervisor", "x2apic", "sipi-exits"},
            {
                "unrestricted-guest": "corei5_lynnfield_750",
                "ept": "core2_penryn_t9600",
                "vmx": "athlon64_clawhammer",
            },
        ),
        _bochs("svm", SVM_CPU, {"hypervisor"}, {"svm": "athlon64_clawhammer"}),
    )
}
DEFAULT_PLATFORM = "qemu-svm"
KVM = "kvm"
HARDWARE = "hardware"
"""The accelerator of what is emulated by nothing."""
LAB = "lab:"
"""Before the name of a labgrid environment file: the machine that it describes."""
PLATFORM_NAMES = (*PLATFORMS, KVM)


def _kvm_machine(spec: MachineSpec, listener: Listener | None) -> Machine:
    model, accelerator = spec.cpu_model or KVM_CPU, spec.accelerator or KVM
    return QemuMachine(replace(spec, cpu_model=model, accelerator=accelerator), listener)


def kvm_platform(found: Kvm) -> Platform:
    """This machine's own KVM with nested virtualization, in the emulator's machine.

    Args:
        found: what the doctor says about it.

    Raises:
        UsageError: HvDxe cannot run in its guests; says why.
    """
    if found.vendor is None or not found.ready:
        raise UsageError(f"--on {KVM}: {found.reason}")
    return Platform(
        name=KVM,
        vendor=found.vendor,
        capabilities=frozenset(
            {
                found.vendor,
                "hypervisor",
                "process",
                "fast",
                "smp",
                "concurrent",
                "many",
                "high-memory",
                "variables",
                "usb",
                "poweroff",
                "s3",
                "linux",
                "memory",
                "nmi",
                "debugger",
                "secure-boot",
                "tpm",
            }
        ),
        cpu_model=KVM_CPU,
        accelerator=KVM,
        concurrent_accelerator=KVM,
        create=_kvm_machine,
        plain_cpu=f"{KVM_CPU},-{found.vendor}",
        variables=Firmware().variables,
    )


@cache
def _kvm() -> Kvm:
    return examine()


def platform_named(name: str) -> Platform:
    """Find a platform.

    Raises:
        UsageError: there is none of that name, or this machine cannot be it.
    """
    if name == KVM:
        return kvm_platform(_kvm())
    if name.startswith(LAB):
        from hvtools.lab.box import lab_platform  # labgrid takes a second to import

        return lab_platform(name)
    try:
        return PLATFORMS[name]
    except KeyError:
        raise UsageError(f"no platform {name!r}: there is {', '.join(sorted(PLATFORM_NAMES))}") from None


def platforms_with(capabilities: Iterable[str]) -> list[Platform]:
    """Find the platforms of this machine that have all of `capabilities`.

    Raises:
        ValueError: no platform could ever have one of them, because it is not in CAPABILITIES.
    """
    wanted = frozenset(capabilities)
    unknown = wanted - CAPABILITIES.keys()
    if unknown:
        raise ValueError(f"unknown capabilities {sorted(unknown)}")
    own = [kvm_platform(_kvm())] if _kvm().ready else []
    return [platform for platform in (*PLATFORMS.values(), *own) if wanted <= platform.capabilities]

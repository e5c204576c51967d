# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The platforms, and what each can do. Tests ask for capabilities, never for an emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hvtools.errors import UsageError
from hvtools.machines.protocols import Machine
from hvtools.machines.qemu import DEFAULT_ACCELERATOR, DEFAULT_CPU, QemuMachine
from hvtools.machines.spec import MachineSpec

Listener = Callable[[str], None]

CAPABILITIES = {
    "svm": "the processors have SVM with nested paging",
    "smp": "more than one processor",
    "concurrent": "processors that really run at the same time, by an accelerator of their own",
    "xapic": "local APICs in xAPIC mode",
    "poweroff": "the end of a machine tells power-off from reset",
    "linux": "the firmware gives Linux all that it needs (ACPI, SMP)",
}


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
        create: makes a machine of a specification.
    """

    name: str
    vendor: str
    capabilities: frozenset[str]
    cpu_model: str
    accelerator: str
    concurrent_accelerator: str | None
    create: Callable[[MachineSpec, Listener | None], Machine]

    def __post_init__(self) -> None:
        """Refuse capabilities that nobody can ask for.

        Raises:
            ValueError: a capability is unknown.
        """
        unknown = self.capabilities - CAPABILITIES.keys()
        if unknown:
            raise ValueError(f"{self.name}: unknown capabilities {sorted(unknown)}")


PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            name="qemu-svm",
            vendor="svm",
            capabilities=frozenset({"svm", "smp", "concurrent", "xapic", "poweroff", "linux"}),
            cpu_model=DEFAULT_CPU,
            accelerator=DEFAULT_ACCELERATOR,
            concurrent_accelerator="tcg,thread=multi",
            create=QemuMachine,
        ),
    )
}
DEFAULT_PLATFORM = "qemu-svm"


def platform_named(name: str) -> Platform:
    """Find a platform.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return PLATFORMS[name]
    except KeyError:
        raise UsageError(f"no platform {name!r}: there is {', '.join(sorted(PLATFORMS))}") from None


def platforms_with(capabilities: Iterable[str]) -> list[Platform]:
    """Find the platforms that have all of `capabilities`.

    Raises:
        ValueError: no platform could ever have one of them, because it is not in CAPABILITIES.
    """
    wanted = frozenset(capabilities)
    unknown = wanted - CAPABILITIES.keys()
    if unknown:
        raise ValueError(f"unknown capabilities {sorted(unknown)}")
    return [platform for platform in PLATFORMS.values() if wanted <= platform.capabilities]

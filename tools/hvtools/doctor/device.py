# SPDX-License-Identifier: BSD-2-Clause-Patent
"""/dev/kvm as it answers: the ioctls of the system descriptor, Documentation/virt/kvm/api.rst of Linux.

The numbers are those of linux/kvm.h; a test compares them with that header.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KVM_GET_API_VERSION = 0xAE00
KVM_GET_MSR_FEATURE_INDEX_LIST = 0xC004AE0A
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_GET_MSRS = 0xC008AE88
KVM_API_VERSION = 12

CPUID_HEAD = struct.Struct("<II")  # struct kvm_cpuid2: nent, padding
CPUID_ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx, padding
MSR_LIST_HEAD = struct.Struct("<I")  # struct kvm_msr_list: nmsrs
MSR_HEAD = struct.Struct("<II")  # struct kvm_msrs: nmsrs, pad
MSR_ENTRY = struct.Struct("<IIQ")  # struct kvm_msr_entry: index, reserved, data

_ENTRIES_MAX = 1 << 12  # KVM itself stops at 256 (KVM_MAX_CPUID_ENTRIES)

Ioctl = Callable[[int, int, int | bytearray], int]


def _ioctl(descriptor: int, request: int, argument: int | bytearray) -> int:
    return int(fcntl.ioctl(descriptor, request, argument))  # a buffer is filled in place


@dataclass(frozen=True)
class Registers:
    """What CPUID returns."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class KvmDevice:
    """An open /dev/kvm."""

    def __init__(self, descriptor: int, ioctl: Ioctl = _ioctl) -> None:
        """Ask through `ioctl`, which raises OSError and fills the buffer that it is given."""
        self._descriptor = descriptor
        self._ioctl = ioctl

    def api_version(self) -> int:
        """The version of the interface; 12 since Linux 2.6.22."""
        return self._ioctl(self._descriptor, KVM_GET_API_VERSION, 0)

    def _counted(self, request: int, head: struct.Struct, entry_bytes: int) -> bytearray:
        """Ask for an array, with room for more and more entries.

        Raises:
            OSError: it is refused for another reason than room.
        """
        room = 128
        while True:
            buffer = bytearray(head.size + room * entry_bytes)
            struct.pack_into("<I", buffer, 0, room)
            try:
                self._ioctl(self._descriptor, request, buffer)
                return buffer
            except OSError as error:
                if error.errno != errno.E2BIG or room >= _ENTRIES_MAX:
                    raise
            room *= 2

    def cpuid(self) -> dict[tuple[int, int], Registers]:
        """What CPUID can say in a guest at the most, by leaf and sub-leaf.

        Raises:
            OSError: the device refuses.
        """
        buffer = self._counted(KVM_GET_SUPPORTED_CPUID, CPUID_HEAD, CPUID_ENTRY.size)
        (count, _) = CPUID_HEAD.unpack_from(buffer)
        leaves = {}
        for number in range(count):
            leaf, sub, _flags, *registers = CPUID_ENTRY.unpack_from(buffer, CPUID_HEAD.size + number * CPUID_ENTRY.size)
            leaves[leaf, sub] = Registers(*registers)
        return leaves

    def feature_msrs(self) -> dict[int, int]:
        """The MSRs that say what a guest's processor can do, the IA32_VMX_* ones among them if it has VMX.

        Returns:
            values by number; empty where KVM is too old to tell (before 4.18).
        """
        try:
            buffer = self._counted(KVM_GET_MSR_FEATURE_INDEX_LIST, MSR_LIST_HEAD, 4)
        except OSError:
            return {}
        (count,) = MSR_LIST_HEAD.unpack_from(buffer)
        values = {}
        for number in struct.unpack_from(f"<{count}I", buffer, MSR_LIST_HEAD.size):
            request = bytearray(MSR_HEAD.pack(1, 0) + MSR_ENTRY.pack(number, 0, 0))
            with contextlib.suppress(OSError):  # one that cannot be read is one that a guest does not have
                if self._ioctl(self._descriptor, KVM_GET_MSRS, request) == 1:
                    values[number] = MSR_ENTRY.unpack_from(request, MSR_HEAD.size)[2]
        return values

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._descriptor)


class Host:
    """What the doctor looks at of Linux. A test gives another one."""

    def open_kvm(self) -> KvmDevice:
        """Open /dev/kvm.

        Raises:
            OSError: it is not there, or not permitted.
        """
        return KvmDevice(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))

    def modules(self) -> list[str]:
        """The names of the kernel modules that stand behind /dev/kvm, kvm itself left out."""
        return sorted(path.name for path in Path("/sys/module").glob("kvm_*"))

    def parameter(self, module: str, name: str) -> str | None:
        """A module's parameter, None where it has none of that name."""
        try:
            return Path("/sys/module", module, "parameters", name).read_text().strip()
        except OSError:
            return None

    def cpuinfo(self) -> str:
        """/proc/cpuinfo."""
        try:
            return Path("/proc/cpuinfo").read_text()
        except OSError:
            return ""

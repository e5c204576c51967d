# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Commands for GDB on a machine with HvDxe: `source`d by GDB, in the Python that GDB brings.

What the commands know of the machine is in the environment variable HV_DEBUG_MACHINE, as `hv debug` leaves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gdb

from hvtools import ring
from hvtools.boot.hvlog import LogLine
from hvtools.debugger import text
from hvtools.decode.words import exit_name
from hvtools.errors import HvError
from hvtools.generated.cpuid import CONSTANTS as CPUID

MACHINE = json.loads(os.environ["HV_DEBUG_MACHINE"])
"""The fields of the log event `memory`, and the vendor."""

_PAGE = 4096


@contextlib.contextmanager
def physical() -> Iterator[None]:
    """Let addresses be physical ones (an extension of QEMU's stub): the guest's tables say nothing about the host."""
    gdb.execute("maintenance packet Qqemu.PhyMemMode:1", to_string=True)
    try:
        yield
    finally:
        gdb.execute("maintenance packet Qqemu.PhyMemMode:0", to_string=True)


class Physical:
    """The machine's memory, while `physical` is in force."""

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes at `address`."""
        return bytes(gdb.selected_inferior().read_memory(address, size))


def quad(address: int) -> int:
    """Give the 8 bytes at a physical address."""
    return int.from_bytes(Physical().read(address, 8), "little")


def host() -> gdb.Value:
    """HV_HOST: it stands behind the pages that the root may read."""
    address = MACHINE["status"] + MACHINE["status-bytes"]
    value = gdb.Value(address).cast(gdb.lookup_type("HV_HOST").pointer()).dereference()
    if int(value["Base"]) != MACHINE["base"]:
        raise gdb.GdbError(f"there is no HV_HOST at {address:#x}: is HvDxe loaded, and this its build?")
    return value


def processor(number: int) -> gdb.Value:
    """HV_CPU by index."""
    found = host()
    if not 0 <= number < int(found["CpuCount"]):
        raise gdb.GdbError(f"there is no processor {number}: 0 to {int(found['CpuCount']) - 1}")
    address = int(found["Cpu"]) + number * int(found["CpuStride"])
    return gdb.Value(address).cast(gdb.lookup_type("HV_CPU").pointer()).dereference()


def vendor() -> str:
    """Whose virtualization runs."""
    return "svm" if int(host()["Status"]["Vendor"]) == CPUID["HV_CPUID_BACKEND_SVM"] else "vmx"


def chosen(argument: str) -> int:
    """The processor that a command is for: its argument, else the one that GDB has selected."""
    if argument.strip():
        return int(gdb.parse_and_eval(argument))
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("no processor is selected, and no number was given")
    return int(thread.num) - 1


class Command(gdb.Command):
    """A command that looks and prints; its first line of help says what."""

    def __init__(self, name: str) -> None:
        """Make it known to GDB."""
        super().__init__(name, gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        try:
            with physical():
                for line in self.lines(argument):
                    print(line)
        except HvError as error:
            raise gdb.GdbError(error.line) from None

    def lines(self, argument: str) -> Iterator[str]:
        """What it prints."""
        raise NotImplementedError


class Cpus(Command):
    """List the processors: state, mail, where each guest is, exits so far."""

    def lines(self, argument: str) -> Iterator[str]:
        """One line a processor, with a star for the selected one."""
        found = host()
        selected = gdb.selected_thread()
        kinds = int(found["Status"]["KindCount"])
        states = gdb.lookup_type("HV_MP_STATE")
        yield "  cpu  apic-id  state             kick  guest rip           exits"
        for number in range(int(found["CpuCount"])):
            cpu = processor(number)
            mark = "*" if selected is not None and selected.num - 1 == number else " "
            state = str(cpu["State"].cast(states))
            exits = sum(int(cpu["Exits"][kind]) for kind in range(kinds))
            yield (
                f"{mark} {number:<4} {int(cpu['Apic']['ApicId']):#07x}  {state:<16}  {int(cpu['KickPending']):<4}  "
                f"{int(cpu['Vcpu']['Regs']['Rip']):#018x}  {exits}"
            )


class Exit(Command):
    """Say what the last exit of a processor was: hv-exit [CPU]."""

    def lines(self, argument: str) -> Iterator[str]:
        """The exit by the manual's name, and the guest's registers."""
        cpu = processor(chosen(argument))
        registers = cpu["Vcpu"]["Regs"]
        if vendor() == "svm":
            page = Physical().read(int(cpu["Vcpu"]["Hw"]), _PAGE)
            code, info1, info2 = (text.control(page, name) for name in ("ExitCode", "ExitInfo1", "ExitInfo2"))
            yield f"exit {code:#x} {exit_name('svm', code)}  info1 {info1:#x}  info2 {info2:#x}"
        else:
            code, qualification = _vmx_exit(cpu)
            yield f"exit {code:#x} {exit_name('vmx', code)}  qualification {qualification:#x}"
        names = (
            "Rip",
            "Rsp",
            "Rflags",
            "Rax",
            "Rbx",
            "Rcx",
            "Rdx",
            "Rsi",
            "Rdi",
            "Rbp",
            *(f"R{n}" for n in range(8, 16)),
        )
        for start in range(0, len(names), 3):
            yield "  ".join(f"{name.lower():>6} {int(registers[name]):#018x}" for name in names[start : start + 3])


def _vmx_exit(cpu: gdb.Value) -> tuple[int, int]:
    """Exit reason and qualification: of the VMCS where it can be read, else of whichever frame has HV_EXIT."""
    page = _vmcs(cpu)
    if page is not None:
        return text.vmcs_field(page, "EXIT_REASON"), text.vmcs_field(page, "EXIT_QUALIFICATION")
    frame = gdb.selected_frame()
    while frame is not None:
        with contextlib.suppress(ValueError, gdb.error):
            value = frame.read_var("Exit")
            if not value.is_optimized_out:
                found = value.dereference() if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR else value
                return int(found["Code"]), int(found["Info1"])
        frame = frame.older()
    raise gdb.GdbError("no frame has the exit: stop in a handler first, as with: break HvOnCpuid")


class Vmcb(Command):
    """Print a processor's VMCB by field: hv-vmcb [CPU]. Fields that are 0 are left out."""

    def lines(self, argument: str) -> Iterator[str]:
        """The fields."""
        if vendor() != "svm":
            raise gdb.GdbError("this machine runs VMX: say hv-vmcs")
        yield from text.vmcb_lines(Physical().read(int(processor(chosen(argument))["Vcpu"]["Hw"]), _PAGE))


def _vmcs(cpu: gdb.Value) -> bytes | None:
    """A processor's VMCS, if it is of a layout that we know: the page before that of VMX_VCPU (VmxInternal.h)."""
    page = Physical().read(int(cpu["Vcpu"]["Hw"]) - _PAGE, _PAGE)
    return page if int.from_bytes(page[:4], "little") == text.BOCHS_REVISION else None


class Vmcs(Command):
    """Print a processor's VMCS by field: hv-vmcs [CPU]. Fields that are 0 are left out."""

    def lines(self, argument: str) -> Iterator[str]:
        """The fields."""
        if vendor() != "vmx":
            raise gdb.GdbError("this machine runs SVM: say hv-vmcb")
        page = _vmcs(processor(chosen(argument)))
        if page is None:
            raise gdb.GdbError("only this processor's own VMREAD reads its VMCS: use hv-exit, and --on bochs-vmx")
        yield from text.vmcs_lines(page)


class Walk(Command):
    """Walk the root's nested tables for a guest-physical address: hv-npt ADDRESS."""

    def lines(self, argument: str) -> Iterator[str]:
        """Every entry on the way."""
        if not argument.strip():
            raise gdb.GdbError("which guest-physical address? as in: hv-npt 0xfee00300")
        nested = host()["Root"]["Nested"]
        kind = str(nested["Format"])
        address = int(gdb.parse_and_eval(argument)) & 2**64 - 1
        yield from text.walk_lines(quad, int(nested["Root"]), int(kind[-1]), "Ept" in kind, address)


class Log(Command):
    """Print the hypervisor's log from its ring."""

    def lines(self, argument: str) -> Iterator[str]:
        """All of it."""
        place = LogLine("info", 0, "memory", {name: f"{value:#x}" for name, value in MACHINE.items()})
        found = ring.by_log(Physical(), [place])
        if found is None:
            raise gdb.GdbError("there is no ring yet")
        yield from ring.whole_lines(found).splitlines()


COMMANDS = {
    "hv-cpus": Cpus,
    "hv-exit": Exit,
    "hv-vmcb": Vmcb,
    "hv-vmcs": Vmcs,
    "hv-npt": Walk,
    "hv-log": Log,
}
for name, command in COMMANDS.items():
    command(name)

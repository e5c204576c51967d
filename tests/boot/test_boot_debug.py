# SPDX-License-Identifier: BSD-2-Clause-Patent
"""GDB on a machine: a scripted session that stops in an exit handler and looks around, on each vendor's exits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Hv

SCRIPT = """\
echo at the gate\\n
hv-cpus
continue
echo in the handler\\n
backtrace
hv-cpus
hv-exit
{block}
hv-npt 0xfee00300
hv-npt 0xfd00000000
hv-log
"""


@pytest.mark.needs("hypervisor", "debugger")
def test_a_session_that_stops_in_the_exit_handler(platform: str, hv: Hv, tmp_path: Path) -> None:
    found = platform_named(platform)
    vmx = found.vendor == "vmx"
    cpus = found.debugger_cpus or 2
    script = tmp_path / "script.gdb"
    script.write_text(SCRIPT.format(block="hv-vmcs" if vmx else "hv-vmcb"))
    # The last processor; a CPUID exit comes to its handler only because a debugger is there.
    where = ("--on", platform, "--cpus", str(cpus), "--break", "HvOnCpuid", "--cpu", str(cpus - 1))
    result = hv("debug", *where, "--script", str(script))
    assert result.returncode == 0, result.stdout + result.stderr
    before, _, told = result.stdout.partition("in the handler\n")
    assert len(re.findall(r"^[* ] [01] .*0x0000000000000000  0$", before, re.MULTILINE)) == cpus, (
        "nothing was launched yet"
    )
    assert re.search(rf"(Thread {cpus} hit )?Breakpoint 1, HvOnCpuid ", before)
    # The backtrace has source lines, from the handler through the run loop to the launch.
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) .* at .*/(\w+\.c):(\d+)$", told, re.MULTILINE)
    assert [(name, file) for name, file, _ in frames][:3] == [
        ("HvOnCpuid", "Cpuid.c"),
        ("HvCoreRun", "Run.c"),
        ("HvCoreLaunch", "Run.c"),
    ]
    assert all(int(line) > 0 for _, _, line in frames)
    last = cpus - 1
    assert re.search(rf"^\* {last} +0x0000{last} +HvMpRunning .* [1-9]\d*$", told, re.MULTILINE)
    code, field = ("0xa", r"4402 EXIT_REASON +0x0+a") if vmx else ("0x72", r"070 Control\.ExitCode +0x0+72")
    assert re.search(rf"^exit {code} CPUID ", told, re.MULTILINE) and re.search(r"rax 0x[0-9a-f]{16}", told)
    assert re.search(rf"^{field}  CPUID$", told, re.MULTILINE)
    kind = "EPT" if vmx else "NPT"
    apic, hole = re.findall(rf"^{kind} walk of .*?(?=^{kind}|^hv:)", told, re.MULTILINE | re.DOTALL)
    assert "host address 0xfee00300, page of " in apic
    if cpus > 1:
        # The APIC's page is for reading only: its writes are trapped.
        assert "page of 0x1000 bytes" in apic
        assert " RW" in apic.splitlines()[1] and " RW" not in apic.splitlines()[4]
    if vmx:
        # The guest is where the hypervisor found it, and access rights are in the manual's order.
        (rip,) = re.findall(r"^681e GUEST_RIP +(0x[0-9a-f]+)$", told, re.MULTILINE)
        assert f"rip {rip}" in told
        assert re.search(r"^4816 GUEST_CS_ACCESS_RIGHTS +0x0+a09b$", told, re.MULTILINE)
    assert "not mapped: a hole of" in hole
    assert re.search(r"^hv: info cpu0 memory base=", told, re.MULTILINE)

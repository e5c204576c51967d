# SPDX-License-Identifier: BSD-2-Clause-Patent
"""GDB on a machine: a scripted session that stops in an exit handler and looks around."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
hv-vmcb
hv-npt 0xfee00300
hv-npt 0xfd00000000
hv-log
"""


@pytest.mark.needs("svm", "hypervisor", "debugger")
def test_a_session_that_stops_in_the_exit_handler(platform: str, hv: Hv, tmp_path: Path) -> None:
    script = tmp_path / "script.gdb"
    script.write_text(SCRIPT)
    result = hv("debug", "--on", platform, "--cpus", "2", "--break", "HvOnCpuid", "--cpu", "1", "--script", str(script))
    assert result.returncode == 0, result.stdout + result.stderr
    before, _, told = result.stdout.partition("in the handler\n")
    assert len(re.findall(r"^[* ] [01] .*0x0000000000000000  0$", before, re.MULTILINE)) == 2, (
        "nothing was launched yet"
    )
    assert re.search(r"Thread 2 hit Breakpoint 1, HvOnCpuid ", before)
    # The backtrace has source lines, from the handler through the run loop to the launch.
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) .* at .*/(\w+\.c):(\d+)$", told, re.MULTILINE)
    assert [(name, file) for name, file, _ in frames][:3] == [
        ("HvOnCpuid", "Cpuid.c"),
        ("HvCoreRun", "Run.c"),
        ("HvCoreLaunch", "Run.c"),
    ]
    assert all(int(line) > 0 for _, _, line in frames)
    assert re.search(r"^\* 1 +0x00001 +HvMpRunning .* [1-9]\d*$", told, re.MULTILINE)
    assert re.search(r"^exit 0x72 CPUID ", told, re.MULTILINE) and re.search(r"rax 0x[0-9a-f]{16}", told)
    assert re.search(r"^070 Control\.ExitCode +0x0+72  CPUID$", told, re.MULTILINE)
    apic, hole = re.findall(r"^NPT walk of .*?(?=^NPT|^hv:)", told, re.MULTILINE | re.DOTALL)
    # The APIC's page is for reading only: its writes are trapped.
    assert "host address 0xfee00300, page of 0x1000 bytes" in apic
    assert " RW" in apic.splitlines()[1] and " RW" not in apic.splitlines()[4]
    assert "not mapped: a hole of" in hole
    assert re.search(r"^hv: info cpu0 memory base=", told, re.MULTILINE)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Devices and physical address widths as machines may have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor")

# The first register of a virtio device chooses which half of its features the second one shows (virtio 1.2, 4.1.4.3).
REGISTERS = """
for file in /sys/bus/pci/devices/*/resource; do
    while read first last flags; do
        if [ $((first)) -ge $((1 << 39)) ] && [ $((flags & 0x200)) != 0 ]; then
            echo above=$first
            for half in 0 1 0; do
                devmem $first 32 $half
                echo half=$(devmem $first 32) features=$(devmem $((first + 4)) 32)
            done
        fi
    done < $file
done
"""


@pytest.mark.needs("high-mmio")
def test_registers_of_devices_above_512_gib(boot: Boot, script: Callable[[str], Path]) -> None:
    result = boot(script=script(REGISTERS)).must_be_ok()
    above, *lines = result.checks.script_output.splitlines()
    assert above.startswith("above=0x"), result.checks.script_output
    first, second, third = lines
    assert first == third != second
    assert first.startswith("half=0x00000000 ") and second.startswith("half=0x00000001 ")
    assert "features=0xFFFFFFFF" not in first + second
    assert result.exits["nested-fault"] >= 1, "it was mapped on demand"
    assert [line.text() for line in result.log if line.level in ("error", "warn")] == []


@pytest.mark.slow
@pytest.mark.needs("svm", "fast")
@pytest.mark.parametrize("bits", [36, 39, 46])
def test_physical_address_widths(boot: Boot, bits: int) -> None:
    result = boot(cpu_model=f"EPYC,+svm,+npt,+vgif,-monitor,phys-bits={bits}").must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    assert [line.text() for line in result.log if line.level in ("error", "warn")] == []


@pytest.mark.everywhere
def test_a_default_type_that_came_unseen_is_followed(boot: Boot, platform: str) -> None:
    """Behind CPUID, and where no exit comes, when the timer has run off; the same type again is nothing to follow."""
    result = boot(cpus=1, application=build.ensure_built("DEBUG").folder / "HvMtrr.efi").must_be_ok()
    assert result.application is not None
    match = re.search(r"def-type=(\w+) other=(\w+) result=Success", result.application.output)
    assert match is not None, result.application.output
    followed = [int(line.fields["def-type"], 16) for line in result.log if line.event == "memory-types"]
    vendor = platform_named(platform).vendor
    types = [int(match[2], 16), int(match[1], 16)]
    assert followed == (2 * types if vendor == "vmx" else [])
    assert result.exits["timer"] == (1 if vendor == "vmx" else 0)
    assert [line.text() for line in result.log if line.level in ("error", "warn")] == []

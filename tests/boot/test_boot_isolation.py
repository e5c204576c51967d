# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the root must not get: the hypervisor's memory, and what would hand over the machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot.result import BootResult
from hvtools.guest.build import program

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor")

INSTRUCTIONS = 22


def image(name: str) -> Path:
    return build.ensure_built("DEBUG").folder / name


def printed(result: BootResult, pattern: str) -> list[tuple[str, ...]]:
    assert result.application is not None
    return [match.groups() for match in re.finditer(pattern, result.application.output)]


@pytest.mark.everywhere
def test_host_memory_reads_as_ones_and_keeps_its_contents(boot: Boot) -> None:
    result = boot(application=image("HvReservedProbe.efi"), timeout=300).must_be_ok()
    ((size, reads, writes),) = printed(result, r"bytes=(\d+) reads=(\d+) writes=(\d+) bad=0")
    assert reads == size and int(size) > 256 * 1024
    assert result.exits["host-memory"] >= int(writes) > 0, result.report()


@pytest.mark.parametrize("largest", ["4k", "2m"])
def test_host_memory_in_smaller_pages(boot: Boot, largest: str) -> None:
    settings = {"nested_page": largest}
    boot(application=image("HvReservedProbe.efi"), settings=settings, timeout=300).must_be_ok()


@pytest.mark.everywhere
def test_what_would_hand_over_the_machine_is_refused(boot: Boot) -> None:
    result = boot(application=image("HvPolicyProbe.efi")).must_be_ok()
    ((checks, bad),) = printed(result, r"checks=(\d+) bad=(\d+)")
    assert int(checks) > 100 and bad == "0"
    # The same on the machine itself, whose root mode nobody has switched on.
    bare = boot(application=image("HvPolicyProbe.efi"), hypervisor=False).must_be_ok()
    outcomes = [printed(run, r"instruction (\w+) vector=(\d+)") for run in (result, bare)]
    assert len(outcomes[0]) == INSTRUCTIONS and outcomes[0] == outcomes[1]


WRAP = """
set -e
for cpu in 0 1 2 3; do
    taskset -p $((1 << cpu)) $$ > /dev/null
    /add/eipwrap
done
taskset -p f $$ > /dev/null
hvcheck
"""


@pytest.mark.everywhere
def test_a_user_program_cannot_stop_the_machine_where_eip_wraps(boot: Boot, script: Callable[[str], Path]) -> None:
    added = {PurePosixPath("eipwrap"): program("eipwrap")}
    result = boot(cpus=4, script=script(WRAP), added=added).must_be_ok()
    output = result.checks.script_output
    assert output.count("signal=11 rip=0\n") == 4 and output.count("signature=HvPkgHvPkgHv") == 4, output

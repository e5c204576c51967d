# SPDX-License-Identifier: BSD-2-Clause-Patent
"""CPUID with the hypervisor and without, on the same machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.boot.cpuid_policy import Answers, as_documented

from hvtools.boot.result import BootResult

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor")

MAX_SUBLEAVES = 64
Leaves = dict[int, Answers]


def leaves(result: BootResult) -> Leaves:
    """What each processor says: by processor, then by leaf and subleaf."""
    found: Leaves = {}
    for line in result.checks.script_output.splitlines():
        match = re.fullmatch(r"leaf (\d+) (\w{8}) (\d+) (\w{8}) (\w{8}) (\w{8}) (\w{8})|.*", line)
        assert match is not None
        if match[1] is None:
            continue
        cpu, leaf, subleaf = int(match[1]), int(match[2], 16), int(match[3])
        found.setdefault(cpu, {})[leaf, subleaf] = tuple(int(match[n], 16) for n in range(4, 8))
    # The first processor leaves out what repeats, the others what the first has said.
    first = found[0]
    for leaf in {leaf for leaf, _ in first}:
        for subleaf in range(1, MAX_SUBLEAVES):
            first.setdefault((leaf, subleaf), first[leaf, subleaf - 1])
    return {cpu: first | own for cpu, own in found.items()}


def test_cpuid_differs_in_the_rows_of_the_table_alone(boot: Boot, script: Callable[[str], Path], platform: str) -> None:
    ask = script("hvcheck leaves\n")
    bare = leaves(boot(hypervisor=False, script=ask).must_be_ok())
    under = leaves(boot(script=ask).must_be_ok())
    assert bare.keys() == under.keys() == {0, 1, 2, 3}
    for cpu, answers in under.items():
        assert answers.keys() == bare[cpu].keys()
        own = {key: value for key, value in answers.items() if key[0] >> 28 == 4}
        assert own.keys() and all(not any(value) for (leaf, _), value in own.items() if leaf > 0x40000002)
        assert own[0x40000001, 0][3] == cpu
        wrong = {
            (hex(leaf), subleaf): (bare[cpu][leaf, subleaf], value)
            for (leaf, subleaf), value in answers.items()
            if leaf >> 28 != 4 and value != as_documented(leaf, subleaf, bare[cpu])
        }
        assert wrong == {}, f"cpu {cpu} of {platform}"

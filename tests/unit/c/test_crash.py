# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvCrashLib: only a complete record of a crash, where it says it is, is one."""

import random
from typing import Any

import pytest

from tests.unit.c.host import HostLibrary

ADDRESS = 0x1E200000


def sealed(hv: HostLibrary, **fields: int) -> Any:  # noqa: ANN401
    record = hv.ffi.new("HV_CRASH_RECORD *")
    numbers = random.Random(4)
    content = numbers.randbytes(hv.ffi.sizeof("HV_CRASH_RECORD"))
    hv.ffi.buffer(record)[:] = content
    record.Signature = hv.constants["HV_CRASH_SIGNATURE"]
    record.Self = ADDRESS
    record.Claimed = 1
    record.StackWords = hv.constants["HV_CRASH_STACK_WORDS"]
    for name, value in fields.items():
        setattr(record, name, value)
    hv.lib.HvCrashSeal(record)
    return record


def test_a_sealed_record_is_valid_at_its_address_alone(hv: HostLibrary) -> None:
    record = sealed(hv)
    assert hv.lib.HvCrashIsValid(record, ADDRESS)
    assert not hv.lib.HvCrashIsValid(record, ADDRESS + 4096)
    assert hv.ffi.sizeof("HV_CRASH_RECORD") <= 4096, "one page"


def test_each_byte_counts(hv: HostLibrary) -> None:
    record = sealed(hv)
    memory = hv.ffi.buffer(record)
    for index in range(len(memory)):
        kept = memory[index]
        memory[index] = bytes([kept[0] ^ 0x10])
        assert not hv.lib.HvCrashIsValid(record, ADDRESS), index
        memory[index] = kept
    assert hv.lib.HvCrashIsValid(record, ADDRESS)


@pytest.mark.parametrize("fields", [{"Claimed": 0}, {"Claimed": 2}, {"Signature": 0}, {"StackWords": 65}])
def test_what_no_crash_wrote_is_none(hv: HostLibrary, fields: dict[str, int]) -> None:
    assert not hv.lib.HvCrashIsValid(sealed(hv, **fields), ADDRESS)


def test_empty_memory_is_none(hv: HostLibrary) -> None:
    assert not hv.lib.HvCrashIsValid(hv.ffi.new("HV_CRASH_RECORD *"), 0)

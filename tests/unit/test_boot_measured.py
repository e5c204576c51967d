# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Logs of what was measured into a TPM, made here, and read by tpm2_eventlog."""

from __future__ import annotations

import hashlib
import struct

import pytest

from hvtools import toolchain
from hvtools.boot.checks import CheckReport
from hvtools.boot.measured import judge, read_event_log
from hvtools.errors import HvError

SHA256, NO_ACTION, SEPARATOR, DRIVER = 0xB, 3, 4, 0x80000004
IMAGE = hashlib.sha256(b"HvDxe").hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _reader() -> None:
    toolchain.require("tpm")


def log(events: list[tuple[int, int, str]]) -> bytes:
    """TCG PC Client Platform Firmware Profile 1.05, 10.2 and 10.4.5.1: events as (register, type, digest)."""
    identity = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, SHA256, 32, 0)
    content = struct.pack("<II20sI", 0, NO_ACTION, b"", len(identity)) + identity
    for register, kind, digest in events:
        data = bytes(4) if kind == SEPARATOR else struct.pack("<QQQQ", 0x1000, 0x2000, 0, 0)
        content += struct.pack("<IIIH", register, kind, 1, SHA256) + bytes.fromhex(digest)
        content += struct.pack("<I", len(data)) + data
    return content


EVENTS = [(2, SEPARATOR, hashlib.sha256(bytes(4)).hexdigest()), (2, DRIVER, IMAGE)]


def extended(*digests: str) -> str:
    """TPM 2.0 Library Part 1, 17.3: a register is the digest of what it was and of what it gets."""
    value = bytes(32)
    for digest in digests:
        value = hashlib.sha256(value + bytes.fromhex(digest)).digest()
    return value.hex()


GOOD = {2: extended(*(digest for _, _, digest in EVENTS))}


def test_events_and_registers_are_read() -> None:
    found = read_event_log(log(EVENTS))
    assert [(event.register, event.digest) for event in found.events] == [(2, digest) for _, _, digest in EVENTS]
    assert found.events[1].kind == "EV_EFI_BOOT_SERVICES_DRIVER"
    assert found.registers == GOOD


@pytest.mark.parametrize(
    ("measured", "registers", "digest", "said"),
    [
        (log(EVENTS), GOOD, IMAGE, None),
        (log(EVENTS), GOOD, None, None),
        (log(EVENTS), {2: extended(IMAGE)}, IMAGE, "register 2 of the TPM is not what"),
        (log(EVENTS[:1]), {2: extended(EVENTS[0][2])}, IMAGE, "HvDxe is not in the log"),
        (log(EVENTS), {}, IMAGE, "registers of the TPM cannot be read"),
        (b"", GOOD, IMAGE, "has no log of what was measured"),
        (b"nonsense", GOOD, IMAGE, "cannot be read"),
    ],
)
def test_a_log_is_judged(measured: bytes, registers: dict[int, str], digest: str | None, said: str | None) -> None:
    found = judge(CheckReport(registers=registers, measured=measured), digest)
    if said is None:
        assert found.failures == ()
        assert (found.hypervisor is None) == (digest is None)
    else:
        (failure,) = found.failures
        assert said in failure and "\n" not in failure


def test_what_is_no_log_is_one_line() -> None:
    with pytest.raises(HvError, match="cannot be read: ") as raised:
        read_event_log(b"nonsense")
    assert "\n" not in str(raised.value)

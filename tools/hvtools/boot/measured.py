# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What firmware and kernel measured into a TPM: the event log, read by tpm2_eventlog."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from hvtools.boot.checks import CheckReport
from hvtools.errors import HvError

READER = "tpm2_eventlog"
_BANK = "sha256"


@dataclass(frozen=True)
class Event:
    """One event of the log.

    Attributes:
        register: index of the register that it went into.
        kind: the event's type, as the TCG PC Client Platform Firmware Profile names it.
        digest: what the register was extended with, SHA-256 in hexadecimal.
    """

    register: int
    kind: str
    digest: str


@dataclass(frozen=True)
class EventLog:
    """A log, and the registers that it must have led to, by their index, SHA-256 in hexadecimal."""

    events: tuple[Event, ...]
    registers: Mapping[int, str]


def read_event_log(content: bytes) -> EventLog:
    """Read a log in the TCG's format.

    Raises:
        HvError: it is none.
    """
    with tempfile.NamedTemporaryFile(prefix="hv-measured-") as file:
        file.write(content)
        file.flush()
        result = subprocess.run([READER, file.name], stdin=subprocess.DEVNULL, capture_output=True)
    if result.returncode != 0:
        said = result.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise HvError(f"the log of what was measured cannot be read: {said[-1]}")
    told = yaml.safe_load(result.stdout)
    events = []
    for event in told["events"]:
        for digest in event.get("Digests", ()):
            if digest["AlgorithmId"] == _BANK:
                events.append(Event(event["PCRIndex"], event["EventType"], str(digest["Digest"]).lower()))
    registers = {int(index): f"{value:064x}" for index, value in told["pcrs"][_BANK].items()}
    return EventLog(tuple(events), registers)


@dataclass(frozen=True)
class Measured:
    """What a TPM got.

    Attributes:
        hypervisor: the event of HvDxe, None where it is not in the log.
        failures: what is wrong, one line each.
    """

    hypervisor: Event | None
    failures: tuple[str, ...]


def judge(checks: CheckReport, digest: str | None) -> Measured:
    """Compare the log with the TPM's registers, and look for HvDxe in it.

    Args:
        checks: what the self-check printed.
        digest: of HvDxe; None where no file of ours is to be in the log.
    """
    if not checks.measured:
        return Measured(None, ("the root kernel has no log of what was measured",))
    try:
        log = read_event_log(checks.measured)
    except HvError as error:
        return Measured(None, (str(error),))
    failures = [
        f"register {index} of the TPM is not what the log of what was measured leads to"
        for index, value in sorted(log.registers.items())
        if index in checks.registers and checks.registers[index] != value
    ]
    if not checks.registers:
        failures.append("the registers of the TPM cannot be read")
    found = next((event for event in log.events if event.digest == digest), None)
    if digest is not None and found is None:
        failures.append("HvDxe is not in the log of what was measured")
    return Measured(found, tuple(failures))

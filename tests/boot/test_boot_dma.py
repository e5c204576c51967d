# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A device that does DMA to the hypervisor's memory: what arrives, and what the log and the status say about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import BootStrategy, State
from hvtools.machines.live import live_memory

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Session

pytestmark = pytest.mark.needs("hypervisor", "devices")

EDU = "edu,dma_mask=0xffffffffff"
IOMMUS = ("intel-iommu", "amd-iommu")
NAMES = {"intel-iommu": "vt-d", "amd-iommu": "amd-vi"}
OS = "off: the operating system owns the IOMMU"


def check(boot: Boot, iommu: str | None, settings: dict[str, str], said: str) -> tuple[str, ...]:
    """Boot, compare what is said of the protection, and give whether a write and a read arrived."""
    program = build.ensure_built("DEBUG").folder / "HvDmaProbe.efi"
    devices = (EDU,) if iommu is None else (iommu, EDU)
    result = boot(cpus=2, application=program, devices=devices, settings=settings).must_be_ok()
    assert result.application is not None
    match = re.search(r"write-arrived=(\d) read-arrived=(\d)", result.application.output)
    assert match is not None, result.report()
    (event,) = [line for line in result.log if line.event == "dma"]
    assert event.fields["protection"] == said.split(":")[0]
    assert event.fields["iommu"] == ("none" if iommu is None else NAMES[iommu])
    assert result.checks.status is not None and result.checks.status.dma == said
    assert result.as_json()["dma_protection"] == said
    return tuple(match.groups())


def hidden_tables(strategy: BootStrategy, signature: str) -> list[int]:
    """Where in memory ACPI tables are that no longer have this signature, by their length and checksum."""
    memory = live_memory(strategy.machine.spec.folder)
    assert memory is not None
    content = memory.read(0, 512 << 20)
    found = []
    for match in re.finditer(re.escape(b"X" + signature[1:].encode()), content):
        length = int.from_bytes(content[match.end() :][:4], "little")
        if 48 < length < 4096 and sum(content[match.start() :][:length]) % 256 == 0:
            found.append(match.start())
    return found


@pytest.mark.parametrize("iommu", IOMMUS)
def test_with_an_iommu_neither_write_nor_read_arrives(boot: Boot, iommu: str) -> None:
    assert check(boot, iommu, {}, "on") == ("0", "0")


@pytest.mark.parametrize("iommu", [IOMMUS[0], pytest.param(IOMMUS[1], marks=pytest.mark.slow)])
def test_an_iommu_that_is_left_to_the_operating_system_is_said(boot: Boot, iommu: str) -> None:
    assert check(boot, iommu, {"dma": "off"}, OS) == ("1", "1")


@pytest.mark.slow
def test_a_machine_without_an_iommu_is_said(boot: Boot) -> None:
    assert check(boot, None, {}, "off: no IOMMU") == ("1", "1")


@pytest.mark.slow
@pytest.mark.parametrize("iommu", IOMMUS)
def test_linux_boots_and_does_not_find_the_iommu(boot: Boot, script: Callable[[str], Path], iommu: str) -> None:
    tables = script("ls /sys/firmware/acpi/tables /sys/class/iommu\n")
    result = boot(devices=(iommu,), script=tables, append="intel_iommu=on").must_be_ok()
    assert result.checks.status is not None and result.checks.status.dma == "on"
    found = set(result.checks.script_output.split())
    assert "FACP" in found and not found & {"DMAR", "IVRS", "dmar0", "ivhd0"}


@pytest.mark.slow
@pytest.mark.parametrize("iommu", IOMMUS)
def test_unloading_gives_the_iommu_back(session: Session, iommu: str) -> None:
    table = {"intel-iommu": "DMAR", "amd-iommu": "IVRS"}[iommu]
    with session(cpus=2, devices=(iommu,)) as strategy:
        strategy.transition(State.HYPERVISOR)
        shell = EfiShell(strategy)
        assert hidden_tables(strategy, table)
        (handle,) = re.findall(r"^\s*([0-9A-F]+): .*HvDxe", shell.must("dh -p LoadedImage"), re.MULTILINE)
        shell.must(f"unload -n {handle}")
        assert not hidden_tables(strategy, table)

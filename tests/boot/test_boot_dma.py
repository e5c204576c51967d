# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A device that does DMA to the hypervisor's memory: what arrives, and what the log and the status say about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.boot.result import BootResult

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = pytest.mark.needs("hypervisor", "devices")

EDU = "edu,dma_mask=0xffffffffff"
OS = "off: the IOMMU is left to the operating system"


def check(boot: Boot, iommu: tuple[str, ...], settings: dict[str, str], arrives: str, said: str) -> BootResult:
    program = build.ensure_built("DEBUG").folder / "HvDmaProbe.efi"
    result = boot(cpus=2, application=program, devices=(*iommu, EDU), settings=settings).must_be_ok()
    assert result.application is not None
    match = re.search(r"write-arrived=(\d) read-arrived=(\d)", result.application.output)
    assert match is not None and match.groups() == (arrives, arrives), result.report()
    (event,) = [line for line in result.log if line.event == "dma"]
    assert event.fields["protection"] == said.split(":")[0]
    assert result.checks.status is not None and result.checks.status.dma == said
    assert result.as_json()["dma_protection"] == said
    return result


def test_with_an_iommu_neither_write_nor_read_arrives(boot: Boot) -> None:
    check(boot, ("intel-iommu",), {}, "0", "on")


@pytest.mark.parametrize(
    ("iommu", "settings", "said"),
    [
        ((), {}, "off: no IOMMU"),
        (("intel-iommu",), {"dma": "off"}, OS),
        pytest.param(("amd-iommu",), {}, OS, marks=pytest.mark.slow),
    ],
    ids=["none", "vt-d", "amd-vi"],
)
def test_without_protection_it_is_said(boot: Boot, iommu: tuple[str, ...], settings: dict[str, str], said: str) -> None:
    check(boot, iommu, settings, "1", said)


def test_linux_boots_and_does_not_find_the_iommu(boot: Boot, script: Callable[[str], Path]) -> None:
    tables = script("ls /sys/firmware/acpi/tables\n")
    protected = boot(devices=("intel-iommu",), script=tables).must_be_ok()
    assert protected.checks.status is not None and protected.checks.status.dma == "on"
    assert "DMAR" not in protected.checks.script_output.split()
    assert "FACP" in protected.checks.script_output.split()

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""OVMF with HvDxe inside: nothing is loaded from the disk, and every processor is under it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools import build
from hvtools.images.variables import write_options

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = [pytest.mark.needs("hypervisor"), pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.everywhere
@pytest.mark.parametrize("target", build.TARGETS)
@pytest.mark.parametrize("size", [2, 4])
def test_linux_starts_under_the_firmware(boot: Boot, size: int, target: str) -> None:
    image = build.ovmf_image(target, size)
    assert image.stat().st_size == size << 20
    result = boot(firmware=image, built_in=True, target=target).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    starts = [line for line in result.log if line.event == "start"]
    assert [line.fields["build"] for line in starts] == [target]


@pytest.mark.parametrize("pages", ["4k", "2m"])
def test_options_come_from_the_image(boot: Boot, tmp_path: Path, pages: str) -> None:
    image = Path(shutil.copyfile(build.ovmf_image(), tmp_path / "OVMF.fd"))
    write_options(image, {"nested_page": pages})
    result = boot(firmware=image, built_in=True).must_be_ok()
    assert result.checks.status is not None
    assert max(result.checks.status.page_sizes, key=["4k", "2m", "1g"].index) == pages


def test_a_bad_option_is_reported_and_ignored(boot: Boot, tmp_path: Path) -> None:
    image = Path(shutil.copyfile(build.ovmf_image(), tmp_path / "OVMF.fd"))
    write_options(image, {"nested_page": "3k", "log": "debug"})
    result = boot(firmware=image, built_in=True).must_be_ok()
    bad = [line for line in result.log if line.event == "option-bad"]
    assert [line.fields["name"] for line in bad] == ["nested_page"]
    assert [line.fields["name"] for line in result.log if line.event == "option"] == ["log"]


def test_without_svm_the_reason_is_named(boot: Boot) -> None:
    """A firmware that cannot virtualise says why, and Linux starts without it."""
    result = boot(firmware=build.ovmf_image(), built_in=True, cpu_model="qemu64,-svm")
    assert not result.ok
    assert result.virtualised == []
    assert result.checks.online == 4
    assert any(re.search("firmware did not virtualise: .*svm", failure) for failure in result.failures)

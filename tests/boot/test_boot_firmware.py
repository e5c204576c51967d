# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvDxe started without the shell: from inside the firmware, and by the boot program of a USB stick."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build, flash, linux, toolchain
from hvtools.boot.checks import parse_kernels
from hvtools.boot.hvlog import parse_log
from hvtools.boot.request import BootRequest
from hvtools.boot.runner import booting
from hvtools.boot.startup import KERNEL_COMMAND
from hvtools.boot.strategy import State
from hvtools.flash import Chip
from hvtools.generated.options import GUID, VARIABLE
from hvtools.guest.build import self_check
from hvtools.images import disk
from hvtools.images.initramfs import build_initramfs
from hvtools.images.variables import write_options
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot

pytestmark = [pytest.mark.needs("hypervisor"), pytest.mark.timeout(3600)]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.needs("variables")
@pytest.mark.parametrize("pages", ["4k", "2m"])
def test_options_come_from_the_image(boot: Boot, tmp_path: Path, pages: str) -> None:
    image = Path(shutil.copyfile(build.ovmf_image(), tmp_path / "OVMF.fd"))
    write_options(image, {"nested_page": pages})
    result = boot(firmware=image, built_in=True).must_be_ok()
    assert result.checks.status is not None
    assert max(result.checks.status.page_sizes, key=["4k", "2m", "1g"].index) == pages


@pytest.mark.slow
@pytest.mark.needs("variables")
def test_a_bad_option_is_reported_and_ignored(boot: Boot, tmp_path: Path) -> None:
    image = Path(shutil.copyfile(build.ovmf_image(), tmp_path / "OVMF.fd"))
    write_options(image, {"nested_page": "3k", "log": "debug"})
    result = boot(firmware=image, built_in=True).must_be_ok()
    bad = [line for line in result.log if line.event == "option-bad"]
    assert [line.fields["text"] for line in bad] == ["nested_page"]
    assert [line.fields["name"] for line in result.log if line.event == "option"] == ["log"]


@pytest.mark.slow
@pytest.mark.parametrize("secure_boot", [False, True])
def test_stuart_boots_what_it_built(secure_boot: bool) -> None:
    """Its option --FlashRom, here without the build in front of it."""
    build.ovmf_image(secure_boot=secure_boot)
    product = build.ovmf(secure_boot=secure_boot)
    stuart = Path(sys.executable).parent / "stuart_build"
    done = subprocess.run(
        [stuart, "-c", product.settings, "TARGET=DEBUG", "TOOL_CHAIN_TAG=GCC5", *product.variables, "--FlashOnly"],
        cwd=build.ROOT,
        env=build._environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"CPUs virtualised +4 of 4", done.stdout), done.stdout
    assert secure_boot == ("Secure Boot" in done.stdout)


EFIVARFS = f"""
set -e
insmod /add/efivarfs.ko
mount -t efivarfs none /sys/firmware/efi/efivars
name=/sys/firmware/efi/efivars/{VARIABLE}-{GUID}
[ ! -e $name ] || exit 0
printf '\\007\\0\\0\\0nested_page=2m log=loud' > $name
reboot -f
"""


@pytest.mark.slow
@pytest.mark.needs("variables")
def test_options_that_linux_sets_count_from_the_next_start(
    platform: str, script: Callable[[str], Path], tmp_path: Path
) -> None:
    """In one machine: Linux writes the variable and restarts. What is wrong in it is said and has no effect."""
    kernel = linux.kernel()
    module = kernel.path.parents[1] / "lib" / "modules" / kernel.version / "kernel/fs/efivarfs/efivarfs.ko"
    request = BootRequest(
        platform=platform, script=script(EFIVARFS), added={PurePosixPath("efivarfs.ko"): module}, timeout=300
    )
    with booting(request, tmp_path / "logs", restart=True) as strategy:
        strategy.transition(State.ROOT)
        strategy.expect([re.compile(r"hvcheck: script-end exit=0")])
        strategy.expect([re.compile(r"hvcheck: done")])
        reports = parse_kernels(strategy.machine.console.text())
        log = parse_log(strategy.machine.hypervisor_log())
    sizes = [report.status.page_sizes for report in reports if report.status is not None]
    assert len(sizes) == 2
    assert "1g" in sizes[0] and "1g" not in sizes[1] and "2m" in sizes[1]
    events = [(line.event, line.fields.get("name", line.fields.get("text"))) for line in log]
    said = [event for event in events if event[0] in ("start", "option", "option-bad")]
    assert said == [("start", None), ("start", None), ("option", "nested_page"), ("option-bad", "log")]


@pytest.mark.slow
def test_without_virtualization_the_reason_is_named(boot: Boot, platform: str) -> None:
    """A firmware that cannot virtualise says why, and Linux starts without it."""
    offered = platform_named(platform)
    result = boot(firmware=build.ovmf_image(), built_in=True, cpu_model=offered.plain_cpu)
    assert not result.ok
    assert result.virtualised == []
    assert result.checks.online == 4
    assert any(re.search(f"firmware did not virtualise: .*{offered.vendor}", failure) for failure in result.failures)


def boot_disk(folder: Path, hypervisor: bool, kernel: bool) -> Path:
    """A disk whose boot program starts the kernel and initial RAM disk of an ordinary boot."""
    built = build.ensure_built("DEBUG").folder
    initrd = folder / "initrd.img"
    if kernel:
        build_initramfs(initrd, self_check(), linux.busybox(), None, {}, None)
    files = disk.starter(
        built / "HvStart.efi",
        built / "HvDxe.efi" if hypervisor else None,
        linux.kernel().path if kernel else None,
        initrd,
        " ".join(KERNEL_COMMAND),
    )
    image = folder / f"{'hv' if hypervisor else 'os'}.img"
    disk.build_disk(image, files)
    return image


@pytest.mark.needs("usb")
def test_a_usb_stick_is_the_only_disk(boot: Boot, tmp_path: Path) -> None:
    result = boot(disk=boot_disk(tmp_path, hypervisor=True, kernel=True)).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    assert "HvStart: HvDxe Success" in result.record.console


@pytest.mark.needs("usb")
def test_a_usb_stick_starts_what_is_installed(boot: Boot, tmp_path: Path) -> None:
    """The second disk's boot program finds no HvDxe of its own, and boots Linux: the first one's is there already."""
    stick = boot_disk(tmp_path, hypervisor=True, kernel=False)
    installed = boot_disk(tmp_path, hypervisor=False, kernel=True)
    result = boot(disk=stick, installed=installed).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    said = re.findall(r"HvStart: (HvDxe .*|Boot\w+)", result.record.console)
    assert said[0] == "HvDxe Success" and said[1].startswith("Boot") and said[2] == "HvDxe Not Found"


@pytest.mark.slow
def test_a_flashed_chip_boots(boot: Boot, tmp_path: Path) -> None:
    chip = tmp_path / "chip"
    chip.write_bytes(b"\xff" * (4 << 20))
    toolchain.require("flash")
    writer = Chip(f"dummy:emulate=SST25VF032B,image={chip}")
    flash.write(writer, build.ovmf_image(), tmp_path / "backup", None, None, lambda step: None)
    result = boot(firmware=chip, built_in=True).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Secure Boot: what is signed starts, what is not is refused and nothing else changes. And a TPM that measures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pefile
import pytest

from hvtools import build, linux
from hvtools.boot.startup import KERNEL_COMMAND
from hvtools.guest.build import self_check
from hvtools.images import disk, signing
from hvtools.images.initramfs import build_initramfs
from hvtools.images.signing import Keys

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Hv

pytestmark = [pytest.mark.needs("hypervisor", "secure-boot", "tpm"), pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return signing.keys_in(tmp_path_factory.mktemp("secure") / "keys")


def stick(folder: Path, keys: Keys, change: Callable[[Path, Path], Path]) -> Path:
    """A disk that is signed, and on it HvDxe as `change` makes it of the built one, in a folder."""
    built = build.ensure_built("DEBUG").folder
    initrd = folder / "initrd.img"
    build_initramfs(initrd, self_check(), linux.busybox(), None, {}, None)
    command = " ".join(KERNEL_COMMAND)
    files = disk.starter(built / "HvStart.efi", None, linux.kernel().path, initrd, command)
    image = folder / "stick.img"
    disk.build_disk(image, signing.signed(keys, files, folder) | {disk.DRIVER: change(built / "HvDxe.efi", folder)})
    return image


def test_linux_boots_signed_and_measured(boot: Boot) -> None:
    """The platform's own firmware keeps its variables by system management mode, so SMIs come in the guest, too."""
    result = boot(secure_boot=True, tpm=True).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    assert "HvStart: HvDxe Success" in result.record.console
    assert "Kernel is locked down from EFI Secure Boot" in result.record.console
    assert result.measured is not None and result.measured.hypervisor is not None
    event = result.measured.hypervisor
    # TCG PC Client Platform Firmware Profile 1.05, 3.3.4.3: drivers that are loaded from a disk
    assert (event.register, event.kind) == (2, "EV_EFI_BOOT_SERVICES_DRIVER")
    assert event.digest == signing.authenticode(build.ensure_built("DEBUG").folder / "HvDxe.efi")


def unsigned(image: Path, folder: Path) -> Path:
    return image


@pytest.fixture
def altered(keys: Keys) -> Callable[[Path, Path], Path]:
    """Signed, and then one bit of its code is another."""

    def change(image: Path, folder: Path) -> Path:
        path = folder / "HvDxe.efi"
        keys.sign(image, path)
        section = pefile.PE(str(path), fast_load=True).sections[0]
        content = bytearray(path.read_bytes())
        content[section.PointerToRawData + section.SizeOfRawData // 2] ^= 1
        path.write_bytes(content)
        return path

    return change


def foreign(image: Path, folder: Path) -> Path:
    """Signed with keys that the firmware does not have."""
    path = folder / "HvDxe.efi"
    signing.keys_in(folder / "foreign").sign(image, path)
    return path


@pytest.mark.parametrize("what", ["unsigned", "altered", pytest.param("foreign", marks=pytest.mark.slow)])
def test_what_is_not_signed_is_refused_and_linux_boots(
    boot: Boot, keys: Keys, altered: Callable[[Path, Path], Path], tmp_path: Path, what: str
) -> None:
    change = {"unsigned": unsigned, "altered": altered, "foreign": foreign}[what]
    result = boot(disk=stick(tmp_path, keys, change), secure_boot=True, keys=keys.folder)
    assert result.failures == ["HvDxe was not started: Access Denied: Secure Boot refuses its signature"]
    assert result.record.log == "", "not one instruction of it ran"
    assert result.checks.done and result.checks.online == 4 and result.virtualised == []


@pytest.mark.slow
@pytest.mark.parametrize("tpm", [False, True])
def test_with_hvdxe_in_the_firmware_the_disk_has_to_be_signed(boot: Boot, tpm: bool) -> None:
    image = build.ovmf_image(secure_boot=True)
    result = boot(firmware=image, built_in=True, secure_boot=True, tpm=tpm).must_be_ok()
    assert result.virtualised == [0, 1, 2, 3]
    assert "HvStart: HvDxe Not Found" in result.record.console
    assert (result.measured is not None) == tpm


@pytest.mark.slow
def test_a_tpm_without_secure_boot(boot: Boot) -> None:
    result = boot(tpm=True).must_be_ok()
    assert result.measured is not None and result.measured.hypervisor is not None
    assert result.measured.hypervisor.register == 2
    assert result.checks.status is not None, "the kernel is not locked down: the counters can be read"


@pytest.mark.slow
def test_a_firmware_that_checks_nothing_is_found_out(boot: Boot) -> None:
    """Keys alone do not help where the firmware was built without the code for them."""
    result = boot(firmware=build.ovmf_image(), built_in=True, secure_boot=True)
    assert [re.sub(":.*", "", failure) for failure in result.failures] == ["the firmware does not check signatures"]


@pytest.mark.slow
@pytest.mark.needs("usb")
def test_a_signed_stick_from_the_command_line(hv: Hv, tmp_path: Path) -> None:
    """As the manual says it: `hv image --keys`, and a boot with the same keys; with others nothing is started."""
    initrd = tmp_path / "initrd.img"
    build_initramfs(initrd, self_check(), linux.busybox(), None, {}, None)
    kernel = ["--kernel", str(linux.kernel().path), "--initrd", str(initrd), "--append", " ".join(KERNEL_COMMAND)]
    assert hv("image", "stick.img", "--keys", "keys", *kernel).returncode == 0
    secure = ["--target", "RELEASE", "--disk", "stick.img", "--secure-boot"]
    good = hv("boot", *secure, "--keys", "keys")
    assert good.returncode == 0, good.stderr
    bad = hv("boot", *secure, "--keys", "others", "--timeout", "60")
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr

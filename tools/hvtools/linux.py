# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The Linux that is booted: Debian's cloud kernel and its static busybox, unpacked in the cache, never installed.

The newest version that the archive has when it is first asked for is noted in the cache with its SHA-256, and used
from then on without asking again.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hvtools import apt, cache, ui
from hvtools.errors import HvError, NotThereError

SUITE = "bookworm"
META_PACKAGE = "linux-image-cloud-amd64"
_KERNEL = re.compile(r"\blinux-image-(\d[\w.]*-\d+-cloud-amd64)\b")


@dataclass(frozen=True)
class KernelFiles:
    """A kernel that can be booted."""

    path: Path
    """The kernel, an EFI program as well."""
    config: Path
    """Its configuration."""
    version: str
    """What `uname -r` will say."""
    package: apt.Package
    """Where it comes from."""


def _pinned(name: str) -> apt.Package | None:
    noted = cache.default().pin(name)
    try:
        return apt.Package(**noted) if noted else None
    except TypeError:
        return None


def _pin(name: str, package: apt.Package) -> apt.Package:
    value = {"name": package.name, "version": package.version, "sha256": package.sha256}
    cache.default().set_pin(name, value)
    return apt.Package(**value)


def _tree_key(package: apt.Package) -> str:
    return cache.key_of("deb", package.sha256)


def _resolve_kernel(archive: apt.Archive) -> apt.Package:
    """The kernel package that the meta package stands for today."""
    meta = archive.package(META_PACKAGE)
    match = _KERNEL.search(meta.depends)
    if match is None:
        raise HvError(f"{META_PACKAGE} {meta.version} names no kernel package: {meta.depends!r}")
    return archive.package(match[0])


def _unpacked(pin: str, check: tuple[str, ...]) -> tuple[apt.Package, Path]:
    """The package behind a pin, and the folder in which it is unpacked.

    Args:
        pin: `kernel` or a package's name.
        check: glob patterns of the files that are compared with their checksums at every use.
    """
    store = cache.default()
    archive = apt.Archive(store, SUITE, "deb")

    def resolve() -> apt.Package:
        return _pin(pin, _resolve_kernel(archive) if pin == "kernel" else archive.package(pin))

    def unpacked(package: apt.Package) -> Path:
        def make(folder: Path) -> None:
            with ui.step(f"fetching {package.name} {package.version}"):
                deb = store.fetch(package.sha256, f"{package.name}.deb", lambda into: archive.download(package, into))
            result = subprocess.run(
                ["dpkg-deb", "-x", str(deb), str(folder)], stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            if result.returncode != 0:
                raise apt.failure(f"unpacking {package.name}", result.stderr)

        return store.tree(_tree_key(package), package.name, make, check)

    package = _pinned(pin) or resolve()
    try:
        return package, unpacked(package)
    except NotThereError:
        # The archive keeps only the newest versions; the file of the noted one is lost.
        newer = resolve()
        if newer.version == package.version:
            raise
        ui.warn(f"{package.name} {package.version} is not in the archive any more: taking {newer.version}")
        return newer, unpacked(newer)


def kernel() -> KernelFiles:
    """The pinned Debian cloud kernel; fetched at the first use."""
    package, folder = _unpacked("kernel", ("boot/*",))
    version = package.name.removeprefix("linux-image-")
    return KernelFiles(folder / "boot" / f"vmlinuz-{version}", folder / "boot" / f"config-{version}", version, package)


def find() -> str | None:
    """The version of the kernel that is noted and in the cache, None where it has yet to be fetched."""
    package = _pinned("kernel")
    if package is None or cache.default().find(_tree_key(package)) is None:
        return None
    return package.name.removeprefix("linux-image-")


def busybox() -> Path:
    """The static busybox; fetched at the first use."""
    _, folder = _unpacked("busybox-static", ("bin/busybox",))
    return folder / "bin" / "busybox"


def headers() -> Path:
    """The headers of the pinned kernel, which tests compare our numbers with; fetched at the first use."""
    name = f"linux-headers-{kernel().version.removesuffix('-cloud-amd64')}-common"
    _, folder = _unpacked(name, ("usr/src/*/arch/x86/include/asm/*.h",))
    return folder / "usr" / "src" / name

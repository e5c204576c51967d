# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Disk images that start any UEFI machine into HvDxe, and real disks that they are written to."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from hvtools.errors import HvError, UsageError
from hvtools.images.fat import build_volume, output_of, tool
from hvtools.images.files import check_room, human_size, written_whole

START = PurePosixPath("EFI/BOOT/BOOTX64.EFI")
"""Where firmware looks on a removable disk (UEFI 2.10, 3.5.1.1)."""
FOLDER = PurePosixPath("EFI/HvPkg")
DRIVER = FOLDER / "HvDxe.efi"
COMMAND = FOLDER / "command"
COMMAND_MAX = 2047  # HvStart.c reads so much, with the line end
KERNEL = FOLDER / "vmlinuz.efi"
INITRD = FOLDER / "initrd.img"

_MIB = 1 << 20
_SECTOR = 512
_SYSTEM_PARTITION = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EF")  # UEFI 2.10, 5.3.3 and 5.2.2
_FRAME = _MIB  # before the partition, where disks want it aligned, and behind it, for the second table
_PIECE = 4 * _MIB
_BLKFLSBUF = 0x1261  # linux/fs.h: what is cached of a block device is written and forgotten

Progress = Callable[[int], None]


def starter(
    start: Path, hypervisor: Path | None, kernel: Path | None, initrd: Path | None, append: str
) -> dict[PurePosixPath, Path | bytes]:
    """List the files of a disk that starts HvDxe, and then a kernel or what the machine boots anyway.

    Args:
        start: HvStart.efi.
        hypervisor: HvDxe.efi, None where it is in the firmware, or not wanted.
        kernel: EFI-stub kernel, None for the machine's own boot loader.
        initrd: its initial RAM disk.
        append: its command line.

    Raises:
        UsageError: the command line is too long, or has characters that are not ASCII.
    """
    files: dict[PurePosixPath, Path | bytes] = {START: start}
    if hypervisor is not None:
        files[DRIVER] = hypervisor
    if kernel is None:
        return files
    files[KERNEL] = kernel
    words = ["\\" + str(KERNEL).replace("/", "\\")]
    if initrd is not None:
        files[INITRD] = initrd
        words.append("initrd=\\" + str(INITRD).replace("/", "\\"))
    line = " ".join([*words, append.strip()]).strip()
    if not line.isascii() or not line.isprintable() or len(line) > COMMAND_MAX:
        raise UsageError(f"--append: must be printable ASCII, {COMMAND_MAX} characters with the kernel's name")
    files[COMMAND] = f"{line}\n".encode("ascii")
    return files


def build_disk(image: Path, files: Mapping[PurePosixPath, Path | bytes], size: int | None = None) -> None:
    """Make a disk image: a GUID partition table and one EFI system partition with `files`.

    Args:
        image: the file to make; it is replaced if it is there.
        files: paths on the partition, and where the contents are, or the contents.
        size: bytes of the disk, whole MiB; None for what the files need.

    Raises:
        UsageError: the files do not fit, or a name does not go on a FAT volume.
        HvError: a tool is missing or fails.
    """
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".hv-image-") as folder:
        volume = Path(folder) / "esp"
        build_volume(volume, files, size=None if size is None else size - 2 * _FRAME)
        total = volume.stat().st_size + 2 * _FRAME
        check_room(image.parent, total)
        with written_whole(image) as temporary:
            os.truncate(temporary, total)
            count = volume.stat().st_size // _SECTOR
            table = f"label: gpt\nstart={_FRAME // _SECTOR}, size={count}, type=U, name=HvPkg\n"
            tool("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", temporary, contents=table.encode())
            with volume.open("rb") as source, temporary.open("r+b") as target:
                target.seek(_FRAME)
                while piece := source.read(_PIECE):
                    target.write(piece)


def check_bootable(image: Path) -> None:
    """Refuse an image that no firmware boots from by itself.

    Args:
        image: of a disk, or of one FAT volume.

    Raises:
        UsageError: it has no EFI system partition, or no boot program there.
    """
    offsets = _system_partitions(image)
    if not offsets:
        raise UsageError(f"{image} has no EFI system partition")
    if not any(_has_file(image, offset, START) for offset in offsets):
        raise UsageError(f"{image} has no {START} on its EFI system partition")


def _system_partitions(image: Path) -> list[int]:
    """Give where they begin, in bytes."""
    told = _output("sfdisk", "--json", image)
    table = {} if told is None else json.loads(told)["partitiontable"]
    parts = table.get("partitions", ())
    if not parts:
        return [0] if _output("mdir", "-i", image, "::/") is not None else []
    size = table.get("sectorsize", _SECTOR)
    return [part["start"] * size for part in parts if part["type"].upper() in _SYSTEM_PARTITION]


def _has_file(image: Path, offset: int, path: PurePosixPath) -> bool:
    return _output("mdir", "-i", f"{image}@@{offset}", f"::/{path}") is not None


def _output(*command: str | Path) -> bytes | None:
    try:
        return output_of(*command)
    except HvError:
        return None


def check_disk(device: Path, size: int, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> str:
    """Refuse a disk that must not be overwritten.

    Args:
        device: the device file.
        size: bytes that are to go onto it.
        sys: the kernel's view of devices.
        proc: and of what uses them.

    Returns:
        the disk in one line, for people.

    Raises:
        UsageError: it is no disk, too small, or in use.
    """
    try:
        found = device.stat()
    except OSError as error:
        raise UsageError(f"{device}: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise UsageError(f"{device} is not a disk")
    entry = (sys / "dev" / "block" / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}").resolve()
    described = check_entry(device, entry, size, proc)
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        # A container sees its own mounts only; the kernel knows of all (open(2), O_EXCL of a block device).
        what = "is in use" if error.errno == errno.EBUSY else "cannot be read"
        raise UsageError(f"{device} {what}: {error.strerror}") from error
    return described


def check_entry(device: Path, entry: Path, size: int, proc: Path) -> str:
    """Do the part of `check_disk` that reads the kernel's files: `entry` is the disk's folder."""
    if (entry / "partition").exists():
        raise UsageError(f"{device} is a partition: name the whole disk, {entry.parent.name}")
    try:
        sectors, read_only = int((entry / "size").read_text()), int((entry / "ro").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{device}: the kernel does not tell what it is") from error
    if read_only:
        raise UsageError(f"{device} is write-protected")
    if sectors * _SECTOR < size:
        raise UsageError(f"{device} has {human_size(sectors * _SECTOR)}: the image has {human_size(size)}")
    parts = [entry, *(part.parent for part in entry.glob("*/partition"))]
    numbers = {(part / "dev").read_text().strip(): part.name for part in parts}
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] in numbers:
            raise UsageError(f"{device} is in use: {numbers[fields[2]]} is mounted at {fields[4]}")
    for line in (proc / "swaps").read_text().splitlines()[1:]:
        if Path(line.split()[0]).name in numbers.values():
            raise UsageError(f"{device} is in use: {line.split()[0]} is swap space")
    for part in parts:
        if any((part / "holders").iterdir()):
            raise UsageError(f"{device} is in use: {part.name} belongs to another device (LVM, RAID or encryption)")
    model = entry / "device" / "model"
    name = model.read_text().strip() if model.is_file() else "no model name"
    removable = (entry / "removable").read_text().strip() == "1"
    return f"{device}: {name}, {human_size(sectors * _SECTOR)}, {'removable' if removable else 'not removable'}"


def write_disk(image: Path, device: Path, progress: Progress = lambda done: None) -> None:
    """Write an image to a disk, and read it back.

    Args:
        image: the image.
        device: the disk, already checked.
        progress: called with the number of bytes written and compared so far.

    Raises:
        HvError: the disk cannot be written, or has something else on it afterwards.
    """
    try:
        handle = os.open(device, os.O_RDWR | os.O_EXCL)  # on a block device: fails if somebody mounts it meanwhile
    except OSError as error:
        raise HvError(f"{device} cannot be written: {error.strerror}") from error
    done = 0
    sums = hashlib.sha256(), hashlib.sha256()
    try:
        with image.open("rb") as source, os.fdopen(handle, "r+b", buffering=0) as target:
            while piece := source.read(_PIECE):
                sums[0].update(piece)
                view = memoryview(piece)
                while view:
                    view = view[target.write(view) :]
                done += len(piece)
                progress(done)
            os.fsync(target.fileno())
            if stat.S_ISBLK(os.fstat(target.fileno()).st_mode):
                fcntl.ioctl(target.fileno(), _BLKFLSBUF)
            target.seek(0)
            left = done
            while left and (piece := target.read(min(left, _PIECE))):
                sums[1].update(piece)
                left -= len(piece)
                progress(2 * done - left)
    except OSError as error:
        raise HvError(f"{device} was not written to its end: {error.strerror}; it has to be written again") from error
    if left or sums[0].digest() != sums[1].digest():
        raise HvError(f"{device} does not give back what was written to it: it is broken, or its size is forged")

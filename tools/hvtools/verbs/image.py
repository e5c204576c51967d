# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv image`: a disk that starts any UEFI machine into HvDxe."""

import sys
import tempfile
from pathlib import Path, PurePosixPath

import click
from rich.progress import Progress

from hvtools import build, report, toolchain, ui
from hvtools.boot.request import parse_added
from hvtools.errors import HvError, UsageError
from hvtools.images import disk, signing
from hvtools.images.fat import check_name
from hvtools.images.files import human_size

_FILE = click.Path(path_type=Path)
_MIB = 1 << 20


@click.command(
    "image",
    epilog="""\b
Examples:
  hv image stick.img                              HvDxe, then what the machine boots anyway
  hv image stick.img --write /dev/sdX             the same, and onto a USB stick
  hv image stick.img --kernel vmlinuz --initrd initrd.img --append "root=/dev/sda2"
  hv image stick.img --keys keys                  for a machine with Secure Boot: enrol keys/db.cer there
  hv boot --disk stick.img                        try it""",
)
@click.argument("out", type=_FILE)
@click.option("--size", type=int, metavar="MIB", help="Size of the disk; default: what the files need.")
@click.option("--kernel", type=_FILE, metavar="F", help="EFI-stub kernel to start, instead of the machine's own boot.")
@click.option("--initrd", type=_FILE, metavar="F", help="Its initial RAM disk.")
@click.option("--append", default="", metavar="S", help="Its command line.")
@click.option("--add", "added", multiple=True, metavar="F[:DEST]", help="Further file on the EFI system partition.")
@click.option(
    "--target", type=click.Choice(build.TARGETS, case_sensitive=False), default="RELEASE", help="Build of HvDxe."
)
@click.option(
    "--keys", type=_FILE, metavar="DIR", help="For Secure Boot: sign what is started, with the keys of this folder."
)
@click.option("--write", "device", type=_FILE, metavar="DISK", help="Write the image to this disk, and verify it.")
@click.option("--yes", is_flag=True, help="Do not ask before writing to a disk.")
@report.json_option
def command(
    out: Path,
    size: int | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    added: tuple[str, ...],
    target: str,
    keys: Path | None,
    device: Path | None,
    yes: bool,
    json_file: Path | None,
) -> None:
    """Make OUT, a disk image with an EFI system partition that starts HvDxe and then the machine's own boot loader.

    With --kernel that kernel is started instead. --write puts it onto a real disk, of which nothing is left.
    """
    toolchain.require("boot")
    further = parse_added(added)
    if kernel is None and (initrd is not None or append):
        raise UsageError("--initrd and --append are for a kernel: give --kernel too")
    for path in (kernel, initrd, *further.values()):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} does not exist or is no file")
    if size is not None and size <= 0:
        raise UsageError("--size must be more than 0 MiB")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"the folder {out.absolute().parent} does not exist")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is no file: to write to a disk, name it with --write")
    if device is not None:
        disk.check_disk(device, 0)  # before the work
    files = _files(target, kernel, initrd, append, further)
    with tempfile.TemporaryDirectory(prefix="hv-image-") as folder:
        if keys is not None:
            files = signing.signed(signing.keys_in(keys), files, Path(folder))
        disk.build_disk(out.absolute(), files, None if size is None else size * _MIB)
    length = out.stat().st_size
    ui.out.print(f"{out}: {human_size(length)}, {len(files)} files", markup=False)
    if device is not None:
        _write(out, device, length, yes)
    report.write(json_file, {"image": str(out), "bytes": length, "disk": None if device is None else str(device)})


def _files(
    target: str, kernel: Path | None, initrd: Path | None, append: str, added: dict[PurePosixPath, Path]
) -> dict[PurePosixPath, Path | bytes]:
    folder = build.ensure_built(target).folder
    files = disk.starter(folder / "HvStart.efi", folder / "HvDxe.efi", kernel, initrd, append)
    for path, source in added.items():
        check_name(path)
        if path in files:
            raise UsageError(f"--add: {path} is there already")
        files[path] = source
    return files


def _write(image: Path, device: Path, length: int, yes: bool) -> None:
    described = disk.check_disk(device, length)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{described}: nobody is there to be asked; --yes writes without asking")
        ui.info(described)
        if not click.confirm("Everything on it will be lost. Write?", err=True):
            raise HvError("nothing was written")
    with Progress(console=ui.err, transient=True) as progress:
        task = progress.add_task(f"writing and verifying {device}", total=2 * length)
        disk.write_disk(image, device, lambda done: progress.update(task, completed=done))
    ui.out.print(f"{device}: written and verified", markup=False)

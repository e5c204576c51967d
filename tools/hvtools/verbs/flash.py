# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv flash`: firmware images into flash chips, by flashrom."""

from pathlib import Path

import click

from hvtools import flash, report, toolchain, ui
from hvtools.errors import UsageError

_FILE = click.Path(path_type=Path)
_PROGRAMMER = click.option(
    "-p", "--programmer", required=True, metavar="NAME[:PARAMETERS]", help="flashrom's programmer, e.g. ch341a_spi."
)
_CHIP = click.option("-c", "--chip", metavar="NAME", help="The chip, where several kinds answer.")


@click.group(
    "flash",
    epilog="""\b
Examples:
  hv flash read -p ch341a_spi board.bin
  hv flash write -p ch341a_spi --backup board.bin OVMF.fd
  hv flash write -p ch341a_spi --backup board.bin --region bios new-bios.bin
  hv flash restore board.bin""",
)
def command() -> None:
    """Read, verify and write flash chips with flashrom. Nothing is written without a verified back-up."""
    toolchain.require("flash")


def _step(text: str) -> None:
    ui.info(text)


def _file(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is no file")
    return path


def _folder_of(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the folder {path.absolute().parent} does not exist")
    return path


@command.command(
    "read",
    epilog="""\b
Examples:
  hv flash read -p ch341a_spi board.bin
  hv flash read -p ch341a_spi -c W25Q128.V board.bin --json read.json""",
)
@click.argument("out", type=_FILE)
@_PROGRAMMER
@_CHIP
@report.json_option
def read(out: Path, programmer: str, chip: str | None, json_file: Path | None) -> None:
    """Read the chip twice into OUT: a back-up that `hv flash restore` takes."""
    backup = flash.back_up(flash.Chip(programmer, chip), _folder_of(out), _step)
    report.write(json_file, {"backup": str(out), "sha256": backup.sha256, "bytes": out.stat().st_size})
    ui.out.print(f"{out}: {out.stat().st_size} bytes, SHA-256 {backup.sha256}", markup=False)


@command.command(
    "verify",
    epilog="""\b
Examples:
  hv flash verify -p ch341a_spi board.bin""",
)
@click.argument("image", type=_FILE)
@_PROGRAMMER
@_CHIP
def verify(image: Path, programmer: str, chip: str | None) -> None:
    """Compare the chip with IMAGE."""
    flash.Chip(programmer, chip).verify(_file(image))
    ui.out.print(f"the chip holds {image}", markup=False)


@command.command(
    "write",
    epilog="""\b
Examples:
  hv flash write -p ch341a_spi --backup board.bin OVMF.fd
  hv flash write -p ch341a_spi --backup board.bin --region bios new-bios.bin
  hv flash write -p dediprog --backup board.bin --region vars --layout board.layout vars.bin""",
)
@click.argument("image", type=_FILE)
@_PROGRAMMER
@_CHIP
@click.option("--backup", type=_FILE, required=True, metavar="FILE", help="Where the chip's present content is kept.")
@click.option("--region", metavar="NAME", help="Write this region only; IMAGE is of the region or of the whole chip.")
@click.option("--layout", type=_FILE, metavar="FILE", help="flashrom's layout file; else the chip's flash descriptor.")
@report.json_option
def write(
    image: Path,
    programmer: str,
    chip: str | None,
    backup: Path,
    region: str | None,
    layout: Path | None,
    json_file: Path | None,
) -> None:
    """Back the chip up, write IMAGE, and compare the whole chip afterwards."""
    if layout is not None and region is None:
        raise UsageError("--layout is for --region")
    if image.absolute() == backup.absolute():
        raise UsageError("--backup: this is the image to be written; `hv flash restore` writes a back-up")
    saved, written = flash.write(
        flash.Chip(programmer, chip), _file(image), _folder_of(backup), region, layout and _file(layout), _step
    )
    report.write(
        json_file,
        {
            "image": str(image),
            "backup": str(backup),
            "backup_sha256": saved.sha256,
            "region": None if written is None else [written.start, written.end],
        },
    )
    what = "the chip" if written is None else f"the region {written.name}"
    ui.out.print(f"{what} holds {image}; `hv flash restore {backup}` undoes it", markup=False)


@command.command(
    "restore",
    epilog="""\b
Examples:
  hv flash restore board.bin
  hv flash restore -p dediprog board.bin  with another programmer than at the back-up""",
)
@click.argument("backup", type=_FILE)
@click.option("-p", "--programmer", metavar="NAME[:PARAMETERS]", help="Another programmer than at the back-up.")
@_CHIP
def restore(backup: Path, programmer: str | None, chip: str | None) -> None:
    """Bring the chip back to BACKUP, also after a write that was cut off."""
    saved = flash.Backup.load(backup)
    flash.restore(saved, flash.Chip(programmer or saved.chip.programmer, chip or saved.chip.name), _step)
    ui.out.print(f"the chip holds {backup} again", markup=False)

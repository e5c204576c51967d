# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Flash chips by flashrom: nothing is written without a back-up that was verified, and a write can be undone.

Beside a back-up FILE stands FILE.json, which says what chip it is of and whether a write on top of it came to its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hvtools.errors import HvError, UsageError
from hvtools.images.files import to_disk, written_whole

PROGRAM = "flashrom"
WRITING = "writing"
DONE = "done"

# "start:end name" in hexadecimal, the end included: flashrom's layout files.
_LAYOUT = re.compile(r"^\s*(?:0x)?([0-9A-Fa-f]+):(?:0x)?([0-9A-Fa-f]+)\s+(\S+)\s*$")
# Intel's flash descriptor ("SPI Programming Guide"): its signature, then the map of its parts; FRBA is where the
# regions are, each with base and limit in units of 4 KiB.
_DESCRIPTOR_AT = 0x10
_DESCRIPTOR = struct.Struct("<II")
_DESCRIPTOR_SIGNATURE = 0x0FF0A55A
_DESCRIPTOR_REGIONS = ("fd", "bios", "me", "gbe", "pd")

_USAGE = (
    (re.compile(r"Unknown programmer"), "flashrom has no such programmer"),
    (re.compile(r"Unknown chip '.*' specified"), "flashrom knows no such chip"),
    (re.compile(r"Image size .* doesn't match"), "the image has not the size of the chip"),
)
_FAILURES = (
    (re.compile(r"Multiple flash chip definitions match[^\n]*: (.*)"), r"several chips match, name one by --chip: \1"),
    (re.compile(r"No EEPROM/flash device found"), "no chip answers"),
    (re.compile(r"FAILED at (0x[0-9a-f]+)"), r"the chip has other contents, first at \1"),
    (re.compile(r"Programmer initialization failed"), "the programmer does not work: is it connected?"),
    (re.compile(r"(?im)^\W*error: (.*)$"), r"\1"),
)

Step = Callable[[str], None]


@dataclass(frozen=True)
class Region:
    """A part of a chip.

    Attributes:
        name: as layout or descriptor have it.
        start: offset of its first byte.
        end: offset behind its last byte.
    """

    name: str
    start: int
    end: int


def read_layout(path: Path) -> list[Region]:
    """Read flashrom's layout file.

    Raises:
        UsageError: it is none.
    """
    try:
        text = path.read_text("ascii")
    except (OSError, ValueError) as error:
        raise UsageError(f"the layout {path} cannot be read") from error
    found = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LAYOUT.match(line)
        if match is None or int(match[1], 16) > int(match[2], 16):
            raise UsageError(f"the layout {path} has a line that is no region: {line.strip()[:60]}")
        found.append(Region(match[3], int(match[1], 16), int(match[2], 16) + 1))
    return found


def read_descriptor(content: bytes) -> list[Region]:
    """Read the regions of a chip with Intel's flash descriptor; none where it has no descriptor."""
    if len(content) < 0x1000:
        return []
    signature, map0 = _DESCRIPTOR.unpack_from(content, _DESCRIPTOR_AT)
    base = (map0 >> 16 & 0xFF) << 4
    if signature != _DESCRIPTOR_SIGNATURE:
        return []
    found = []
    for index, name in enumerate(_DESCRIPTOR_REGIONS):
        (word,) = struct.unpack_from("<I", content, base + 4 * index)
        start, limit = (word & 0x7FFF) << 12, (word >> 16 & 0x7FFF) << 12 | 0xFFF
        if start <= limit < len(content):  # an unused region has its base above its limit
            found.append(Region(name, start, limit + 1))
    return found


@dataclass(frozen=True)
class Chip:
    """A chip behind a programmer, in flashrom's words."""

    programmer: str
    name: str | None = None

    def _flashrom(self, *arguments: str | Path, finish: bool = False) -> str:
        """Run flashrom.

        Args:
            arguments: what it is to do.
            finish: it is let go on to its end whatever happens to us: half a chip is worse than a late Ctrl-C.
        """
        program = shutil.which(PROGRAM, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        if program is None:
            raise HvError(f"{PROGRAM} is not installed")
        chip = [] if self.name is None else ["-c", self.name]
        process = subprocess.Popen(
            [program, "-p", self.programmer, *chip, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate()
        except BaseException:
            if not finish:
                process.kill()
            process.communicate()
            raise
        if process.returncode != 0:
            raise _explained(self, output)
        return output

    def size(self) -> int:
        """Bytes of the chip.

        Raises:
            HvError: no chip answers, or more than one kind may be meant.
        """
        return int(self._flashrom("--flash-size").split()[-1])

    def read(self, path: Path) -> None:
        """Read all of the chip into a file."""
        self._flashrom("-r", path)

    def write(self, image: Path, region: Region | None = None) -> None:
        """Write an image of the whole chip, or one region of it. flashrom compares all of the chip afterwards."""
        if region is None:
            self._flashrom("-w", image, finish=True)
            return
        with tempfile.NamedTemporaryFile("w", prefix="hv-layout-") as layout:
            layout.write(f"{region.start:08x}:{region.end - 1:08x} {region.name}\n")
            layout.flush()
            self._flashrom("-l", layout.name, "-i", region.name, "-w", image, finish=True)

    def verify(self, image: Path) -> None:
        """Compare the chip with an image.

        Raises:
            HvError: they differ.
        """
        self._flashrom("-v", image)


def _explained(chip: Chip, output: str) -> HvError:
    for pattern, words in _USAGE:
        if pattern.search(output):
            return UsageError(f"{chip.programmer}: {words}")
    for pattern, words in _FAILURES:
        match = pattern.search(output)
        if match:
            return HvError(f"{chip.programmer}: {match.expand(words)}")
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it says nothing")
    return HvError(f"{chip.programmer}: {PROGRAM} failed: {last}")


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Backup:
    """What a chip held, with the sum of its content."""

    path: Path
    chip: Chip
    sha256: str
    state: str | None = None
    """WRITING while, and after, something is written on top of it; DONE when that came to its end; else None."""

    @staticmethod
    def notes(path: Path) -> Path:
        """The file beside it."""
        return path.with_name(f"{path.name}.json")

    @classmethod
    def load(cls, path: Path) -> Backup:
        """Read a back-up, and see that it is whole.

        Raises:
            UsageError: it is none of ours, or it was changed.
        """
        try:
            notes = json.loads(cls.notes(path).read_text())
            backup = cls(path, Chip(notes["programmer"], notes["chip"]), notes["sha256"], notes["state"])
            found = _sum(path)
        except OSError as error:
            raise UsageError(f"{path} is no back-up: {error.strerror}: {error.filename}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{cls.notes(path)} is not what a back-up has beside it") from error
        if found != backup.sha256:
            raise UsageError(f"the back-up {path} was changed since it was made")
        return backup

    def save(self) -> None:
        """Write the notes, and see that everything is on the disk."""
        with written_whole(self.notes(self.path)) as temporary:
            notes = {
                "programmer": self.chip.programmer,
                "chip": self.chip.name,
                "sha256": self.sha256,
                "state": self.state,
            }
            temporary.write_text(json.dumps(notes, indent=1) + "\n")
            to_disk(temporary)
        to_disk(self.path)
        to_disk(self.path.absolute().parent)


def back_up(chip: Chip, path: Path, step: Step) -> Backup:
    """Read a chip twice, and keep it if it was the same.

    Args:
        chip: the chip.
        path: where it is kept; a back-up that is there already must be of the same content.
        step: called with what begins.

    Raises:
        UsageError: something else is at `path`, or a write on top of it never came to its end.
        HvError: the chip cannot be read.
    """
    old = None
    if path.exists() or Backup.notes(path).exists():
        old = Backup.load(path)
        if old.state == WRITING:
            raise UsageError(f"a write after the back-up {path} did not come to its end: run `hv flash restore {path}`")
    with written_whole(path) if old is None else _beside(path) as first, _beside(path) as second:
        step("reading the chip")
        chip.read(first)
        step("reading it again, to compare")
        chip.read(second)
        if _sum(first) != _sum(second):
            raise HvError(f"{chip.programmer}: two reads differ: check wires and power before anything is written")
        content = _sum(first)
        if old is not None and old.sha256 != content:
            raise UsageError(f"{path} is the back-up of other contents: name another file")
    backup = Backup(path, chip, content)
    backup.save()
    return backup


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def find_region(name: str, layout: Path | None, content: bytes) -> Region:
    """Find a region by its name, in a layout file or else in the chip's own descriptor.

    Raises:
        UsageError: there is none of this name, or it is not on the chip.
    """
    regions = read_layout(layout) if layout is not None else read_descriptor(content)
    if not regions:
        where = f"the layout {layout} has no region" if layout is not None else "the chip has no flash descriptor"
        raise UsageError(f"{where}: --region needs --layout FILE")
    for region in regions:
        if region.name == name:
            if region.end > len(content):
                raise UsageError(f"the region {name} ends behind the chip, which has {len(content)} bytes")
            return region
    raise UsageError(f"no region {name!r}: there is {', '.join(region.name for region in regions)}")


def write(
    chip: Chip, image: Path, backup: Path, region_name: str | None, layout: Path | None, step: Step
) -> tuple[Backup, Region | None]:
    """Back the chip up, write an image or one region, and compare the whole chip with what it must hold now.

    Args:
        chip: the chip.
        image: content of the chip, or of the region, or of the chip from which the region is taken.
        backup: where the back-up is kept.
        region_name: the region to write, None for all.
        layout: where regions are, if not in the chip's own descriptor.
        step: called with what begins.

    Raises:
        UsageError: the image does not fit; the chip is as it was.
        HvError: the write failed; the message has the command that repairs it.
    """
    content = image.read_bytes()
    size = chip.size()
    if region_name is None and len(content) != size:
        raise UsageError(f"{image} has {len(content)} bytes, the chip has {size}")
    saved = back_up(chip, backup, step)
    wanted = bytearray(backup.read_bytes())
    region = None
    if region_name is not None:
        region = find_region(region_name, layout, bytes(wanted))
        length = region.end - region.start
        if len(content) == len(wanted):
            content = content[region.start : region.end]
        if len(content) != length:
            raise UsageError(f"{image} has {len(content)} bytes: region {region.name} has {length}, the chip {size}")
        wanted[region.start : region.end] = content
    else:
        wanted[:] = content
    with _beside(backup) as whole:
        whole.write_bytes(wanted)
        saved.state = WRITING
        saved.save()
        _write(chip, whole, region, saved, step)
    return saved, region


def restore(backup: Backup, chip: Chip, step: Step) -> None:
    """Bring a chip back to what it was, and compare.

    Args:
        backup: what it was. Its notes keep their chip until this one holds the content.
        chip: the chip, perhaps by another programmer than at the back-up.
        step: called with what begins.

    Raises:
        UsageError: this cannot be the chip of the back-up, and neither was changed.
        HvError: it did not work; it can be tried again.
    """
    held, size = backup.path.stat().st_size, chip.size()
    if held != size:
        raise UsageError(f"the back-up {backup.path} has {held} bytes, the chip has {size}: check --programmer, --chip")
    backup.state = WRITING
    backup.save()
    _write(chip, backup.path, None, backup, step)


def _write(chip: Chip, image: Path, region: Region | None, saved: Backup, step: Step) -> None:
    try:
        step("writing: do not take the power away")
        chip.write(image, region)
        step("comparing the whole chip")
        chip.verify(image)
    except UsageError:
        raise
    except HvError as error:
        raise HvError(f"{error}; the chip may hold a part only: run `hv flash restore {saved.path}`") from error
    saved.chip, saved.state = chip, DONE
    saved.save()

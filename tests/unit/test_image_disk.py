# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Disk images, and what is refused before a real disk is written."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pexpect
import pytest

from hvtools import build
from hvtools.boot import runner
from hvtools.boot.request import BootRequest
from hvtools.errors import HvError, UsageError
from hvtools.images import disk
from hvtools.images.fat import build_volume, tool
from hvtools.verbs import image as verb

MIB = 1 << 20
FILES: dict[PurePosixPath, Path | bytes] = {disk.START: b"start", disk.DRIVER: b"driver" * 1000}


def partitions(image: Path) -> list[dict[str, object]]:
    told = subprocess.run(["sfdisk", "--json", str(image)], capture_output=True, text=True, check=True)
    table = json.loads(told.stdout)["partitiontable"]
    assert table["label"] == "gpt"
    found: list[dict[str, object]] = table["partitions"]
    return found


def test_the_image_has_one_efi_system_partition_with_the_files(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    disk.build_disk(image, FILES)
    (partition,) = partitions(image)
    # UEFI 2.10, 5.3.3
    assert partition["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    start, size = partition["start"], partition["size"]
    assert isinstance(start, int) and isinstance(size, int)
    volume = f"{image}@@{start * 512}"
    for path, content in FILES.items():
        read = subprocess.run(["mtype", "-i", volume, f"::/{path}"], capture_output=True, check=True)
        assert read.stdout == content
    # The table and its copy are whole: sfdisk finds nothing to complain about.
    told = subprocess.run(["sfdisk", "--verify", str(image)], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["stick.img"]


def test_a_size_is_kept_to_the_byte(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    disk.build_disk(image, FILES, 64 * MIB)
    assert image.stat().st_size == 64 * MIB
    (partition,) = partitions(image)
    assert partition["size"] == 62 * MIB // 512


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_that_is_too_small_is_refused_and_nothing_is_left(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match="too few"):
        disk.build_disk(tmp_path / "stick.img", FILES, size * MIB)
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_can_be_booted_from(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    disk.build_disk(image, FILES)
    disk.check_bootable(image)
    build_volume(tmp_path / "volume.img", FILES)
    disk.check_bootable(tmp_path / "volume.img")


@pytest.mark.parametrize("table", ["", "label: gpt\nsize=1MiB, type=L\n", "label: dos\nsize=1MiB, type=83\n"])
def test_a_disk_without_a_system_partition_is_refused(tmp_path: Path, table: str) -> None:
    image = tmp_path / "other.img"
    image.write_bytes(bytes(8 * MIB))
    if table:
        tool("sfdisk", "--quiet", image, contents=table.encode())
    with pytest.raises(UsageError, match="other.img has no EFI system partition"):
        disk.check_bootable(image)


def test_a_system_partition_without_a_boot_program_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "stick.img"
    disk.build_disk(image, {disk.DRIVER: b"driver"})
    with pytest.raises(UsageError, match="stick.img has no EFI/BOOT/BOOTX64.EFI on its"):
        disk.check_bootable(image)


def test_the_verb_boots_from_no_such_disk(tmp_path: Path) -> None:
    """Before a machine is started, which would wait for ever."""
    image = tmp_path / "other.img"
    image.write_bytes(bytes(MIB))
    before = image.read_bytes()
    with pytest.raises(UsageError, match="has no EFI system partition"):
        runner.run(BootRequest(disk=image), tmp_path / "logs")
    assert image.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["other.img"]


class FakeDisk:
    """The kernel's files about one disk with one partition."""

    def __init__(self, folder: Path) -> None:
        self.entry = folder / "block" / "sdx"
        self.part = self.entry / "sdx1"
        self.proc = folder / "proc"
        for made in (self.entry / "holders", self.entry / "device", self.part / "holders", self.proc / "self"):
            made.mkdir(parents=True)
        self.write("size", 8 * MIB // 512)
        self.write("ro", 0)
        self.write("removable", 1)
        self.write("dev", "8:16")
        self.write("device/model", "Stick 1")
        self.write("sdx1/partition", 1)
        self.write("sdx1/dev", "8:17")
        (self.proc / "self" / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        (self.proc / "swaps").write_text("Filename Type Size Used Priority\n")

    def write(self, name: str, value: object) -> None:
        (self.entry / name).write_text(f"{value}\n")

    def check(self, size: int = MIB) -> str:
        return disk.check_entry(Path("/dev/sdx"), self.entry, size, self.proc)


@pytest.fixture
def fake(tmp_path: Path) -> FakeDisk:
    return FakeDisk(tmp_path)


def test_a_free_disk_is_described(fake: FakeDisk) -> None:
    assert fake.check() == "/dev/sdx: Stick 1, 8.0 MiB, removable"


def test_a_disk_that_is_too_small_is_refused(fake: FakeDisk) -> None:
    with pytest.raises(UsageError, match="has 8.0 MiB: the image has 9.0 MiB"):
        fake.check(9 * MIB)


def test_a_protected_disk_is_refused(fake: FakeDisk) -> None:
    fake.write("ro", 1)
    with pytest.raises(UsageError, match="write-protected"):
        fake.check()


@pytest.mark.parametrize(("number", "name"), [("8:16", "sdx"), ("8:17", "sdx1")])
def test_a_mounted_disk_is_refused(fake: FakeDisk, number: str, name: str) -> None:
    with (fake.proc / "self" / "mountinfo").open("a") as file:
        file.write(f"30 22 {number} / /boot rw - vfat /dev/{name} rw\n")
    with pytest.raises(UsageError, match=f"{name} is mounted at /boot"):
        fake.check()


def test_swap_space_is_refused(fake: FakeDisk) -> None:
    with (fake.proc / "swaps").open("a") as file:
        file.write("/dev/sdx1 partition 100 0 -2\n")
    with pytest.raises(UsageError, match="/dev/sdx1 is swap"):
        fake.check()


def test_a_disk_below_another_device_is_refused(fake: FakeDisk) -> None:
    (fake.part / "holders" / "dm-0").mkdir()
    with pytest.raises(UsageError, match="sdx1 belongs to another device"):
        fake.check()


def test_a_partition_is_refused(fake: FakeDisk) -> None:
    with pytest.raises(UsageError, match="is a partition: name the whole disk, sdx"):
        disk.check_entry(Path("/dev/sdx1"), fake.part, MIB, fake.proc)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/passwd"])
def test_what_is_no_disk_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is not a disk"):
        disk.check_disk(Path(path), 0)


def test_the_disk_that_this_system_runs_from_is_refused() -> None:
    number = os.stat("/").st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not entry.exists():
        pytest.skip("the root file system here is on no disk of its own (a container)")
    whole = entry.resolve().parent if (entry / "partition").exists() else entry.resolve()
    with pytest.raises(UsageError, match="in use|write-protected"):
        disk.check_disk(Path("/dev") / whole.name, 0)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    image, target = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(9 * MIB))
    target.write_bytes(bytes(10 * MIB))
    seen: list[int] = []
    disk.write_disk(image, target, seen.append)
    assert target.read_bytes()[: 9 * MIB] == image.read_bytes()
    assert seen == sorted(seen) and seen[-1] == 18 * MIB


def test_a_disk_that_forgets_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes everything, and gives back zeros."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # this device knows no such thing
    image = tmp_path / "image"
    image.write_bytes(b"x" * MIB)
    with pytest.raises(HvError, match="does not give back"):
        disk.write_disk(image, Path("/dev/zero"))


def test_a_full_disk_is_said_to_be_so(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * MIB)
    with pytest.raises(HvError, match="was not written to its end"):
        disk.write_disk(image, Path("/dev/full"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write", "/dev/null"], "not a disk"),
        (["--write", "/dev/nothing"], "No such file"),
        (["--size", "0"], "more than 0"),
        (["--append", "quiet"], "give --kernel"),
        (["--kernel", "/none"], "does not exist"),
        (["--add", "/none"], "does not exist"),
    ],
)
def test_the_verb_refuses_before_it_makes_anything(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "stick.img"
    with pytest.raises(UsageError, match=message):
        verb.command.main([str(out), *arguments], standalone_mode=False)
    assert not out.exists()


def ask(image: Path, device: Path, answer: str) -> tuple[int, str]:
    """Call the verb as a person does, at a terminal."""
    command = [sys.executable, "-m", "hvtools", "image", str(image), "--write", str(device)]
    said = io.StringIO()
    with pexpect.spawn(command[0], command[1:], timeout=300, encoding="utf-8") as child:
        child.logfile_read = said
        child.expect(r"Write\? \[y/N\]: ")
        child.sendline(answer)
        child.expect(pexpect.EOF)
    assert child.exitstatus is not None
    return child.exitstatus, said.getvalue()


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A disk of the kernel, and the file that has its content."""
    content = tmp_path / "content"
    content.write_bytes(b"what was there before" + bytes(64 * MIB - 21))
    made = subprocess.run(["losetup", "--find", "--show", str(content)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no block device to write to: {made.stderr.strip()}")
    yield Path(made.stdout.strip()), content
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_stick_is_written_when_the_answer_is_yes(tmp_path: Path, stick: tuple[Path, Path]) -> None:
    device, content = stick
    image = tmp_path / "stick.img"
    build.ensure_built("RELEASE")
    code, said = ask(image, device, "n")
    assert code == 1 and "nothing was written" in said
    assert f"{device}: no model name, 64.0 MiB, not removable" in said
    assert content.read_bytes().startswith(b"what was there before")
    code, said = ask(image, device, "y")
    assert code == 0 and f"{device}: written and verified" in said
    written = content.read_bytes()
    assert written.startswith(image.read_bytes()) and len(written) == 64 * MIB


def test_a_disk_that_others_use_unseen_is_refused(stick: tuple[Path, Path]) -> None:
    """As one that is mounted outside of the container that this runs in."""
    device, _ = stick
    disk.check_disk(device, MIB)
    taken = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(UsageError, match=f"{device} is in use: Device or resource busy"):
            disk.check_disk(device, MIB)
    finally:
        os.close(taken)


def test_nobody_is_asked_where_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, device = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(MIB))
    device.write_bytes(bytes(2 * MIB))
    monkeypatch.setattr(disk, "check_disk", lambda device, length: f"{device}: a disk")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="nobody is there to be asked; --yes writes"):
        verb._write(image, device, MIB, yes=False)
    assert device.read_bytes() == bytes(2 * MIB)
    verb._write(image, device, MIB, yes=True)
    assert device.read_bytes() == image.read_bytes() + bytes(MIB)

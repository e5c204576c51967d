# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Flash chips, by the real flashrom and the chips that it emulates."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvtools import cli, flash, toolchain
from hvtools.errors import HvError, UsageError
from hvtools.flash import Backup, Chip
from hvtools.verbs import flash as verb

KIND, SIZE = "M25P10.RES", 128 << 10
OLD, NEW = b"\x5a" * SIZE, b"\xa5" * SIZE


@pytest.fixture(scope="module", autouse=True)
def _flashrom() -> None:
    toolchain.require("flash")


class Board:
    """A chip whose content is a file, and files around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = folder / "chip"
        self.content.write_bytes(OLD)
        self.programmer = f"dummy:emulate={KIND},image={self.content}"
        self.chip = Chip(self.programmer)
        self.backup = folder / "backup.bin"
        self.steps: list[str] = []

    def file(self, content: bytes, name: str = "image.bin") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def write(self, content: bytes, region: str | None = None, layout: str | None = None) -> None:
        path = None if layout is None else self.file(layout.encode(), "layout")
        flash.write(self.chip, self.file(content), self.backup, region, path, self.steps.append)

    @property
    def state(self) -> str | None:
        state: str | None = json.loads(Backup.notes(self.backup).read_text())["state"]
        return state


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def descriptor(regions: dict[int, tuple[int, int]]) -> bytes:
    """The beginning of a chip with a flash descriptor: regions by number, in units of 4 KiB, ends included."""
    content = bytearray(b"\xff" * 0x1000)
    struct.pack_into("<II", content, 0x10, 0x0FF0A55A, 0x04 << 16)
    for index in range(5):
        base, limit = regions.get(index, (0x7FFF, 0))
        struct.pack_into("<I", content, 0x40 + 4 * index, limit << 16 | base)
    return bytes(content)


def test_a_chip_is_read_twice_into_a_backup(board: Board) -> None:
    saved = flash.back_up(board.chip, board.backup, board.steps.append)
    assert board.backup.read_bytes() == OLD
    assert len(board.steps) == 2
    assert Backup.load(board.backup) == saved
    assert saved.state is None


def test_an_image_is_written_and_undone(board: Board) -> None:
    board.write(NEW)
    assert board.content.read_bytes() == NEW
    assert board.backup.read_bytes() == OLD
    assert board.state == flash.DONE
    flash.restore(Backup.load(board.backup), board.chip, board.steps.append)
    assert board.content.read_bytes() == OLD


@pytest.mark.parametrize("whole", [False, True])
def test_one_region_is_written_and_nothing_beside_it(board: Board, whole: bool) -> None:
    layout = "# parts\n00000000:0000ffff code\n0x10000:0x10fff vars\n"
    board.write(NEW if whole else NEW[:0x1000], "vars", layout)
    assert board.content.read_bytes() == OLD[:0x10000] + NEW[:0x1000] + OLD[0x11000:]


def test_a_region_of_the_flash_descriptor_is_found(board: Board) -> None:
    old = descriptor({0: (0, 0), 1: (0x10, 0x1F)}) + OLD[0x1000:]
    board.content.write_bytes(old)
    assert [region.name for region in flash.read_descriptor(old)] == ["fd", "bios"]
    board.write(NEW[:0x10000], "bios")
    assert board.content.read_bytes() == old[:0x10000] + NEW[0x10000:]


@pytest.mark.parametrize("content", [b"", b"x" * 100, OLD, b"\xff" * SIZE])
def test_other_contents_have_no_descriptor(content: bytes) -> None:
    assert flash.read_descriptor(content) == []


def test_an_image_of_another_size_is_refused(board: Board) -> None:
    with pytest.raises(UsageError, match="has 4096 bytes, the chip has 131072"):
        board.write(NEW[:4096])
    assert board.content.read_bytes() == OLD
    assert not board.backup.exists()


@pytest.mark.parametrize(
    ("region", "layout", "message"),
    [
        ("vars", None, "needs --layout"),
        ("none", "0:fff vars\n", "no region 'none': there is vars"),
        ("vars", "0:1fff vars\n", "region vars has 8192"),
        ("vars", "0:fffff vars\n", "ends behind the chip"),
        ("vars", "nonsense\n", "no region: nonsense"),
        ("vars", "fff:0 vars\n", "no region"),
        ("vars", "", "has no region"),
    ],
)
def test_a_wrong_region_is_refused(board: Board, region: str, layout: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        board.write(NEW[:0x1000], region, layout)
    assert board.content.read_bytes() == OLD


def test_a_backup_of_other_contents_is_kept(board: Board) -> None:
    board.write(NEW)
    with pytest.raises(UsageError, match="back-up of other contents"):
        board.write(OLD)
    assert board.content.read_bytes() == NEW
    assert board.backup.read_bytes() == OLD


def test_a_backup_that_was_changed_is_not_written(board: Board) -> None:
    board.write(NEW)
    board.backup.write_bytes(b"\0" * SIZE)
    with pytest.raises(UsageError, match="was changed"):
        Backup.load(board.backup)


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"sha256": 1}'])
def test_a_file_that_is_no_backup_is_refused(board: Board, notes: str) -> None:
    board.backup.write_bytes(OLD)
    with pytest.raises(UsageError, match="is no back-up"):
        Backup.load(board.backup)
    Backup.notes(board.backup).write_text(notes)
    with pytest.raises(UsageError, match="not what a back-up has beside it"):
        Backup.load(board.backup)


def test_reads_that_differ_stop_everything(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loose wire: the chip itself does not change, what comes over does."""
    reads = iter([OLD, OLD[:-1] + b"\0"])
    monkeypatch.setattr(Chip, "read", lambda chip, path: path.write_bytes(next(reads)))
    with pytest.raises(HvError, match="two reads differ"):
        board.write(NEW)
    assert board.content.read_bytes() == OLD
    assert not board.backup.exists() and not Backup.notes(board.backup).exists()


def test_a_chip_that_does_not_keep_what_is_written(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Chip.write

    def worn(chip: Chip, image: Path, region: flash.Region | None = None) -> None:
        written(chip, image, region)
        board.content.write_bytes(NEW[:0x100] + b"\0" + NEW[0x101:])

    monkeypatch.setattr(Chip, "write", worn)
    with pytest.raises(HvError, match=f"first at 0x00000100; .*hv flash restore {board.backup}"):
        board.write(NEW)
    assert board.state == flash.WRITING


def test_a_write_that_is_cut_off_is_repaired(board: Board) -> None:
    """Both processes are killed in the middle; on a real chip half of it is written then."""
    slow = board.folder / "bin" / "flashrom"
    slow.parent.mkdir()
    # The real one, which never comes to its end when it writes.
    slow.write_text('#!/bin/sh\ncase "$*" in *-w*) echo $$ > "$HALT"; exec sleep 600;; esac\nexec "$REAL" "$@"\n')
    slow.chmod(0o755)
    halted = board.folder / "halted"
    real = subprocess.run(["sh", "-c", "command -v flashrom"], capture_output=True, text=True).stdout.strip()
    environment = dict(os.environ, PATH=f"{slow.parent}:{os.environ['PATH']}", HALT=str(halted), REAL=real)
    command = [sys.executable, "-m", "hvtools", "flash", "write", "-p", board.programmer, "--backup", str(board.backup)]
    with subprocess.Popen([*command, str(board.file(NEW))], env=environment, cwd=board.folder) as process:
        while not (halted.exists() and halted.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    os.kill(int(halted.read_text()), signal.SIGKILL)
    board.content.write_bytes(NEW[: SIZE // 2] + b"\xff" * 4096 + OLD[SIZE // 2 + 4096 :])

    assert board.state == flash.WRITING
    with pytest.raises(UsageError, match="did not come to its end: run `hv flash restore"):
        board.write(NEW)
    verb.command.main(["restore", str(board.backup)], standalone_mode=False)
    assert board.content.read_bytes() == OLD
    assert board.state == flash.DONE


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-p", "ch341a_spx"], 2, "no such programmer"),
        (["-c", "W25Q64JV.M"], 2, "no such chip"),
        (["-p", "dummy:emulate=SST25VF032B"], 2, "has 131072 bytes, the chip has 4194304"),
        (["-p", "dummy"], 1, "no chip answers"),
    ],
)
def test_a_mistyped_restore_keeps_what_repairs_the_chip(
    board: Board, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    board.write(NEW)
    notes = Backup.notes(board.backup).read_bytes()
    assert cli.run(["flash", "restore", *arguments, str(board.backup)]) == code
    assert said in capsys.readouterr().err
    assert Backup.notes(board.backup).read_bytes() == notes
    assert cli.run(["flash", "restore", str(board.backup)]) == 0
    assert board.content.read_bytes() == OLD


def test_another_programmer_is_noted_when_the_chip_holds_the_backup(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the one that is known to work stays, with a state that says that a write began."""
    board.write(NEW)
    other = f"{board.programmer},freq=1MHz"
    written = Chip.write

    def noted(chip: Chip, image: Path, region: flash.Region | None = None) -> None:
        assert (Backup.load(board.backup).chip, board.state) == (board.chip, flash.WRITING)
        written(chip, image, region)

    monkeypatch.setattr(Chip, "write", noted)
    assert cli.run(["flash", "restore", "-p", other, str(board.backup)]) == 0
    assert (Backup.load(board.backup).chip, board.state) == (Chip(other), flash.DONE)


def test_wrong_use_that_a_write_finds_is_wrong_use(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(chip: Chip, image: Path, region: flash.Region | None = None) -> None:
        raise UsageError("the image has not the size of the chip")

    monkeypatch.setattr(Chip, "write", refused)
    with pytest.raises(UsageError, match="not the size of the chip$"):
        board.write(NEW)


@pytest.mark.parametrize(
    ("programmer", "chip", "error", "message"),
    [
        ("nothing", None, UsageError, "no such programmer"),
        ("dummy", None, HvError, "no chip answers"),
        ("dummy:emulate=NONE", None, HvError, "Invalid chip specified|does not work"),
        (f"dummy:emulate={KIND}", "NOPE", UsageError, "no such chip"),
        (f"dummy:emulate={KIND}", "W25Q128.V", HvError, "no chip answers"),
    ],
)
def test_a_chip_that_is_not_there_is_one_line(
    tmp_path: Path, programmer: str, chip: str | None, error: type[HvError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        flash.back_up(Chip(programmer, chip), tmp_path / "backup", lambda text: None)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_reads_verifies_and_writes(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        verb.command.main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    where = ["-p", board.programmer]
    result = board.folder / "result.json"
    assert "SHA-256" in run("read", *where, str(board.backup))
    assert "the chip holds" in run("verify", *where, str(board.backup))
    image = str(board.file(NEW))
    assert "undoes it" in run("write", *where, "--backup", str(board.backup), "--json", str(result), image)
    assert json.loads(result.read_text())["region"] is None
    with pytest.raises(HvError, match="first at 0x00000000"):
        run("verify", *where, str(board.backup))
    assert "again" in run("restore", str(board.backup))
    run("verify", *where, str(board.backup))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["write", "-p", "dummy", "--backup", "b", "/none"], "does not exist"),
        (["write", "-p", "dummy", "--backup", "/none/b", "/etc/hostname"], "folder /none does not exist"),
        (["write", "-p", "dummy", "--backup", "b", "--layout", "l", "/etc/hostname"], "is for --region"),
        (["write", "-p", "dummy", "--backup", "/etc/hostname", "/etc/hostname"], "the image to be written"),
        (["verify", "-p", "dummy", "/none"], "does not exist"),
        (["restore", "/none"], "is no back-up"),
    ],
)
def test_the_verb_refuses_wrong_use(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        verb.command.main(arguments, standalone_mode=False)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's options in firmware images."""

import os
import shutil
import struct
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from edk2toollib.uefi.edk2.variablestore_manulipulations import VariableStore

from hvtools.errors import UsageError
from hvtools.generated.options import GUID
from hvtools.images import variables
from hvtools.images.variables import read_options, write_options
from hvtools.verbs import options

OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
OVMF_CODE = OVMF_VARIABLES.with_name("OVMF_CODE_4M.fd")
STORE = 72  # of the store's own header, behind the volume's
STORE_SIZE = STORE + 16
NAME = "HvOptions\0".encode("utf-16-le")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(OVMF_VARIABLES, tmp_path / "OVMF.fd"))


def test_a_new_image_has_none(image: Path) -> None:
    assert read_options(image) is None


def test_what_is_written_is_read(image: Path) -> None:
    write_options(image, {"log": "debug", "nested_page": "4k"})
    assert read_options(image) == "log=debug nested_page=4k"
    content = image.read_bytes()
    at = content.index(NAME)
    assert content[at - 16 : at] == uuid.UUID(GUID).bytes_le
    assert content[at + len(NAME) :].startswith(b"log=debug nested_page=4k")


def test_the_last_ones_count_and_are_there_once(image: Path) -> None:
    write_options(image, {"log": "debug", "nested_page": "4k"})
    write_options(image, {"log": "warn"})
    assert read_options(image) == "log=warn"
    assert image.read_bytes().count(NAME) == 1


def test_removed_options_leave_the_image_as_it_was(image: Path) -> None:
    before = image.read_bytes()
    write_options(image, {"log": "warn"})
    assert image.read_bytes() != before
    write_options(image, {})
    assert image.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x" * 4096, bytes(1 << 20)])
def test_what_is_no_firmware_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no store"):
        read_options(path)


def test_a_broken_store_is_refused(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[STORE : STORE + 28] = bytes(28)
    image.write_bytes(content)
    with pytest.raises(UsageError):
        read_options(image)


def test_a_full_store_says_so(image: Path) -> None:
    with pytest.raises(UsageError, match="too large"):
        write_options(image, {"log": "w" * (1 << 20)})


def sized(image: Path, size: int) -> bytes:
    """The image with another size in the store's header."""
    content = bytearray(image.read_bytes())
    struct.pack_into("<I", content, STORE_SIZE, size)
    image.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("size", [0x84000 - STORE + 1, 0x200000, 0xFFFFFF])
@pytest.mark.parametrize("code", [b"", OVMF_CODE.read_bytes()], ids=["alone", "with code"])
def test_a_store_that_is_larger_than_its_volume_is_refused(image: Path, size: int, code: bytes) -> None:
    """What is behind the volume is code: it was erased as the store's free space."""
    image.write_bytes(image.read_bytes() + code)
    before = sized(image, size)
    with pytest.raises(UsageError, match="larger than its volume"):
        write_options(image, {"log": "warn"})
    assert image.read_bytes() == before
    assert list(image.parent.iterdir()) == [image]


def test_a_store_is_full_before_its_last_variable_is_behind_it(image: Path) -> None:
    """The store's header, variables and the end are all there is room for."""
    write_options(image, {"log": "warn"})
    used = image.read_bytes().rindex(b"log=warn") + len(b"log=warn") - STORE
    end = 60  # the header of an authenticated variable
    before = sized(image, used + end - 1)
    with pytest.raises(UsageError, match="too large"):
        write_options(image, {"log": "info"})
    assert image.read_bytes() == before
    sized(image, used + end)
    write_options(image, {"log": "info"})
    assert read_options(image) == "log=info"


def test_an_image_that_cannot_be_changed_stays_whole(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the middle fails on a copy."""
    before = image.read_bytes()

    def half(store: VariableStore) -> None:
        store.rom_file_map[: len(before) // 2] = bytes(len(before) // 2)
        raise ValueError("no more")

    monkeypatch.setattr(VariableStore, "flush_to_file", half)
    with pytest.raises(UsageError, match="no more"):
        write_options(image, {"log": "warn"})
    assert image.read_bytes() == before
    assert list(image.parent.iterdir()) == [image]


def test_an_image_behind_a_link_is_changed_and_keeps_its_permissions(image: Path, tmp_path: Path) -> None:
    image.chmod(0o640)
    link = tmp_path / "link.fd"
    link.symlink_to(image.name)
    write_options(link, {"log": "warn"})
    assert link.is_symlink() and read_options(image) == "log=warn"
    assert image.stat().st_mode & 0o777 == 0o640


def test_an_image_that_may_not_be_written_is_refused(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to everything
    with pytest.raises(UsageError, match="not to be written"):
        write_options(image, {"log": "warn"})
    assert image.read_bytes() == before


def test_to_read_an_image_it_is_not_opened_for_writing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Watched(VariableStore):  # type: ignore[misc]
        def __init__(self, path: str, *arguments: int, **more: int) -> None:
            opened.append(path)
            super().__init__(path, *arguments, **more)

    monkeypatch.setattr(variables, "VariableStore", Watched)
    assert read_options(image) is None
    assert len(opened) == 1 and opened != [str(image)]


def test_the_verb_sets_shows_and_clears(image: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(options.command, [str(image), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output.strip()

    assert "no options" in run()
    assert run("log=warn") == "log=warn"
    assert run() == "log=warn"
    assert "no options" in run("--clear")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["log=loud"], "must be"),
        (["speed=9"], "no such option"),
        (["log"], "^log: must be OPTION=VALUE"),
        (["trace=" + "1" * 5000], "longer than"),
        (["--clear", "log=warn"], "does not go"),
    ],
)
def test_the_verb_refuses_and_changes_nothing(image: Path, arguments: list[str], message: str) -> None:
    before = image.read_bytes()
    with pytest.raises(UsageError, match=message):
        options.command.main([str(image), *arguments], standalone_mode=False)
    assert image.read_bytes() == before


def test_the_verb_wants_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        options.command.main([str(tmp_path / "none.fd")], standalone_mode=False)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's options in firmware images."""

import shutil
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from hvtools.errors import UsageError
from hvtools.generated.options import GUID
from hvtools.images.variables import read_options, write_options
from hvtools.verbs import options

OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
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
    content[72:100] = bytes(28)  # the store's own header, behind the volume's
    image.write_bytes(content)
    with pytest.raises(UsageError):
        read_options(image)


def test_a_full_store_says_so(image: Path) -> None:
    with pytest.raises(UsageError, match="too large"):
        write_options(image, {"log": "w" * (1 << 20)})


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
        (["log"], "OPTION=VALUE"),
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

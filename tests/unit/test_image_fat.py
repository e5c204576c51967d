# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The EFI system partition, read back by mtools."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvtools.errors import NoSpaceError, UsageError
from hvtools.images.fat import build_volume, check_name, volume_size
from hvtools.images.files import written_whole

ENVIRONMENT = dict(os.environ, MTOOLS_SKIP_CHECK="1")


def read(image: Path, path: str) -> bytes:
    command = ["mcopy", "-i", str(image), f"::/{path}", "-"]
    return subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT).stdout


def test_files_and_contents_come_back(tmp_path: Path) -> None:
    image = tmp_path / "esp.img"
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096)
    build_volume(
        image,
        {
            PurePosixPath("startup.nsh"): b"echo\r\n",
            PurePosixPath("add/deep/A long name.efi"): source,
            PurePosixPath("add/empty"): b"",
        },
    )
    assert read(image, "startup.nsh") == b"echo\r\n"
    assert read(image, "add/deep/A long name.efi") == source.read_bytes()
    assert read(image, "add/empty") == b""
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 3 << 20), max_size=12))
def test_every_contents_fit_into_the_size(tmp_path: Path, sizes: list[int]) -> None:
    image = tmp_path / "esp.img"
    files: dict[PurePosixPath, Path | bytes] = {PurePosixPath(f"f{at}"): bytes(size) for at, size in enumerate(sizes)}
    build_volume(image, files)
    assert image.stat().st_size == volume_size(sizes)


def test_many_small_files_fit(tmp_path: Path) -> None:
    build_volume(tmp_path / "esp.img", {PurePosixPath(f"add/{at:03}"): b"x" for at in range(200)})


def test_a_large_volume_fits(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(600 << 20)
    image = tmp_path / "esp.img"
    build_volume(image, {PurePosixPath("big"): big})
    assert image.stat().st_size > 600 << 20


@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../b", "a:b", "a*", 'a"b', "a\\b", "tab\tname", "dot.", ""])
def test_names_that_fat_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(PurePosixPath(name))


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same name"):
        build_volume(tmp_path / "esp.img", {PurePosixPath("add/A"): b"1", PurePosixPath("add/a"): b"2"})


def test_a_file_above_four_gib_is_refused(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(UsageError, match="4096.0 MiB"):
        build_volume(tmp_path / "esp.img", {PurePosixPath("big"): big})


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(NoSpaceError, match="no disk space in .* for the boot image, .* MiB are needed"):
        build_volume(tmp_path / "esp.img", {PurePosixPath("a"): b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    code = (
        "import pathlib, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from hvtools.images.files import written_whole\n"
        "with written_whole(pathlib.Path('whole')) as path:\n"
        "    path.write_bytes(bytes(1 << 20))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, preexec_fn=limited, capture_output=True, text=True, check=False
    )
    assert "UsageError: cannot write whole: File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_block_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"

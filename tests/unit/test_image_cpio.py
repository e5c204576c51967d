# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The archive of the initial RAM disk, read back by cpio(1)."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvtools.errors import HvError
from hvtools.images import cpio
from hvtools.images.initramfs import build_initramfs


def listing(archive: bytes) -> dict[str, list[str]]:
    """Name and `ls -l` columns of each member, by cpio(1)."""
    result = subprocess.run(["cpio", "-itvn", "--quiet"], input=archive, capture_output=True, check=True)
    assert result.stderr == b""
    lines = [line.split() for line in result.stdout.decode().splitlines()]
    return {(line[line.index("->") - 1] if "->" in line else line[-1]): line for line in lines}


def unpack(archive: bytes, folder: Path) -> None:
    subprocess.run(
        ["cpio", "-idm", "--quiet", "--no-absolute-filenames"], input=archive, cwd=folder, check=True, timeout=60
    )


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=8))
def test_cpio_reads_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("cpio")
    unpack(cpio.archive([cpio.regular(f"d/{name}", data) for name, data in files.items()]), folder)
    assert {path.name: path.read_bytes() for path in (folder / "d").iterdir()} == files


def test_modes_links_and_devices() -> None:
    members = listing(
        cpio.archive(
            [
                cpio.character_device("dev/mem", 1, 1, 0o640),
                cpio.directory("tmp", 0o1777),
                cpio.symlink("bin/sh", "busybox"),
                cpio.regular("init", b"x", 0o755),
            ]
        )
    )
    assert list(members) == ["dev", "dev/mem", "tmp", "bin", "bin/sh", "init"]
    assert members["dev/mem"][0] == "crw-r-----" and "1," in members["dev/mem"]
    assert members["tmp"][0] == "drwxrwxrwt"
    assert members["bin/sh"][0] == "lrwxrwxrwx" and members["bin/sh"][-1] == "busybox"
    assert members["init"][0] == "-rwxr-xr-x"


def test_the_same_contents_are_the_same_bytes() -> None:
    entries = [cpio.regular("a", b"1"), cpio.symlink("b", "a")]
    assert cpio.archive(entries) == cpio.archive(list(entries))


@pytest.mark.parametrize("path", ["/a", "a/../b", "..", "", "a//b", "./a"])
def test_paths_that_leave_the_archive_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        cpio.archive([cpio.regular(path, b"")])


def test_a_file_cannot_be_there_twice_but_a_folder_may() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.regular("a", b"1"), cpio.regular("a", b"2")])
    assert list(listing(cpio.archive([cpio.directory("d"), cpio.directory("d")]))) == ["d"]


@pytest.fixture
def programs(tmp_path: Path) -> tuple[Path, Path]:
    check = tmp_path / "check"
    check.write_bytes(b"\x7fELF check")
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\necho busybox; echo sh; echo ls\n")
    busybox.chmod(0o755)
    return check, busybox


def test_the_ram_disk_has_first_program_shell_script_and_additions(tmp_path: Path, programs: tuple[Path, Path]) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    tool = tmp_path / "tool"
    tool.write_text("t")
    tool.chmod(0o755)
    target = tmp_path / "initrd"
    build_initramfs(target, *programs, script=script, added={PurePosixPath("bin/tool"): tool})
    members = listing(gzip.decompress(target.read_bytes()))
    assert members["hvtools/init"][0] == "-rwxr-xr-x"
    assert members["hvtools/bin/sh"][-1] == "busybox"
    assert members["bin"][-1] == "hvtools/bin"
    assert members["add/bin/tool"][0] == "-rwxr-xr-x"
    assert {"hvtools/script", "dev/console", "dev/mem", "proc", "sys"} <= members.keys()


def test_ours_is_laid_over_a_ram_disk_that_is_given(tmp_path: Path, programs: tuple[Path, Path]) -> None:
    base = tmp_path / "base"
    base.write_bytes(cpio.archive([cpio.regular("etc/theirs", b"1")]) + b"\0")  # no multiple of four
    target = tmp_path / "initrd"
    build_initramfs(target, *programs, base=base)
    data = target.read_bytes()
    assert data.startswith(base.read_bytes())
    ours = data[(base.stat().st_size + 3) // 4 * 4 :]
    members = listing(gzip.decompress(ours))
    assert "bin" not in members, "their /bin stays theirs"
    assert "hvtools/init" in members


def test_a_broken_busybox_leaves_no_half_file(tmp_path: Path, programs: tuple[Path, Path]) -> None:
    programs[1].write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(HvError, match="applets"):
        build_initramfs(tmp_path / "initrd", *programs)
    assert not list(tmp_path.glob("*initrd*"))

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Bochs: fetched by checksum, built once, tried out before it is used. Neither network nor a compiler is needed."""

from __future__ import annotations

import io
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools import apt, bochs, cache
from hvtools.errors import CorruptError, HvError, NoSpaceError, NotThereError, UsageError

BANNER = "Bochs x86 Emulator 3.0"
# Stands for Bochs: says what the ROM would say, in the order VMX, SVM.
FAKE = """#!/bin/sh
echo "{banner}"
echo "Timestamp: Sun Feb 16 10:00:00 CET 2025"
printf {digits}
echo "Bochs is exiting with the following message:" >&2
echo "[UNMAP ] {message}" >&2
exit 1
"""


def fake(
    path: Path, digits: str = "11", banner: str = BANNER, message: str = "Shutdown port: shutdown requested"
) -> Path:
    path.write_text(FAKE.format(digits=digits, banner=banner, message=message))
    path.chmod(0o755)
    return path


def source(folder: Path, configure: str = "#!/bin/sh\nexit 0\n") -> Path:
    """A source package whose build gives the fake, and counts how often it ran."""
    program = FAKE.format(digits="11", banner=BANNER, message="Shutdown port: shutdown requested")
    makefile = f"all:\n\techo run >> {folder}/builds\n\tcp program bochs\n\tchmod 755 bochs\n"
    path = folder / bochs.TAR
    with tarfile.open(path, "w:xz") as tar:
        for name, text in (("configure", configure), ("Makefile", makefile), ("program", program)):
            member = tarfile.TarInfo(f"bochs-3.0/{name}")
            member.size = len(text)
            member.mode = 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[cache.Cache]:
    store = cache.Cache(tmp_path / "cache")
    monkeypatch.setattr(cache, "default", lambda: store)
    monkeypatch.delenv("HV_BOCHS", raising=False)
    yield store
    store.close()


@pytest.fixture
def archive(store: cache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive that has the source package; gives the folder of its files."""
    folder = tmp_path / "archive"
    folder.mkdir()
    tar = source(folder)
    monkeypatch.setattr(bochs, "TAR_SHA256", cache.sha256(tar))

    class Archive:
        def __init__(self, *_: object) -> None:
            pass

        def source_files(self, name: str) -> list[apt.SourceFile]:
            return [
                apt.SourceFile(name, "2.7-1", "bochs_2.7.orig.tar.gz", "0" * 64),
                apt.SourceFile(name, "3.0-1", bochs.TAR, cache.sha256(tar)),
            ]

        def download_source(self, file: apt.SourceFile, into: Path) -> Path:
            assert file.version == "3.0-1"
            (into / file.name).write_bytes(tar.read_bytes())
            return into / file.name

    monkeypatch.setattr(apt, "Archive", Archive)
    return folder


def builds(archive: Path) -> int:
    path = archive / "builds"
    return len(path.read_text().split()) if path.exists() else 0


def test_it_is_built_once_and_only_the_program_stays(archive: Path, store: cache.Cache) -> None:
    first = bochs.provide()
    assert bochs.provide() == first and builds(archive) == 1
    assert first.version == "3.0" and first.program.stat().st_mode & stat.S_IXUSR
    assert [path for path in (store.root / "tmp").iterdir()] == []
    tree = first.program.parents[1]
    assert {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()} == {"bin/bochs", ".hv-sums.json"}


def test_two_at_once_build_once(archive: Path) -> None:
    found: list[bochs.Bochs] = []
    threads = [threading.Thread(target=lambda: found.append(bochs.provide())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1] and builds(archive) == 1


def test_other_options_are_another_build(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bochs.provide()
    monkeypatch.setattr(bochs, "OPTIONS", (*bochs.OPTIONS, "--enable-more"))
    assert bochs.provide().program != first.program and builds(archive) == 2


def test_a_damaged_program_is_built_again(archive: Path) -> None:
    program = bochs.provide().program
    program.write_text("damaged")
    assert bochs.provide().program.read_text().startswith("#!") and builds(archive) == 2


def test_what_is_built_is_tried_before_it_is_kept(
    archive: Path, store: cache.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(program: Path, cpus: int) -> str:
        raise HvError("it lacks everything")

    monkeypatch.setattr(bochs, "check", refuse)
    with pytest.raises(HvError, match="lacks everything"):
        bochs.provide()
    assert not (store.root / "trees").exists()


def test_a_build_that_fails_names_the_first_error(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = source(archive, "#!/bin/sh\necho checking\necho 'configure: error: no compiler' >&2\necho more\nexit 1\n")
    monkeypatch.setattr(bochs, "TAR_SHA256", cache.sha256(tar))
    with pytest.raises(HvError, match="configure: error: no compiler") as caught:
        bochs.provide()
    assert "\n" not in caught.value.line


def test_a_full_disk_is_named() -> None:
    assert isinstance(bochs.build_error("make", ["x.o: No space left on device"]), NoSpaceError)
    assert "no output" in bochs.build_error("make", []).line


def test_another_checksum_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bochs, "TAR_SHA256", "1" * 64)
    with pytest.raises(CorruptError, match="another checksum"):
        bochs.provide()


def test_a_suite_without_it_is_named(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt.Archive, "source_files", lambda self, name: [])
    with pytest.raises(NotThereError, match=f"{bochs.SUITE} does not have bochs_3.0"):
        bochs.provide()


def test_somebodys_own_is_used_if_it_can_do_all(
    store: cache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fake(tmp_path / "own", banner="Bochs x86 Emulator 3.1.devel")
    monkeypatch.setenv("HV_BOCHS", str(own))
    assert bochs.provide() == bochs.Bochs(own, f"HV_BOCHS={own}", "3.1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"banner": "Bochs x86 Emulator 2.7"}, "version 2.7, and 3.0 is the oldest"),
        ({"banner": "something else"}, "does not say that it is Bochs"),
        ({"digits": "01"}, "corei7_skylake_x is without VMX"),
        ({"digits": "10"}, "ryzen is without SVM"),
        ({"digits": "", "message": "cpu directive malformed."}, "does not run: cpu directive malformed."),
    ],
)
def test_somebodys_own_that_lacks_something_is_refused_with_the_reason(
    store: cache.Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("HV_BOCHS", str(fake(tmp_path / "own", **changes)))
    with pytest.raises(UsageError, match="HV_BOCHS") as caught:
        bochs.provide()
    assert said in caught.value.line


def test_somebodys_own_that_is_not_there_is_refused(store: cache.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HV_BOCHS", "/no/such/bochs")
    with pytest.raises(UsageError, match="no program"):
        bochs.provide()


def test_the_rom_fits_its_reset_vector() -> None:
    rom = bochs._PROBE_ROM
    assert len(rom) == 0x10000
    jump = rom[0xFFF0:0xFFF3]
    assert jump[0] == 0xE9 and (0xFFF3 + int.from_bytes(jump[1:], "little")) & 0xFFFF == 0
    # The word that switches Bochs off is where the code looks for it.
    assert rom[0x34:].startswith(b"Shutdown")


def test_to_look_for_it_builds_nothing(archive: Path) -> None:
    assert bochs.find() is None and builds(archive) == 0
    provided = bochs.provide()
    assert bochs.find() == provided and builds(archive) == 1


def test_the_one_with_a_gdb_stub_is_another_build_with_one_processor(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def check(program: Path, cpus: int) -> str:
        tried.append(cpus)
        return "3.0"

    monkeypatch.setattr(bochs, "check", check)
    own = fake(archive / "own")
    monkeypatch.setenv("HV_BOCHS", str(own))
    found = bochs.provide(debugger=True)
    assert found.program != own and bochs.provide(debugger=True) == found and tried == [1] and builds(archive) == 1
    monkeypatch.delenv("HV_BOCHS")
    assert bochs.find() is None, "it does not stand for the other"
    assert bochs.provide().program != found.program and tried == [1, 2] and builds(archive) == 2

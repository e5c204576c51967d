# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The cache: complete or not there, whoever runs beside it and whatever goes wrong."""

import errno
import hashlib
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvtools import cache
from hvtools.cache import Cache
from hvtools.errors import CorruptError, HvError, NoSpaceError

DATA = b"some bytes that are worth keeping\n"
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Cache]:
    """A cache of its own."""
    opened = Cache(tmp_path / "cache")
    yield opened
    opened.close()


class Source:
    """A source that counts how often it is asked."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0

    def __call__(self, folder: Path) -> Path:
        self.asked += 1
        path = folder / "download"
        path.write_bytes(self.data)
        return path


def leftovers(store: Cache) -> list[Path]:
    return list((store.root / "tmp").rglob("*"))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HV_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_root() == tmp_path / ".cache" / "hvpkg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert cache.default_root() == tmp_path / ".cache" / "hvpkg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_root() == tmp_path / "xdg" / "hvpkg"
    monkeypatch.setenv("HV_CACHE", str(tmp_path / "own"))
    assert cache.default_root() == tmp_path / "own"


def test_a_file_is_fetched_once(store: Cache) -> None:
    source = Source(DATA)
    first = store.fetch(SHA, "f.tar", source)
    assert store.fetch(SHA, "f.tar", source) == first
    assert first.read_bytes() == DATA
    assert source.asked == 1
    assert not leftovers(store)


def test_a_corrupt_download_is_refused_and_leaves_nothing(store: Cache) -> None:
    with pytest.raises(CorruptError, match=f"download of f.tar is corrupt.*{SHA}") as raised:
        store.fetch(SHA, "f.tar", Source(DATA[:-1]))
    assert raised.value.exit_code == 2
    assert store.file(SHA, "f.tar") is None
    assert not leftovers(store)
    assert store.fetch(SHA, "f.tar", Source(DATA)).read_bytes() == DATA


@pytest.mark.parametrize("damage", [b"", DATA[:10], DATA[:-1] + b"!"])
def test_a_corrupted_cached_file_is_told_and_fetched_again(
    store: Cache, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store.fetch(SHA, "f.tar", Source(DATA))
    path.write_bytes(damage)
    source = Source(DATA)
    assert store.fetch(SHA, "f.tar", source).read_bytes() == DATA
    assert source.asked == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "f.tar in the cache is corrupted" in told[0]


def test_a_full_disk_is_one_error_and_leaves_nothing(store: Cache) -> None:
    def full(folder: Path) -> Path:
        (folder / "part").write_bytes(DATA)
        # The kernel's own answer to a write on a full disk.
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(DATA)
        raise AssertionError("a write to /dev/full succeeded")

    with pytest.raises(NoSpaceError, match="no space left in the cache .* for f.tar") as raised:
        store.fetch(SHA, "f.tar", full)
    assert raised.value.exit_code == 2
    assert not leftovers(store)
    assert not (store.root / "files" / SHA).exists()


def test_other_operating_system_errors_are_not_taken_for_a_full_disk(store: Cache) -> None:
    def denied(folder: Path) -> Path:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        store.fetch(SHA, "f.tar", denied)
    assert not leftovers(store)


def test_an_interrupted_fetch_leaves_nothing(store: Cache) -> None:
    def interrupted(folder: Path) -> Path:
        (folder / "part").write_bytes(DATA)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fetch(SHA, "f.tar", interrupted)
    assert not leftovers(store)
    assert store.fetch(SHA, "f.tar", Source(DATA)).read_bytes() == DATA


def test_a_tree_is_made_once_and_appears_complete(store: Cache) -> None:
    made = []

    def make(folder: Path) -> None:
        assert not (store.root / "trees" / "key").exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(DATA)
        made.append(folder)

    path = store.tree("key", "a tree", make)
    assert store.tree("key", "a tree", make) == path
    assert (path / "sub" / "file").read_bytes() == DATA
    assert len(made) == 1
    assert not leftovers(store)


def test_a_tree_that_fails_to_be_made_is_not_there(store: Cache) -> None:
    def half(folder: Path) -> None:
        (folder / "file").write_bytes(DATA)
        raise HvError("no")

    with pytest.raises(HvError, match="no"):
        store.tree("key", "a tree", half)
    assert not (store.root / "trees" / "key").exists()
    assert not leftovers(store)


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_damaged_checked_file_makes_the_tree_again(
    store: Cache, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(folder: Path) -> None:
        (folder / "boot").mkdir()
        (folder / "boot" / "vmlinuz").write_bytes(DATA)
        (folder / "other").write_bytes(DATA)

    path = store.tree("key", "the kernel", make, ("boot/*",))
    (path / "other").write_bytes(b"not compared")
    assert (store.tree("key", "the kernel", make, ("boot/*",)) / "other").read_bytes() == b"not compared"
    assert capsys.readouterr().err == ""
    if damage == "change":
        (path / "boot" / "vmlinuz").write_bytes(DATA[:-1])
    else:
        (path / "boot" / "vmlinuz").unlink()
    assert (store.tree("key", "the kernel", make, ("boot/*",)) / "boot" / "vmlinuz").read_bytes() == DATA
    assert "boot/vmlinuz of the kernel in the cache is corrupted" in capsys.readouterr().err
    assert not leftovers(store)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_pin_is_told_and_dropped(store: Cache, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    store.set_pin("kernel", {"version": "1"})
    assert store.pin("kernel") == {"version": "1"}
    (store.root / "pins" / "kernel.json").write_text(text)
    assert store.pin("kernel") is None
    assert "kernel.json in the cache is corrupted" in capsys.readouterr().err
    assert store.pin("kernel") is None
    assert capsys.readouterr().err == ""


def test_empty_removes_everything(store: Cache) -> None:
    store.fetch(SHA, "f.tar", Source(DATA))
    store.tree("key", "a tree", lambda folder: None)
    store.set_pin("kernel", {})
    store.empty()
    assert [entry.name for entry in store.root.iterdir()] == ["lock"]
    assert store.fetch(SHA, "f.tar", Source(DATA)).read_bytes() == DATA


FETCHER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from hvtools.cache import Cache

    root, sha, log, data = sys.argv[1:]
    store = Cache(Path(root))

    def source(folder):
        with open(log, "a") as file:
            file.write("asked\\n")
        print("in the source", flush=True)
        # Until the test lets us: the other process must find us here.
        sys.stdin.readline()
        path = folder / "f"
        path.write_text(data)
        return path

    print("ready", flush=True)
    print(store.fetch(sha, "f.tar", source).read_text(), flush=True)
    """
)


Process = subprocess.Popen[bytes]


def start(store_root: Path, log: Path) -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", FETCHER, str(store_root), SHA, str(log), DATA.decode()],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def said(process: Process) -> str:
    """The next line that it prints. Unbuffered, so that `select` sees what is left."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(tmp_path / "cache", log) as one, start(tmp_path / "cache", log) as two:
        try:
            assert said(one) == said(two) == "ready"
            assert one.stdout is not None and two.stdout is not None
            ready, _, _ = select.select([one.stdout, two.stdout], [], [], 30)
            first, second = (one, two) if one.stdout in ready else (two, one)
            assert said(first) == "in the source"
            # The other one waits for the lock, and says so.
            assert second.stderr is not None
            assert b"waiting for another hv" in second.stderr.readline()
            first.communicate(b"go\n", timeout=30)
            out, _ = second.communicate(timeout=30)
        finally:
            one.kill()
            two.kill()
    assert out.strip() == DATA.strip()
    assert (first.returncode, second.returncode) == (0, 0)
    assert log.read_text() == "asked\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_does_not_block_or_spoil_the_next(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with start(tmp_path / "cache", log) as process:
        assert said(process) == "ready"
        assert said(process) == "in the source"
        process.send_signal(number)
        process.wait(timeout=30)
    store = Cache(tmp_path / "cache")
    try:
        assert store.fetch(SHA, "f.tar", Source(DATA)).read_bytes() == DATA
        if number == signal.SIGINT:
            assert not leftovers(store)
    finally:
        store.close()


def test_the_cache_is_not_emptied_under_another_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(tmp_path / "cache", log) as process:
        assert said(process) == "ready"
        assert said(process) == "in the source"
        store = Cache(tmp_path / "cache")
        try:
            with pytest.raises(HvError, match="in use by another hv"):
                store.empty()
            out, _ = process.communicate(b"go\n", timeout=30)
            assert out.strip() == DATA.strip()
            store.empty()
        finally:
            store.close()


def test_a_cache_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HvError, match="cannot be used"):
        Cache(tmp_path / "file" / "cache")

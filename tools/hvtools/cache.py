# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The cache that all clones of a user share: downloads, unpacked trees, and which version of a package was found.

Everything in it is named by a checksum, appears by one rename when it is complete, and is made under a lock of its
own, so two runs at once are safe and a run that is cut off leaves nothing half-made that is ever looked at.

    files/SHA256/NAME    downloads
    trees/KEY/           unpacked or built trees
    pins/NAME.json       what a package name was resolved to
    apt/SUITE/           apt's lists for the fetches (see apt.py)
    tmp/                 what is being made
    locks/               one lock for each thing that is being made
    lock                 held shared by everybody who uses the cache, alone by who empties it
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache as memoize
from pathlib import Path
from typing import Any

from hvtools import ui
from hvtools.errors import CorruptError, HvError, NoSpaceError, is_no_space
from hvtools.images.files import to_disk
from hvtools.lock import SharedLock, locked

_SUMS = ".hv-sums.json"
"""In each tree: checksums of the files that are compared at every use."""


def default_root() -> Path:
    """The folder of the cache: $HV_CACHE, $XDG_CACHE_HOME/hvpkg or ~/.cache/hvpkg."""
    own = os.environ.get("HV_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification: a relative path is invalid and to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "hvpkg"
    return Path.home() / ".cache" / "hvpkg"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: str) -> str:
    """The key of a tree that is made from these parts: checksums, versions, steps."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Cache:
    """The cache in one folder."""

    def __init__(self, root: Path) -> None:
        """Opens the cache, and makes its folder when missing."""
        self.root = root
        try:
            self._users = SharedLock(root / "lock")
        except OSError as error:
            raise HvError(f"the cache {root} cannot be used: {error.strerror}") from error

    def close(self) -> None:
        """Says that this process does not use the cache any more."""
        self._users.close()

    def _lock(self, name: str, what: str) -> contextlib.AbstractContextManager[None]:
        return locked(self.root / "locks" / name, lambda: ui.info(f"waiting for another hv that makes {what}"))

    @contextlib.contextmanager
    def _making(self, what: str) -> Iterator[Path]:
        """A temporary folder inside the cache; gone afterwards, whatever happened."""
        try:
            parent = self.root / "tmp"
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=parent))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            if is_no_space(error):
                raise NoSpaceError(f"no space left in the cache {self.root} for {what}") from error
            raise

    def file(self, sha: str, name: str) -> Path | None:
        """The cached file with this checksum, or None; a corrupted one is removed with a warning."""
        path = self.root / "files" / sha / name
        try:
            found = sha256(path)
        except FileNotFoundError:
            return None
        if found == sha:
            return path
        ui.warn(f"{name} in the cache is corrupted (SHA-256 {found[:16]}..., not {sha[:16]}...): removed")
        shutil.rmtree(path.parent)
        return None

    def fetch(self, sha: str, name: str, source: Callable[[Path], Path]) -> Path:
        """The file with this checksum: from the cache, else from its source.

        Args:
            sha: SHA-256 that the file must have, in hex.
            name: name of the file in the cache.
            source: brings the file into the folder that it is given, and returns its path.

        Returns:
            The path of the file in the cache; not to be written to.

        Raises:
            CorruptError: what the source brought has another checksum.
            NoSpaceError: the disk is full.
        """
        with self._lock(sha, name):
            cached = self.file(sha, name)
            if cached is not None:
                return cached
            with self._making(name) as folder:
                got = source(folder)
                found = sha256(got)
                if found != sha:
                    raise CorruptError(f"the download of {name} is corrupt: its SHA-256 is {found}, not {sha}")
                path = self.root / "files" / sha / name
                path.parent.mkdir(parents=True, exist_ok=True)
                to_disk(got)
                got.replace(path)
            return path

    def tree(self, key: str, what: str, make: Callable[[Path], None], check: tuple[str, ...] = ()) -> Path:
        """The tree with this key: from the cache, else made.

        Args:
            key: names the tree; changes with whatever the tree is made from (`key_of`).
            what: the tree's name for people.
            make: fills the empty folder that it is given. The folder is renamed afterwards.
            check: glob patterns of the files in it whose checksums are noted, and compared at every use.
        """
        path = self.root / "trees" / key
        if not _fault(path):
            return path
        with self._lock(key, what):
            fault = _fault(path)
            if not fault:
                return path
            if path.exists():
                ui.warn(f"{fault} of {what} in the cache is corrupted: made again")
            with self._making(what) as folder:
                if path.exists():
                    path.replace(folder / "bad")
                made = folder / "tree"
                made.mkdir()
                make(made)
                sums = {
                    str(found.relative_to(made)): sha256(found)
                    for pattern in check
                    for found in made.glob(pattern)
                    if found.is_file()
                }
                (made / _SUMS).write_text(json.dumps(sums, indent=1) + "\n")
                path.parent.mkdir(parents=True, exist_ok=True)
                made.replace(path)
        return path

    def find(self, key: str) -> Path | None:
        """The tree with this key if it is there and sound."""
        path = self.root / "trees" / key
        return None if _fault(path) else path

    def pin(self, name: str) -> dict[str, Any] | None:
        """What was noted under this name, or None."""
        path = self.root / "pins" / f"{name}.json"
        try:
            noted = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            noted = None
        if isinstance(noted, dict):
            return noted
        ui.warn(f"{path.name} in the cache is corrupted: removed")
        path.unlink(missing_ok=True)
        return None

    def set_pin(self, name: str, value: dict[str, Any]) -> None:
        """Notes a value under this name."""
        path = self.root / "pins" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._making(path.name) as folder:
            new = folder / path.name
            new.write_text(json.dumps(value, indent=1) + "\n")
            new.replace(path)

    def empty(self) -> int:
        """Removes everything.

        Returns:
            The number of bytes that were freed.

        Raises:
            HvError: another run uses the cache.
        """
        if not self._users.try_own():
            raise HvError(f"the cache {self.root} is in use by another hv")
        freed = 0
        for entry in self.root.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                freed += sum(p.lstat().st_blocks * 512 for p in entry.rglob("*"))
                shutil.rmtree(entry)
            else:
                freed += entry.lstat().st_blocks * 512
                entry.unlink()
        return freed


def _fault(tree: Path) -> str:
    """What is wrong with a tree: the file that is not what was noted, or the tree itself; empty when it is good."""
    if not tree.is_dir():
        return "all"
    try:
        sums: dict[str, str] = json.loads((tree / _SUMS).read_text())
    except (OSError, ValueError):
        return _SUMS
    for name, noted in sums.items():
        if not (tree / name).is_file() or sha256(tree / name) != noted:
            return name
    return ""


@memoize
def default() -> Cache:
    """The cache of this user, opened once in a process."""
    return Cache(default_root())

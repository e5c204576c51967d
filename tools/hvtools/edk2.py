# SPDX-License-Identifier: BSD-2-Clause-Patent
"""EDK2: fetched, unpacked and its BaseTools built once for all clones, and linked into each clone's work tree.

stuart finds BaseTools only below the workspace, and it does not follow symbolic links while it searches. So a clone
has a folder `edk2` that is real wherever stuart must look (folders with, or above, one of its descriptor files) and
a symbolic link everywhere else: a few hundred links instead of 19,000 files.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hvtools import apt, cache, ui
from hvtools.errors import CorruptError, HvError, NetworkError, NoSpaceError, NotThereError, UsageError
from hvtools.lock import locked

VERSION = "2025.02"
SUITE = "trixie"
TAR = f"edk2_{VERSION}.orig.tar.xz"
TAR_SHA256 = "b63b6053d6d89c74d9291f9e96fde1584be99e6fb9c169ba9511505129d6b049"
GIT_URL = "https://github.com/tianocore/edk2.git"
GIT_TAG = "edk2-stable202502"
GIT_COMMIT = "fbe0805b2091393406952e84724188f8c1941837"
# The package declarations name folders in them, and a build checks that they exist.
GIT_SUBMODULES = (
    "MdePkg/Library/MipiSysTLib/mipisyst",
    "MdeModulePkg/Library/BrotliCustomDecompressLib/brotli",
)

LINK = "edk2"
"""The folder's name in a clone; stuart_settings.py and .gitignore have it too."""

# All of BaseTools' C programs but BrotliCompress, whose source is a submodule that Debian's tar file lacks.
_TOOLS = "VfrCompile EfiRom GenFfs GenFv GenFw GenSec GenCrc32 LzmaCompress TianoCompress VolInfo DevicePath"
_DESCRIPTOR = re.compile(r"(path_env|ext_dep|plug_in)\.(json|yaml)$", re.IGNORECASE)
_SOURCE = ".hv-source"
_HOST_TOOLS = Path("BaseTools", "Source", "C")
_NO_SOURCES = (".git", "__pycache__")


@dataclass(frozen=True)
class Edk2:
    """An EDK2 tree with built BaseTools."""

    path: Path
    origin: str
    """Where it comes from, for people."""
    identity: str
    """Changes with the tree; part of what a build depends on."""


def _build_tools(tree: Path) -> None:
    """Builds BaseTools' C programs, if that was not done yet."""
    source = tree / _HOST_TOOLS
    if all((source / "bin" / tool).is_file() for tool in ("GenFw", "GenFv", "GenFfs", "GenSec")):
        return
    with ui.step("building EDK2's BaseTools"):
        result = subprocess.run(
            ["make", "-C", str(source), f"APPLICATIONS={_TOOLS}", f"-j{os.cpu_count() or 1}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if result.returncode != 0:
            raise _tools_error(result.stdout)


def _tools_error(output: str) -> HvError:
    if "No space left on device" in output:
        return NoSpaceError("no space left on the disk for EDK2's BaseTools")
    lines = [line for line in output.splitlines() if "rror" in line] or output.splitlines() or ["no output"]
    return HvError(f"EDK2's BaseTools do not build: {lines[0]}")


def _unpack(tar: Path, into: Path) -> None:
    """Unpacks Debian's tar file, without the folder at its top."""
    with ui.step(f"unpacking EDK2 {VERSION}"):
        result = subprocess.run(
            ["tar", "-x", "-J", "-f", str(tar), "--strip-components=1", "-C", str(into)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if "No space left on device" in result.stderr:
            raise NoSpaceError(f"no space left in the cache for EDK2 {VERSION}")
        if result.returncode != 0:
            raise HvError(f"EDK2 does not unpack: {result.stderr.strip().splitlines()[-1:]}")


def _from_debian(store: cache.Cache, into: Path) -> None:
    """Fills a folder with EDK2 from Debian's source package: whichever version has the tar file with our checksum."""
    archive = apt.Archive(store, SUITE, "deb-src")

    def download(folder: Path) -> Path:
        files = [file for file in archive.source_files("edk2") if file.name == TAR]
        for file in files:
            if file.sha256 == TAR_SHA256:
                with ui.step(f"fetching EDK2 {VERSION} (source package {file.version}, 30 MB)"):
                    return archive.download_source(file, folder)
        if files:
            raise CorruptError(f"the package archive's {TAR} has another checksum than EDK2 {VERSION} is known by")
        raise NotThereError(f"the package archive answers, but {SUITE} does not have {TAR}")

    _unpack(store.fetch(TAR_SHA256, TAR, download), into)


def _git(*arguments: str) -> None:
    result = subprocess.run(
        ["git", *arguments],
        env={**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise git_failure(result.stderr)


def git_failure(output: str) -> HvError:
    """The error that stands behind a failed git command."""
    told = [line for line in output.splitlines() if line.startswith(("fatal:", "error:"))]
    reason = (told or output.splitlines() or ["no reason given"])[0]
    if re.search(r"No space left|Disk quota", output):
        return NoSpaceError(f"no space left in the cache for EDK2 {VERSION}")
    if re.search(r"not found in upstream|epository .*not found|couldn't find remote ref|error: 404", output):
        return NotThereError(f"{GIT_URL} answers, but does not have {GIT_TAG} ({reason})")
    if re.search(r"Could not resolve|ouldn't connect|Failed to connect|timed out|unreachable|unable to access", output):
        return NetworkError(f"no network for EDK2's git repository ({reason})")
    return HvError(f"git could not get EDK2 {VERSION}: {reason}")


def _from_git(into: Path, url: str = GIT_URL, commit: str = GIT_COMMIT) -> None:
    """Fills a folder with EDK2 from its own repository: the tag, which must be the commit that we know."""
    with ui.step(f"fetching EDK2 {GIT_TAG} by git"):
        _git("clone", "--quiet", "--depth=1", "--branch", GIT_TAG, url, str(into))
        head = subprocess.run(["git", "-C", str(into), "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.stdout.strip() != commit:
            raise CorruptError(f"the tag {GIT_TAG} at {url} is not the commit {commit}")
        if GIT_SUBMODULES:
            _git("-C", str(into), "submodule", "--quiet", "update", "--init", "--depth=1", "--", *GIT_SUBMODULES)


def _own_tree(value: str) -> Path:
    """Somebody's own checkout, named by $HV_EDK2_DIR, as it is."""
    path = Path(value).absolute()
    if not (path / "MdePkg" / "MdePkg.dec").is_file() or not (path / _HOST_TOOLS).is_dir():
        raise UsageError(f"HV_EDK2_DIR: {path} is not an EDK2 tree (it has no MdePkg or no BaseTools)")
    return path


def _own(value: str) -> Edk2:
    """Somebody's own checkout with built BaseTools."""
    path = _own_tree(value)
    with locked(cache.default().root / "locks" / cache.key_of("own", str(path))):
        _build_tools(path)
    return Edk2(path, f"HV_EDK2_DIR={path}", f"own {path} {_sources_key(path)}")


def _sources_key(tree: Path) -> str:
    """Changes with any edit of a tree, which need not be a git repository: names, sizes and times, as make has them."""
    found = hashlib.sha256()
    made = {tree / _HOST_TOOLS, tree / "Build", tree / "Conf"}
    for root, dirs, files in os.walk(tree):
        dirs[:] = sorted(name for name in dirs if name not in _NO_SOURCES and Path(root, name) not in made)
        for name in sorted(files):
            path = Path(root, name)
            status = path.lstat()
            found.update(f"{path.relative_to(tree)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _key() -> str:
    return cache.key_of("edk2", TAR_SHA256, GIT_COMMIT, _TOOLS)


def provide() -> Edk2:
    """EDK2 with built BaseTools: $HV_EDK2_DIR if set, else from the cache, which Debian's archive or git fills.

    Raises:
        HvError: no way led there; the message names each way's reason.
    """
    own = os.environ.get("HV_EDK2_DIR")
    if own:
        return _own(own)
    store = cache.default()

    def make(tree: Path) -> None:
        try:
            _from_debian(store, tree)
        except (NotThereError, NetworkError) as debian:
            ui.warn(debian.line)
            # git clones into an empty folder only.
            shutil.rmtree(tree)
            try:
                _from_git(tree)
            except (NotThereError, NetworkError) as git:
                raise type(git)(f"EDK2 {VERSION} cannot be had: {debian.line}; {git.line}") from git
        _build_tools(tree)

    path = store.tree(_key(), f"EDK2 {VERSION}", make)
    return Edk2(path, f"EDK2 {VERSION}", _key())


def find() -> str | None:
    """Where the EDK2 of `provide` comes from, for people; None if it would have to be fetched.

    Raises:
        UsageError: $HV_EDK2_DIR is none that we can use.
    """
    if own := os.environ.get("HV_EDK2_DIR"):
        return f"HV_EDK2_DIR={_own_tree(own)}"
    return f"EDK2 {VERSION}" if cache.default().find(_key()) else None


def link(tree: Path, workspace: Path) -> Path:
    """Makes an EDK2 tree appear in a workspace.

    Args:
        tree: the EDK2 tree.
        workspace: the clone.

    Returns:
        The folder in the workspace. One that is not ours (a checkout that somebody put there) is used as it is.
    """
    place = workspace / LINK
    mark = place / _SOURCE
    tree = tree.resolve()
    with locked(workspace / ".hv" / "edk2.lock"):
        if mark.is_file():
            if mark.read_text() == str(tree):
                return place
        elif place.is_symlink():
            place.unlink()
        elif place.is_dir():
            if (place / "MdePkg" / "MdePkg.dec").is_file() and not (place / "MdePkg").is_symlink():
                return place
        with tempfile.TemporaryDirectory(dir=workspace / ".hv", prefix="edk2-") as temporary:
            fresh = Path(temporary) / "new"
            _mirror(tree, fresh, _searched(tree))
            (fresh / _SOURCE).write_text(str(tree))
            if place.exists():
                place.rename(Path(temporary) / "old")
            fresh.rename(place)
    return place


def unlink(workspace: Path) -> None:
    """Removes the folder again, if it is ours."""
    place = workspace / LINK
    if (place / _SOURCE).is_file():
        shutil.rmtree(place)


def _searched(tree: Path) -> set[Path]:
    """The folders that must be real for stuart: those with a descriptor file, and those above them."""
    found: set[Path] = set()
    for root, dirs, files in os.walk(tree):
        dirs[:] = [name for name in dirs if name != ".git"]
        if any(_DESCRIPTOR.search(name) for name in files):
            folder = Path(root)
            while folder != tree and folder not in found:
                found.add(folder)
                folder = folder.parent
    return found


def _mirror(source: Path, target: Path, real: set[Path]) -> None:
    """Makes a folder that has the source's entries as symbolic links, the `real` ones as folders of the same kind."""
    target.mkdir()
    for entry in os.scandir(source):
        path = Path(entry.path)
        if path in real:
            _mirror(path, target / entry.name, real)
        elif entry.name != ".git":
            os.symlink(path, target / entry.name)


def ready(workspace: Path) -> Edk2:
    """EDK2, linked into a workspace: what a build of it needs."""
    edk2 = provide()
    link(edk2.path, workspace)
    return edk2

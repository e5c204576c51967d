# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Debian packages: installed on the machine by name, or fetched into the cache without touching the machine.

A fetch uses an apt configuration of its own (lists, cache, sources; no file under /etc changes). Its sources are the
machine's own Debian entries with another suite, so mirrors, proxies and keys stay what the machine's owner chose.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hvtools import ui
from hvtools.cache import Cache
from hvtools.errors import HvError, NetworkError, NoSpaceError, NotThereError
from hvtools.lock import locked

ETC = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")

# How apt words it, in the order of asking: a full disk makes every other line meaningless, and a package that cannot
# be had because a host did not answer is a matter of the network.
_NO_SPACE = re.compile(r"No space left on device|don't have enough free space|Disk quota exceeded")
_NO_NETWORK = re.compile(
    r"Temporary failure resolving|Could not resolve|Could not connect|Cannot initiate the connection|Unable to connect"
    r"|Connection (timed out|failed|refused|reset)|Connection time ?out|Network is unreachable|No route to host"
    r"|Name or service not known|Something wicked happened resolving"
)
_NOT_THERE = re.compile(
    r"\b404\b|Unable to locate package|Unable to find a source package|Can not find version|No packages found"
    r"|Version '.*' for '.*' was not found|has no installation candidate|does not have a Release file"
)


def _run(command: list[str], cwd: Path | None = None, own_session: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command of apt or dpkg in English, both streams captured together."""
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=own_session,
        )
    except FileNotFoundError:
        raise HvError(f"{command[0]} is not on this machine: set-up needs Debian, or one of its relatives") from None


def _run_to_its_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs apt-get on the machine's own packages; who wants to stop us in the meantime waits for its end.

    dpkg that is killed in the middle leaves packages that no later installation goes past.
    """
    wanted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if not wanted:
            ui.info("stopping when apt-get has come to its end")
        wanted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return _run(command, own_session=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if wanted:
            signal.raise_signal(wanted[0])


def failure(what: str, output: str) -> HvError:
    """The error that stands behind a failed apt command.

    Args:
        what: what was wanted, for the message.
        output: what apt said, in English.
    """
    lines = output.splitlines()
    # apt's own summary first; a line on one item has its reason in the line below.
    told = [line for line in lines if line.startswith("E:")] or [line for line in lines if line.startswith("W:")]
    told = told or [f"{line} {below}" for line, below in zip(lines, lines[1:], strict=False) if line.startswith("Err:")]
    reason = " ".join((told or lines or ["no reason given"])[0].split())
    if _NO_SPACE.search(output):
        return NoSpaceError(f"no space left on the disk for {what}")
    if _NO_NETWORK.search(output):
        return NetworkError(f"no network for {what}: the package archive did not answer ({reason})")
    if _NOT_THERE.search(output):
        return NotThereError(f"the package archive answers, but does not have {what} ({reason})")
    return HvError(f"apt could not get {what}: {reason}")


def install(packages: Iterable[str]) -> None:
    """Installs packages on the machine, as root or by sudo.

    Raises:
        HvError: neither is possible, and the message has the command to run; or apt failed.
    """
    names = sorted(set(packages))
    line = "apt-get install -y --no-install-recommends " + " ".join(names)
    if shutil.which("apt-get") is None:
        raise HvError(f"these are missing, and there is no apt-get to install them: {' '.join(names)}")
    prefix: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or _run(["sudo", "-n", "true"]).returncode != 0:
            raise HvError(f"packages are missing, and only root can install them; run: sudo {line}")
        prefix = ["sudo", "-n", "env", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]
    with ui.step(f"installing {' '.join(names)}"):
        # The lock is dpkg's own: two runs at once wait for each other.
        command = [*prefix, "apt-get", "-o", "DPkg::Lock::Timeout=600", *line.split()[1:]]
        result = _run_to_its_end(command)
        if result.returncode != 0 and not _NO_SPACE.search(result.stdout):
            # The machine's lists may be missing or old. A foreign source that fails is not our affair.
            update = _run_to_its_end([*prefix, "apt-get", "-o", "DPkg::Lock::Timeout=600", "update"])
            result = _run_to_its_end(command)
            if result.returncode != 0 and _NO_NETWORK.search(update.stdout):
                raise failure(f"the packages {' '.join(names)}", update.stdout)
        if result.returncode != 0:
            raise failure(f"the packages {' '.join(names)}", result.stdout)


@dataclass(frozen=True)
class Entry:
    """An entry of apt's sources."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def parse_list(text: str) -> list[Entry]:
    """Reads the one-line format (sources.list); commented lines and source entries are left out."""
    entries = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match:
            options, uri, suite, components = match.groups()
            signed = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
            entries.append(Entry((uri,), (suite,), tuple(components.split()), signed[1] if signed else ""))
    return entries


def parse_deb822(text: str) -> list[Entry]:
    """Reads the paragraph format (*.sources); disabled paragraphs and source entries are left out."""
    entries = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.splitlines():
            if line[:1].isspace() and key:
                fields[key].append(line.strip())
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = [value.strip()]

        def words(name: str, fields: dict[str, list[str]] = fields) -> tuple[str, ...]:
            return tuple(" ".join(fields.get(name, [])).split())

        if "deb" in words("types") and words("uris") and words("enabled") not in (("no",), ("false",)):
            # A key may stand in the file itself, on continuation lines: then its line breaks count.
            signed = "\n ".join(fields.get("signed-by", []))
            entries.append(Entry(words("uris"), words("suites"), words("components"), signed))
    return entries


def machine_entries(etc: Path = ETC) -> list[Entry]:
    """Every binary entry that the machine's apt uses."""
    entries = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        if path.is_file():
            entries += parse_list(path.read_text(errors="replace"))
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        entries += parse_deb822(path.read_text(errors="replace"))
    return entries


def sources_for(suite: str, types: str, entries: Iterable[Entry], codename: str) -> str:
    """Derives the sources of another suite from the machine's own Debian entries.

    Args:
        suite: the wanted suite, as `trixie`; its updates and security suites come along where the machine has them.
        types: `deb` or `deb-src`.
        entries: the machine's entries.
        codename: the machine's own suite, as `bookworm`.

    Returns:
        Paragraphs for a .sources file.

    Raises:
        HvError: the machine has no Debian entry.
    """
    mapped = {own + tail: suite + tail for own in (codename, "stable") for tail in ("", "-updates", "-security")}
    paragraphs = []
    for entry in entries:
        suites = [mapped[name.strip("/")] for name in entry.suites if name.strip("/") in mapped]
        # Others publish under Debian's suite names too, but not with Debian's key and component.
        foreign = entry.signed_by and "debian-archive" not in entry.signed_by and "BEGIN PGP" not in entry.signed_by
        if suites and "main" in entry.components and not foreign:
            lines = [
                f"Types: {types}",
                f"URIs: {' '.join(entry.uris)}",
                f"Suites: {' '.join(suites)}",
                "Components: main",
            ]
            if entry.signed_by:
                lines.append(f"Signed-By: {entry.signed_by}")
            paragraphs.append("\n".join(lines) + "\n")
    if not paragraphs:
        raise HvError(f"no Debian entry in this machine's apt sources from which one for {suite} can be derived")
    return "\n".join(paragraphs)


def codename_of(os_release: Path = OS_RELEASE) -> str:
    """The machine's suite, as `bookworm`; empty when it does not say."""
    try:
        match = re.search(r'^VERSION_CODENAME="?(\w+)', os_release.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


@dataclass(frozen=True)
class Package:
    """One version of a binary package in an archive."""

    name: str
    version: str
    sha256: str
    depends: str = ""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source package in an archive."""

    package: str
    version: str
    name: str
    sha256: str


_updated: set[Path] = set()
"""The apt configurations whose lists this process brought up to date."""


class Archive:
    """A suite of the Debian archive, through an apt configuration of its own that lives in the cache."""

    def __init__(self, cache: Cache, suite: str, types: str) -> None:
        """Prepares the configuration; no network yet.

        Args:
            cache: where lists and downloads go.
            suite: the suite, as `trixie`.
            types: `deb` or `deb-src`.
        """
        self._suite = suite
        self._types = types
        self._folder = cache.root / "apt" / f"{suite}-{types}"
        self._lock = cache.root / "locks" / f"apt-{suite}-{types}"

    def _options(self) -> list[str]:
        folder = self._folder
        return [
            *("-o", f"Dir::State={folder}/state"),
            *("-o", f"Dir::State::status={folder}/status"),
            *("-o", f"Dir::Cache={folder}/cache"),
            *("-o", f"Dir::Etc::sourcelist={folder}/debian.sources"),
            *("-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", "Dir::Etc::preferencesparts=/dev/null"),
            *("-o", "Dir::Etc::preferences=/dev/null"),
            *("-o", "Acquire::Languages=none"),
            *("-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"),
            *("-o", "Acquire::Retries=2"),
            *("-o", "APT::Update::Error-Mode=any"),
            # Root's apt drops to a user who may not write into root's cache.
            *("-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"),
        ]

    def _call(self, tool: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        # Nobody may change the lists while they are read.
        with locked(self._lock):
            return _run([tool, *self._options(), *arguments], cwd)

    def update(self) -> None:
        """Brings the lists up to date, once in a process.

        Raises:
            NetworkError: the archive did not answer.
            NotThereError: the archive does not have the suite.
        """
        if self._folder in _updated:
            return
        with (
            locked(self._lock, lambda: ui.info("waiting for another hv that reads package lists")),
            ui.step(f"reading the package lists of {self._suite}"),
        ):
            for part in ("state/lists/partial", "cache/archives/partial"):
                (self._folder / part).mkdir(parents=True, exist_ok=True)
            (self._folder / "status").touch()
            text = sources_for(self._suite, self._types, machine_entries(), codename_of())
            (self._folder / "debian.sources").write_text(text)
            result = _run(["apt-get", *self._options(), "update"])
            if result.returncode != 0:
                raise failure(f"the package lists of {self._suite}", result.stdout)
        _updated.add(self._folder)

    def package(self, name: str, version: str = "") -> Package:
        """Looks a binary package up: the version that is asked for, else the newest.

        Raises:
            NotThereError: the archive does not have it.
        """
        self.update()
        wanted = f"{name}={version}" if version else name
        result = self._call("apt-cache", "--no-all-versions", "show", wanted)
        fields = dict(re.findall(r"^(\S+?): *(.*)$", result.stdout, re.MULTILINE))
        if result.returncode != 0 or "SHA256" not in fields:
            raise NotThereError(f"the package archive answers, but {self._suite} does not have {wanted}")
        return Package(fields["Package"], fields["Version"], fields["SHA256"], fields.get("Depends", ""))

    def download(self, package: Package, folder: Path) -> Path:
        """Downloads a binary package into a folder; for `Cache.fetch`."""
        wanted = f"{package.name}={package.version}"
        self.update()
        result = self._call("apt-get", "download", wanted, cwd=folder)
        found = sorted(folder.glob("*.deb"))
        if result.returncode != 0 or not found:
            raise failure(wanted, result.stdout)
        return found[0]

    def source_files(self, name: str) -> list[SourceFile]:
        """Lists the files of every version of a source package, with their checksums.

        Raises:
            NotThereError: the archive does not have the package.
        """
        self.update()
        result = self._call("apt-cache", "showsrc", "--only-source", name)
        files = []
        for paragraph in result.stdout.split("\n\n"):
            version = re.search(r"^Version: *(\S+)", paragraph, re.MULTILINE)
            sums = re.search(r"^Checksums-Sha256:(?:.*)\n((?: .*(?:\n|$))+)", paragraph, re.MULTILINE)
            if version and sums:
                for sha, _size, file in (line.split() for line in sums[1].splitlines() if line.strip()):
                    files.append(SourceFile(name, version[1], file, sha))
        if not files:
            raise NotThereError(f"the package archive answers, but {self._suite} does not have the source of {name}")
        return files

    def download_source(self, file: SourceFile, folder: Path) -> Path:
        """Downloads the tar file of a source package into a folder; for `Cache.fetch`.

        Some mirrors lack the .dsc file: it is not needed, so only the tar file's arrival counts.
        """
        self.update()
        wanted = f"{file.package}={file.version}"
        result = self._call("apt-get", "source", "--tar-only", "--download-only", wanted, cwd=folder)
        path = folder / file.name
        if not path.is_file():
            raise failure(f"{file.name} of the source package {wanted}", result.stdout)
        return path

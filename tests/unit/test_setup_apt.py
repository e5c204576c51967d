# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Debian packages: sources derived from the machine's own, and each failure told for what it is, with a fake apt."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvtools import apt, cache, edk2, linux
from hvtools.cache import Cache
from hvtools.errors import CorruptError, HvError, NetworkError, NoSpaceError, NotThereError

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # a remark
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
http://mirror.example/debian-security bookworm-security main
deb [signed-by=/etc/apt/keyrings/vendor.asc] https://vendor.example/debian bookworm main
deb https://tools.example/apt cloud-bookworm main
deb http://mirror.example/debian bookworm-backports main
"""

DEB822 = """
# http://a.remark.example
Types: deb deb-src
# a remark inside
URIs: http://mirror.example/debian
 http://second.example/debian
Suites: bookworm bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://key.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def test_sources_from_the_one_line_format() -> None:
    text = apt.sources_for("trixie", "deb-src", apt.parse_list(ONE_LINE), "bookworm")
    assert text == (
        "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n\n"
        "Types: deb-src\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_sources_from_the_paragraph_format() -> None:
    text = apt.sources_for("trixie", "deb", apt.parse_deb822(DEB822), "bookworm")
    first, second = text.split("\n\n")
    assert first.splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian http://second.example/debian",
        "Suites: trixie trixie-updates",
        "Components: main",
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
    ]
    assert second.splitlines()[1] == "URIs: http://key.example/debian"
    assert second.splitlines()[4:] == [
        "Signed-By: ",
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " abc",
    ]
    # What is written must be read back as what was meant.
    assert apt.parse_deb822(text)[0].suites == ("trixie", "trixie-updates")


def test_sources_of_the_machines_own_suite_and_of_stable() -> None:
    entries = [apt.Entry(("http://m.example/debian",), ("stable", "stable-updates"), ("main",))]
    assert "Suites: bookworm bookworm-updates\n" in apt.sources_for("bookworm", "deb", entries, "bookworm")


def test_a_machine_without_a_debian_entry_is_told() -> None:
    entries = [apt.Entry(("http://m.example/ubuntu",), ("noble",), ("main", "universe"))]
    with pytest.raises(HvError, match="no Debian entry"):
        apt.sources_for("trixie", "deb", entries, "noble-not")


def test_the_machines_entries_come_from_every_file(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "b.list").write_text("deb http://two.example/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "c.sources").write_text(DEB822)
    uris = [uri for entry in apt.machine_entries(tmp_path) for uri in entry.uris]
    assert uris == [
        "http://one.example/debian",
        "http://two.example/debian",
        "http://mirror.example/debian",
        "http://second.example/debian",
        "http://key.example/debian",
    ]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("E: Unable to locate package nope", NotThereError),
        ("Err:1 http://m.example x InRelease\n  404  Not Found [IP: 1.2.3.4 80]", NotThereError),
        ("E: The repository 'http://m.example x Release' does not have a Release file.", NotThereError),
        ("E: Can not find version '1' of package 'edk2'\nE: Unable to find a source package for edk2", NotThereError),
        ("E: Version '1' for 'bash' was not found", NotThereError),
        ("W: Failed to fetch http://m.example/x  Temporary failure resolving 'm.example'", NetworkError),
        ("E: Failed to fetch http://m.example/x  Could not connect to m.example:80 (1.2.3.4).", NetworkError),
        ("E: Failed to fetch http://m.example/x  Connection failed [IP: 1.2.3.4 80]", NetworkError),
        # No lists because of no network: the second line is only what follows from the first.
        ("W: Failed to fetch x  Could not resolve 'm.example'\nE: Unable to locate package bash", NetworkError),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", NoSpaceError),
        ("E: Write error - write (28: No space left on device)\nE: Unable to locate package x", NoSpaceError),
        ("E: Sub-process /usr/bin/dpkg returned an error code (1)", HvError),
        ("", HvError),
    ],
)
def test_what_apt_says_is_understood(said: str, kind: type[HvError]) -> None:
    error = apt.failure("the thing", said)
    assert type(error) is kind
    assert "the thing" in error.line
    assert "\n" not in error.line


Fake = Callable[[str, str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts shell scripts in front of the machine's own commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        path = folder / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)

    return put


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """A cache of its own that every module uses, on a machine with a plain Debian entry."""
    opened = Cache(tmp_path / "cache")
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    monkeypatch.setattr(cache, "default", lambda: opened)
    monkeypatch.setattr(apt, "machine_entries", lambda: apt.parse_list((etc / "sources.list").read_text()))
    monkeypatch.setattr(apt, "codename_of", lambda: "bookworm")
    monkeypatch.setattr(apt, "_updated", set())
    monkeypatch.delenv("HV_EDK2_DIR", raising=False)
    yield opened
    opened.close()


@pytest.fixture
def calls(tmp_path: Path, fake: Fake) -> Callable[[], list[str]]:
    """An apt-get that notes how it is called, and does what the files in `answers` say."""

    def read() -> list[str]:
        log = tmp_path / "calls"
        return log.read_text().splitlines() if log.exists() else []

    return read


def deb(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Builds a real binary package."""
    tree = folder / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    out = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(tree), str(out)], check=True, capture_output=True)
    return out


def shown(name: str, version: str, sha: str, depends: str = "") -> str:
    more = f"Depends: {depends}\n" if depends else ""
    return f"Package: {name}\nVersion: {version}\n{more}SHA256: {sha}\n"


def kernel_archive(tmp_path: Path, fake: Fake, kernel: str, version: str) -> None:
    """An archive with one kernel behind the meta package, and busybox-static."""
    folder = tmp_path / f"archive-{kernel}"
    folder.mkdir()
    uname = kernel.removeprefix("linux-image-")
    files = {f"boot/vmlinuz-{uname}": kernel.encode(), f"boot/config-{uname}": b"CONFIG_X=y\n"}
    package = deb(folder, kernel, files)
    (folder / "meta").write_text(shown("linux-image-cloud-amd64", version, "0" * 64, f"{kernel} (= {version})"))
    (folder / "kernel").write_text(shown(kernel, version, hashlib.sha256(package.read_bytes()).hexdigest()))
    fake(
        "apt-cache",
        f"""
        for last; do :; done
        case $last in
        linux-image-cloud-amd64) cat {folder}/meta ;;
        {kernel}|{kernel}={version}) cat {folder}/kernel ;;
        *) echo "E: No packages found" >&2; exit 100 ;;
        esac
        """,
    )
    fake(
        "apt-get",
        f"""
        for last; do :; done
        echo "$last" >> {tmp_path}/calls
        case $last in
        update) ;;
        {kernel}={version}) cp {package} . ;;
        *) echo "E: Version '1' for '$last' was not found" >&2; exit 100 ;;
        esac
        """,
    )


def test_the_kernel_is_resolved_once_and_pinned(
    tmp_path: Path, fake: Fake, store: Cache, calls: Callable[[], list[str]]
) -> None:
    kernel_archive(tmp_path, fake, "linux-image-6.1.0-50-cloud-amd64", "6.1.176-1")
    files = linux.kernel()
    assert files.version == "6.1.0-50-cloud-amd64"
    assert files.path.read_bytes() == b"linux-image-6.1.0-50-cloud-amd64"
    assert files.config.read_text() == "CONFIG_X=y\n"
    assert calls() == ["update", "linux-image-6.1.0-50-cloud-amd64=6.1.176-1"]
    # A newer one in the archive changes nothing, and nobody is asked again.
    kernel_archive(tmp_path, fake, "linux-image-6.1.0-56-cloud-amd64", "6.1.192-2")
    assert linux.kernel() == files
    assert len(calls()) == 2


def test_a_pinned_kernel_that_was_lost_and_is_gone_gives_way_to_the_newest(
    tmp_path: Path, fake: Fake, store: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_archive(tmp_path, fake, "linux-image-6.1.0-50-cloud-amd64", "6.1.176-1")
    files = linux.kernel()
    files.path.write_bytes(b"damaged")
    for entry in (store.root / "files").rglob("*.deb"):
        entry.write_bytes(b"damaged")
    kernel_archive(tmp_path, fake, "linux-image-6.1.0-56-cloud-amd64", "6.1.192-2")
    assert linux.kernel().version == "6.1.0-56-cloud-amd64"
    told = capsys.readouterr().err
    assert "corrupted" in told
    assert "linux-image-6.1.0-50-cloud-amd64 6.1.176-1 is not in the archive any more" in told


def test_a_corrupt_kernel_download_is_one_error(tmp_path: Path, fake: Fake, store: Cache) -> None:
    kernel_archive(tmp_path, fake, "linux-image-6.1.0-50-cloud-amd64", "6.1.176-1")
    path = tmp_path / "archive-linux-image-6.1.0-50-cloud-amd64" / "linux-image-6.1.0-50-cloud-amd64.deb"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptError, match="is corrupt"):
        linux.kernel()
    assert not list((store.root / "trees").glob("*"))


def test_no_network_for_the_kernel_is_told(fake: Fake, store: Cache) -> None:
    fake("apt-get", "echo \"W: Failed to fetch http://m.example/x  Temporary failure resolving 'm.example'\"; exit 100")
    with pytest.raises(NetworkError, match="no network for the package lists of bookworm"):
        linux.kernel()


def test_a_missing_package_is_told(fake: Fake, store: Cache) -> None:
    fake("apt-get", "exit 0")
    fake("apt-cache", 'echo "E: No packages found" >&2; exit 100')
    with pytest.raises(NotThereError, match="does not have busybox-static"):
        linux.busybox()


def edk2_archive(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with a small EDK2 source package whose .dsc file is missing."""
    tree = tmp_path / "edk2-2025.02"
    source = tree / "BaseTools" / "Source" / "C"
    source.mkdir(parents=True)
    (tree / "MdePkg").mkdir()
    (tree / "MdePkg" / "MdePkg.dec").write_text("[Defines]\n")
    (source / "GNUmakefile").write_text("all:\n\tmkdir bin\n\ttouch bin/GenFw bin/GenFv bin/GenFfs bin/GenSec\n")
    tar = tmp_path / edk2.TAR
    subprocess.run(["tar", "-cJf", str(tar), "-C", str(tmp_path), tree.name], check=True)
    sha = hashlib.sha256(tar.read_bytes()).hexdigest()
    monkeypatch.setattr(edk2, "TAR_SHA256", sha)
    (tmp_path / "showsrc").write_text(
        "Package: edk2\nVersion: 2024.01-1\nChecksums-Sha256:\n " + "1" * 64 + " 9 edk2_2024.01.orig.tar.xz\n\n"
        "Package: edk2\nVersion: 2025.02-8\nFiles:\n abc 1 edk2.dsc\nChecksums-Sha256:\n"
        f" {'2' * 64} 10 edk2_2025.02-8.dsc\n {sha} 11 {edk2.TAR}\nHomepage: x\n\n"
    )
    fake("apt-cache", f"cat {tmp_path}/showsrc")
    fake(
        "apt-get",
        f"""
        for last; do :; done
        echo "$last" >> {tmp_path}/calls
        case $last in
        update) ;;
        edk2=2025.02-8) cp {tar} .; echo "E: Failed to fetch edk2_2025.02-8.dsc  404  Not Found"; exit 100 ;;
        *) exit 1 ;;
        esac
        """,
    )
    return tar


def test_edk2_comes_though_the_dsc_file_is_missing(
    tmp_path: Path, fake: Fake, store: Cache, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    edk2_archive(tmp_path, fake, monkeypatch)
    first = edk2.provide()
    assert (first.path / "MdePkg" / "MdePkg.dec").is_file()
    assert (first.path / "BaseTools" / "Source" / "C" / "bin" / "GenFw").is_file()
    assert edk2.provide() == first
    assert calls() == ["update", "edk2=2025.02-8"]


def test_a_corrupt_edk2_is_refused_and_no_other_way_is_tried(
    tmp_path: Path, fake: Fake, store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = edk2_archive(tmp_path, fake, monkeypatch)
    tar.write_bytes(tar.read_bytes() + b"x")
    fake("git", "echo called >&2; exit 1")
    with pytest.raises(CorruptError, match=f"{edk2.TAR} is corrupt"):
        edk2.provide()
    assert not list((store.root / "trees").glob("*"))


def test_edk2_without_archive_and_git_names_both_reasons(fake: Fake, store: Cache) -> None:
    fake("apt-get", "echo \"W: Failed to fetch x  Temporary failure resolving 'm.example'\"; exit 100")
    fake(
        "git", "echo \"fatal: unable to access 'https://g.example/': Could not resolve host: g.example\" >&2; exit 128"
    )
    with pytest.raises(NetworkError) as raised:
        edk2.provide()
    assert "no network for the package lists of trixie" in raised.value.line
    assert "no network for EDK2's git repository" in raised.value.line
    assert "\n" not in raised.value.line


def upstream(tmp_path: Path) -> tuple[str, str]:
    """A repository with EDK2's tag; its address and the commit behind the tag."""
    repository = tmp_path / "upstream"
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    (repository / "MdePkg").mkdir()
    (repository / "MdePkg" / "MdePkg.dec").write_text("[Defines]\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    subprocess.run([*git, "tag", edk2.GIT_TAG], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return f"file://{repository}", head.stdout.strip()


def test_edk2_by_git_is_the_known_commit_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, commit = upstream(tmp_path)
    monkeypatch.setattr(edk2, "GIT_SUBMODULES", ())
    edk2._from_git(tmp_path / "good", url, commit)
    assert (tmp_path / "good" / "MdePkg" / "MdePkg.dec").is_file()
    with pytest.raises(CorruptError, match="is not the commit"):
        edk2._from_git(tmp_path / "bad", url, "0" * 40)


def test_git_failures_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, commit = upstream(tmp_path)
    monkeypatch.setattr(edk2, "GIT_TAG", "edk2-stable209901")
    with pytest.raises(NotThereError, match="does not have edk2-stable209901"):
        edk2._from_git(tmp_path / "one", url, commit)
    # Nobody listens on the discard port.
    with pytest.raises(NetworkError, match="no network"):
        edk2._from_git(tmp_path / "two", "http://127.0.0.1:9/edk2.git", commit)


def test_install_without_root_gives_the_command(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    fake("apt-get", f"touch {tmp_path}/ran")
    fake("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(HvError, match="run: sudo apt-get install -y --no-install-recommends make nasm$") as raised:
        apt.install(["nasm", "make", "nasm"])
    assert raised.value.exit_code == 1
    assert not (tmp_path / "ran").exists()


def test_install_uses_sudo_where_it_asks_for_nothing(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    fake("apt-get", f'echo "$@" >> {tmp_path}/calls')
    fake("sudo", 'shift; exec "$@"')
    apt.install(["nasm"])
    assert (tmp_path / "calls").read_text().endswith("install -y --no-install-recommends nasm\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["install", "update"])
def test_apt_comes_to_its_end_when_hv_is_stopped(fake: Fake, tmp_path: Path, number: signal.Signals, verb: str) -> None:
    """apt-get stops its parent in the middle of its work, and goes on when the parent says that it waits."""
    os.mkfifo(tmp_path / "go")
    fake(
        "apt-get",
        f"""
        case "$*" in
        *{verb}*) kill -{number} $PPID; read word < {tmp_path}/go; echo done > {tmp_path}/done ;;
        *) exit 100 ;;
        esac
        """,
    )
    program = (
        "import os, signal\n"
        "from hvtools import apt, cli\n"
        "os.geteuid = lambda: 0\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, cli._end)\n"
        "apt.install(['nasm'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("stopping when apt-get" in line for line in process.stderr)
        assert not (tmp_path / "done").exists()
        (tmp_path / "go").write_text("go\n")
        process.stderr.read()
    assert process.returncode != 0
    assert (tmp_path / "done").read_text() == "done\n"


def test_install_reads_the_lists_when_a_package_is_not_found(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fake(
        "apt-get",
        f"""
        for last; do :; done
        echo "$last" >> {tmp_path}/calls
        if [ "$last" = update ]; then touch {tmp_path}/lists; exit 0; fi
        [ -e {tmp_path}/lists ] || {{ echo "E: Unable to locate package $last"; exit 100; }}
        """,
    )
    apt.install(["nasm"])
    assert (tmp_path / "calls").read_text().split() == ["nasm", "update", "nasm"]


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ("echo \"W: Failed to fetch x  Temporary failure resolving 'm.example'\"", NetworkError),
        ("true", NotThereError),
    ],
)
def test_install_tells_no_network_from_not_there(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, update: str, kind: type[HvError]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fake(
        "apt-get",
        f"""
        for last; do :; done
        if [ "$last" = update ]; then {update}; exit 0; fi
        echo "E: Unable to locate package $last"; exit 100
        """,
    )
    with pytest.raises(kind) as raised:
        apt.install(["nasm"])
    assert type(raised.value) is kind

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Secure Boot with keys of one's own: made with openssl, enrolled in a variable store, used by sbsign."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pefile

from hvtools import toolchain
from hvtools.errors import HvError, UsageError
from hvtools.images import disk, variables

# UEFI 2.10, 32.3: who may change KEK, who may change db, and whose images are started.
NAMES = ("PK", "KEK", "db")
_DAYS = 3650
_STARTED = (disk.START, disk.DRIVER, disk.KERNEL)
# Microsoft PE Format, "Optional Header Data Directories": the certificate table.
_CERTIFICATES = 4


@dataclass(frozen=True)
class Keys:
    """A folder with NAME.key and NAME.crt (PEM), and NAME.cer (DER), which firmware menus take, for each name."""

    folder: Path

    def file(self, name: str, suffix: str) -> Path:
        """One of the files."""
        return self.folder / f"{name}.{suffix}"

    def sign(self, image: Path, signed: Path) -> None:
        """Sign an EFI program.

        Args:
            image: the program; a signature that it has stays.
            signed: where the signed one goes.

        Raises:
            UsageError: it is no EFI program, or the keys are none.
        """
        key = ["--key", str(self.file("db", "key")), "--cert", str(self.file("db", "crt"))]
        result = _run(["sbsign", *key, "--output", str(signed), str(image)])
        if result.returncode != 0 or not signed.is_file():
            raise UsageError(f"{image} cannot be signed: {_last_line(result)}")

    def enrol(self, image: Path) -> None:
        """Put the certificates into a firmware image or variable store: from then on it starts signed programs only.

        Raises:
            UsageError: the image has no variable store, or no room in it.
        """
        variables.write_keys(image, {name: self.file(name, "cer").read_bytes() for name in NAMES})


def keys_in(folder: Path) -> Keys:
    """Give the keys of a folder; a folder that is not there is made, with new keys.

    Raises:
        UsageError: the folder is there, but not all of the keys.
    """
    toolchain.require("secure-boot")
    keys = Keys(folder)
    if not folder.exists():
        _make(folder)
    for name in NAMES:
        for suffix in ("key", "crt", "cer"):
            if not keys.file(name, suffix).is_file():
                raise UsageError(f"{folder} has no {name}.{suffix}: name a folder that is not there, for new keys")
    return keys


def signed(keys: Keys, files: Mapping[PurePosixPath, Path | bytes], folder: Path) -> dict[PurePosixPath, Path | bytes]:
    """Sign what firmware and HvStart start.

    Args:
        keys: the keys.
        files: of the disk, by their paths on it.
        folder: for the signed ones.

    Returns:
        the files, signed where they are started.
    """
    result = dict(files)
    for path in _STARTED:
        source = files.get(path)
        if isinstance(source, Path):
            target = folder / f"{path.name}.signed"
            keys.sign(source, target)
            result[path] = target
    return result


def authenticode(image: Path) -> str:
    """Give the digest of an EFI program that a signature covers and a TPM gets: SHA-256, in hexadecimal.

    All of the file but the checksum, the entry that says where signatures are, and these ("Windows Authenticode
    Portable Executable Signature Format", "Calculating the PE Image Hash"); of files whose sections follow one another.

    Raises:
        UsageError: it is no EFI program.
    """
    content = image.read_bytes()
    try:
        header = pefile.PE(data=content, fast_load=True).OPTIONAL_HEADER
    except pefile.PEFormatError as error:
        raise UsageError(f"{image} is no EFI program: {error}") from error
    checksum = header.get_field_absolute_offset("CheckSum")
    entry = header.DATA_DIRECTORY[_CERTIFICATES]
    begin = entry.get_file_offset()
    end = entry.VirtualAddress or len(content)
    digest = hashlib.sha256(content[:checksum])
    digest.update(content[checksum + 4 : begin])
    digest.update(content[begin + 8 : end])
    if entry.VirtualAddress == 0:
        digest.update(bytes(-len(content) % 8))  # a signature begins at a multiple of 8, and what is before counts
    return digest.hexdigest()


def _make(folder: Path) -> None:
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"the folder {parent} does not exist")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as made:
        keys = Keys(Path(made) / folder.name)
        keys.folder.mkdir(mode=0o700)
        for name in NAMES:
            key, certificate = keys.file(name, "key"), keys.file(name, "crt")
            new = ["-new", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes", "-days", str(_DAYS)]
            names = ["-subj", f"/CN=HvPkg test {name}/", "-keyout", str(key), "-out", str(certificate)]
            _checked(["openssl", "req", *new, *names])
            into = ["-outform", "DER", "-out", str(keys.file(name, "cer"))]
            _checked(["openssl", "x509", "-in", str(certificate), *into])
        keys.folder.rename(folder)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


def _checked(command: list[str]) -> None:
    result = _run(command)
    if result.returncode != 0:
        raise HvError(f"{command[0]} failed: {_last_line(result)}")


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    return (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]

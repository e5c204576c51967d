# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Keys for Secure Boot, what they sign, and where firmware finds them."""

from __future__ import annotations

import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from hvtools import build
from hvtools.errors import UsageError
from hvtools.images import signing
from hvtools.images.signing import NAMES, Keys
from hvtools.images.variables import read_options, write_options
from hvtools.verbs import image as verb

OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return signing.keys_in(tmp_path_factory.mktemp("made") / "keys")


@pytest.fixture(scope="module")
def program() -> Path:
    return build.ensure_built("DEBUG").folder / "HvDxe.efi"


def test_new_keys_are_secret_and_their_own(keys: Keys, tmp_path: Path) -> None:
    assert keys.folder.stat().st_mode & 0o77 == 0
    other = signing.keys_in(tmp_path / "other")
    for name in NAMES:
        assert keys.file(name, "key").stat().st_mode & 0o77 == 0
        assert keys.file(name, "cer").read_bytes() != other.file(name, "cer").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_keys_that_are_there_stay(keys: Keys) -> None:
    before = {path: path.read_bytes() for path in keys.folder.iterdir()}
    signing.keys_in(keys.folder)
    assert {path: path.read_bytes() for path in keys.folder.iterdir()} == before


def test_a_folder_without_all_of_the_keys_is_refused(keys: Keys, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(keys.folder, tmp_path / "keys"))
    (folder / "db.key").unlink()
    with pytest.raises(UsageError, match="has no db.key"):
        signing.keys_in(folder)
    with pytest.raises(UsageError, match="has no PK.key"):
        signing.keys_in(tmp_path)
    with pytest.raises(UsageError, match="the folder .*/none does not exist"):
        signing.keys_in(tmp_path / "none" / "keys")


def verified(image: Path, keys: Keys) -> bool:
    return subprocess.run(["sbverify", "--cert", keys.file("db", "crt"), image], capture_output=True).returncode == 0


def test_what_is_signed_verifies_and_its_digest_is_what_the_signature_has(
    keys: Keys, program: Path, tmp_path: Path
) -> None:
    signed = tmp_path / "signed.efi"
    keys.sign(program, signed)
    assert not verified(program, keys)
    assert verified(signed, keys)
    digest = signing.authenticode(program)
    assert signing.authenticode(signed) == digest
    detached = tmp_path / "signature"
    subprocess.run(["sbattach", "--detach", detached, signed], check=True, capture_output=True)
    # sbsign's own calculation, in the signed attributes (SpcIndirectDataContent)
    assert bytes.fromhex(digest) in detached.read_bytes()


@pytest.mark.parametrize("content", [b"", b"MZ", b"no program" * 100])
def test_what_is_no_program_is_refused(keys: Keys, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.efi"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be signed") as refused:
        keys.sign(path, tmp_path / "y.efi")
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="no EFI program"):
        signing.authenticode(path)


def test_enrolled_keys_are_where_firmware_looks_and_options_stay(keys: Keys, tmp_path: Path) -> None:
    store = Path(shutil.copyfile(OVMF_VARIABLES, tmp_path / "vars.fd"))
    write_options(store, {"log": "warn"})
    keys.enrol(store)
    keys.enrol(store)
    assert read_options(store) == "log=warn"
    content = store.read_bytes()
    for name in NAMES:
        # UEFI 2.10, 32.4.1: a list of one X.509 certificate, behind the variable's name
        certificate = keys.file(name, "cer").read_bytes()
        assert content.count(certificate) == 1
        at = content.index(certificate)
        kind, total, header, size = struct.unpack_from("<16sIII", content, at - 16 - 28)
        assert uuid.UUID(bytes_le=kind) == uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
        assert (total, header, size) == (28 + 16 + len(certificate), 0, 16 + len(certificate))
        assert content[: at - 16 - 28].endswith(f"{name}\0".encode("utf-16-le"))


def test_a_bad_folder_of_keys_is_refused_before_an_image_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no PK.key"):
        verb.command.main([str(tmp_path / "stick.img"), "--keys", str(tmp_path)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []

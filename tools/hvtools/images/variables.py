# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The variable store of a firmware image: the hypervisor's options, and the keys of Secure Boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edk2toollib.uefi.edk2.variable_format import AuthenticatedVariableHeader, VariableHeader
from edk2toollib.uefi.edk2.variablestore_manulipulations import VariableStore

from hvtools.errors import UsageError
from hvtools.generated.options import GUID, VARIABLE
from hvtools.images.files import written_whole

# PI 1.8 volume 3, 3.2.1: a volume's GUID, its length and its signature, behind 16 reserved bytes.
_VOLUME = struct.Struct("<16x16sQ4s")
_NV_DATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_SIGNATURE = b"_FVH"
_VOLUME_ALIGNMENT = 4096  # no flash erases less than that, and a store begins with what can be erased
_ADDED = 0x3F  # UEFI's state of a variable that is there: EDK2's VAR_ADDED
_ATTRIBUTES = 7  # UEFI 2.10, 8.2: non-volatile, and for boot services and the operating system
_AUTHENTICATED = 0x20  # with a time stamp: what changes it must be signed
_GUID = uuid.UUID(GUID)
# UEFI 2.10, 3.3 and 32.6.1
_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_KEY_VARIABLES = {"PK": _GLOBAL, "KEK": _GLOBAL, "db": _SECURITY_DATABASE}
# UEFI 2.10, 32.4.1: type, size of the list, of its header, of a signature; then its owner and the certificate.
_SIGNATURE_LIST = struct.Struct("<16sIII16s")
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")


@dataclass(frozen=True)
class _Variable:
    name: str
    guid: uuid.UUID
    attributes: int
    data: bytes


def _find(image: Path) -> tuple[int, int]:
    content = image.read_bytes()
    for offset in range(0, len(content) - _VOLUME.size, _VOLUME_ALIGNMENT):
        guid, length, signature = _VOLUME.unpack_from(content, offset)
        if guid == _NV_DATA and signature == _SIGNATURE and offset + length <= len(content):
            return offset, length
    raise UsageError(f"{image} has no store of UEFI variables")


@contextlib.contextmanager
def _store(image: Path, copy: Path) -> Iterator[VariableStore]:
    """Open the store in a copy of an image, for reading and writing; errors name the image."""
    try:
        offset, length = _find(image)
        store = VariableStore(str(copy), store_base=offset, store_size=length)
    except OSError as error:
        raise UsageError(f"{image}: {error.strerror}") from error
    except UsageError:
        raise
    except Exception as error:  # the library has no exceptions of its own
        raise UsageError(f"{image} has a store of UEFI variables that cannot be read: {error}") from error
    try:
        # The store says itself how large it is: behind its volume there is code.
        if store.fv_header.HeaderLength + store.var_store_header.Size > length:
            raise UsageError(f"{image} has a store of UEFI variables that is larger than its volume")
        yield store
    finally:
        store.rom_file_map.close()
        store.rom_file_map = None
        store.rom_file.close()


def _is(variable: VariableHeader | AuthenticatedVariableHeader, name: str, guid: uuid.UUID) -> bool:
    return bool(variable.Name.rstrip("\0") == name and variable.VendorGuid == guid)


def read_options(image: Path) -> str | None:
    """Read the options that are set in a firmware image.

    Returns:
        the variable's text, None where it is not set.

    Raises:
        UsageError: the file is no firmware image with a variable store.
    """
    with tempfile.NamedTemporaryFile(prefix="hv-options-") as copy:
        try:
            shutil.copyfile(image, copy.name)
        except OSError as error:
            raise UsageError(f"{image}: {error.strerror}") from error
        with _store(image, Path(copy.name)) as store:
            texts = [v.Data for v in store.variables if _is(v, VARIABLE, _GUID) and v.State == _ADDED]
    return texts[-1].rstrip(b"\0").decode("ascii", "replace") if texts else None


def write_options(image: Path, settings: Mapping[str, str]) -> None:
    """Set the options in a firmware image; with no settings the variable is removed.

    Raises:
        UsageError: the file is no firmware image with a variable store, or the store is full.
    """
    data = " ".join(f"{name}={value}" for name, value in settings.items()).encode("ascii")
    _write(image, [_Variable(VARIABLE, _GUID, _ATTRIBUTES, data)])


def write_keys(image: Path, certificates: Mapping[str, bytes]) -> None:
    """Enrol a certificate each as PK, KEK and db. With a PK, firmware that can check signatures does.

    Args:
        image: a firmware image or a variable store.
        certificates: X.509 in DER, by the variable's name.

    Raises:
        UsageError: the file is no firmware image with a variable store, or the store is full.
    """
    _write(
        image,
        [
            _Variable(name, _KEY_VARIABLES[name], _ATTRIBUTES | _AUTHENTICATED, _signature_list(certificate))
            for name, certificate in certificates.items()
        ],
    )


def _signature_list(certificate: bytes) -> bytes:
    size = 16 + len(certificate)
    return _SIGNATURE_LIST.pack(_X509.bytes_le, 28 + size, 0, size, _GUID.bytes_le) + certificate


def _write(image: Path, wanted: list[_Variable]) -> None:
    """Set variables; one without data is removed. The image is replaced at the end, or it stays as it is."""
    if image.exists() and not os.access(image, os.W_OK):
        raise UsageError(f"{image} is not to be written to")
    with written_whole(image.resolve()) as copy:
        shutil.copyfile(image, copy)
        with _store(image, copy) as store:
            _change(image, store, wanted)


def _change(image: Path, store: VariableStore, wanted: list[_Variable]) -> None:
    for new in wanted:
        store.variables = [variable for variable in store.variables if not _is(variable, new.name, new.guid)]
        if new.data:
            variable = store.get_new_var_class()
            variable.State, variable.Attributes, variable.VendorGuid = _ADDED, new.attributes, new.guid
            variable.set_name(new.name)
            variable.set_data(new.data)
            store.add_variable(variable)
    used = store.var_store_header.StructSize + sum(v.get_buffer_size() for v in store.variables)
    free = store.var_store_header.Size - used
    # The library forgets the store's own header when it compares.
    if free < store.get_new_var_class().StructSize:
        raise UsageError(f"{image}: the variables are too large for the store, which has {used + free} bytes")
    try:
        store.flush_to_file()
    except Exception as error:
        raise UsageError(f"{image}: {error}") from error
    # What is behind the last variable must be as if erased, or the firmware's next write fails.
    begin = store.store_base + store.fv_header.HeaderLength
    store.rom_file_map[begin + used : begin + used + free] = b"\xff" * free
    store.rom_file_map.flush()

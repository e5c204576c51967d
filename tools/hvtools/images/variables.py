# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's options in the variable store of a firmware image."""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from edk2toollib.uefi.edk2.variable_format import AuthenticatedVariableHeader, VariableHeader
from edk2toollib.uefi.edk2.variablestore_manulipulations import VariableStore

from hvtools.errors import UsageError
from hvtools.generated.options import GUID, VARIABLE

# PI 1.8 volume 3, 3.2.1: a volume's GUID, its length and its signature, behind 16 reserved bytes.
_VOLUME = struct.Struct("<16x16sQ4s")
_NV_DATA = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_SIGNATURE = b"_FVH"
_VOLUME_ALIGNMENT = 4096  # no flash erases less than that, and a store begins with what can be erased
_ADDED = 0x3F  # UEFI's state of a variable that is there: EDK2's VAR_ADDED
_ATTRIBUTES = 7  # UEFI 2.10, 8.2: non-volatile, and for boot services and the operating system
_GUID = uuid.UUID(GUID)


def _find(image: Path) -> tuple[int, int]:
    content = image.read_bytes()
    for offset in range(0, len(content) - _VOLUME.size, _VOLUME_ALIGNMENT):
        guid, length, signature = _VOLUME.unpack_from(content, offset)
        if guid == _NV_DATA and signature == _SIGNATURE and offset + length <= len(content):
            return offset, length
    raise UsageError(f"{image} has no store of UEFI variables")


@contextlib.contextmanager
def _store(image: Path) -> Iterator[VariableStore]:
    try:
        offset, length = _find(image)
        store = VariableStore(str(image), store_base=offset, store_size=length)
    except OSError as error:
        raise UsageError(f"{image}: {error.strerror}") from error
    except UsageError:
        raise
    except Exception as error:  # the library has no exceptions of its own
        raise UsageError(f"{image} has a store of UEFI variables that cannot be read: {error}") from error
    try:
        yield store
    finally:
        store.rom_file_map.close()
        store.rom_file_map = None
        store.rom_file.close()


def _ours(variable: VariableHeader | AuthenticatedVariableHeader) -> bool:
    return bool(variable.Name.rstrip("\0") == VARIABLE and variable.VendorGuid == _GUID)


def read_options(image: Path) -> str | None:
    """Read the options that are set in a firmware image.

    Returns:
        the variable's text, None where it is not set.

    Raises:
        UsageError: the file is no firmware image with a variable store.
    """
    with _store(image) as store:
        texts = [v.Data for v in store.variables if _ours(v) and v.State == _ADDED]
    return texts[-1].rstrip(b"\0").decode("ascii", "replace") if texts else None


def write_options(image: Path, settings: Mapping[str, str]) -> None:
    """Set the options in a firmware image; with no settings the variable is removed.

    Raises:
        UsageError: the file is no firmware image with a variable store, or the store is full.
    """
    with _store(image) as store:
        store.variables = [variable for variable in store.variables if not _ours(variable)]
        if settings:
            variable = store.get_new_var_class()
            variable.State, variable.Attributes, variable.VendorGuid = _ADDED, _ATTRIBUTES, _GUID
            variable.set_name(VARIABLE)
            variable.set_data(" ".join(f"{name}={value}" for name, value in settings.items()).encode("ascii"))
            store.add_variable(variable)
        try:
            store.flush_to_file()
        except Exception as error:
            raise UsageError(f"{image}: {error}") from error
        # What is behind the last variable must be as if erased, or the firmware's next write fails.
        begin = store.store_base + store.fv_header.HeaderLength
        used = store.var_store_header.StructSize + sum(v.get_buffer_size() for v in store.variables)
        free = store.var_store_header.Size - used
        store.rom_file_map[begin + used : begin + used + free] = b"\xff" * free
        store.rom_file_map.flush()

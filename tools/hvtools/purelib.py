# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Compiles pure libraries of HvPkg for this machine and loads them through cffi.

The declarations come from the preprocessed headers, so no structure and no constant is written twice.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi

from hvtools.build import ROOT
from hvtools.errors import HvError

FLAGS = (
    *("-std=gnu11", "-O1", "-g", "-fPIC", "-fshort-wchar", "-mgeneral-regs-only", "-DEFIAPI="),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"),
)

# The types of MdePkg's X64/ProcessorBind.h and Base.h that the headers use.
BASE_TYPES = """
typedef uint8_t UINT8; typedef uint16_t UINT16; typedef uint32_t UINT32; typedef uint64_t UINT64;
typedef int8_t INT8; typedef int16_t INT16; typedef int32_t INT32; typedef int64_t INT64;
typedef char CHAR8; typedef uint8_t BOOLEAN; typedef uint64_t UINTN; typedef int64_t INTN; typedef UINTN RETURN_STATUS;
typedef struct { UINT64 Words[512]; } HV_VMCB;
"""
_STATUS = (
    *("SUCCESS", "INVALID_PARAMETER", "UNSUPPORTED", "BUFFER_TOO_SMALL", "DEVICE_ERROR", "OUT_OF_RESOURCES"),
    *("NOT_FOUND", "ACCESS_DENIED", "COMPROMISED_DATA"),
)

# cffi takes declarations only, and a library exports no inline function.
_INLINE = re.compile(r"^static inline\b.*?^}$", re.MULTILINE | re.DOTALL)


def edk2() -> Path:
    """The EDK2 tree whose headers are used: $HV_EDK2_DIR, else the one that `hv setup` links into the clone.

    Raises:
        HvError: there is none.
    """
    own = os.environ.get("HV_EDK2_DIR")
    tree = Path(own) if own else ROOT / "edk2"
    if not (tree / "MdePkg" / "Include" / "Base.h").is_file():
        raise HvError(f"no EDK2 tree at {tree}: run `./hv setup`, or set HV_EDK2_DIR")
    return tree


def include_flags() -> list[str]:
    """Where the headers are."""
    mde = edk2() / "MdePkg" / "Include"
    return [f"-I{mde}", f"-I{mde / 'X64'}", f"-I{ROOT / 'HvPkg' / 'Include'}"]


def run_gcc(*arguments: str | Path, text: str | None = None, flags: Sequence[str] = FLAGS) -> str:
    """Runs the compiler and returns what it prints.

    Raises:
        HvError: it is not there, or what it says.
    """
    command = ["gcc", *flags, *include_flags(), *map(str, arguments)]
    try:
        result = subprocess.run(command, input=text, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise HvError("gcc is not there") from error
    if result.returncode != 0:
        raise HvError(f"gcc {' '.join(map(str, arguments))}:\n{result.stderr}")
    return result.stdout


def source(name: str) -> Path:
    """The C file of a pure library, by its name without Hv and Lib."""
    return ROOT / "HvPkg" / "Library" / f"Hv{name}Lib" / f"Hv{name}Lib.c"


def _own_lines(preprocessed: str, headers: tuple[str, ...]) -> list[str]:
    """The lines that come from some headers, without line markers."""
    own = False
    lines = []
    for line in preprocessed.splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            own = marker[1].endswith(headers)
        elif own:
            lines.append(line)
    return lines


class PureLibrary:
    """The compiled libraries.

    Attributes:
        ffi: cffi's FFI with all types of the headers.
        lib: The functions, and the enumerators.
        constants: The HV_* macros without parameters, by name.
        status: RETURN_* by name, without that prefix.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        sources: Sequence[Path] = (),
        headers: Sequence[Path] = (),
        flags: Sequence[str] = FLAGS,
    ) -> None:
        """Compiles into a folder and loads the result.

        Args:
            folder: For what is made.
            names: The libraries, without Hv and Lib.
            sources: More C files, such as what the libraries import.
            headers: What these declare for Python.
            flags: Of the compiler.

        Raises:
            HvError: They do not compile.
        """
        includes = "#include <Base.h>\n"
        includes += "".join(f"#include <Library/Hv{name}Lib.h>\n" for name in names)
        includes += "".join(f'#include "{header}"\n' for header in headers)
        shared = ("/Hv/HvFinding.h", "/Hv/HvRegs.h")
        own = (*(f"/Hv{name}Lib.h" for name in names), *shared, *(header.name for header in headers))

        lines = _own_lines(run_gcc("-E", "-dD", "-x", "c", "-", text=includes, flags=flags), own)
        macros = [m[1] for line in lines if (m := re.match(r"#define (HV_[A-Z0-9_]+) +\S", line))]
        table = [(f"HvConst_{name}", name) for name in macros] + [(f"HvConst_{n}", f"RETURN_{n}") for n in _STATUS]
        constants = folder / "constants.c"
        constants.write_text(includes + "".join(f"CONST UINT64 {c} = (UINT64)({value});\n" for c, value in table))

        target = folder / "libhv.so"
        files = [*map(source, names), *sources, constants]
        run_gcc("-shared", "-pthread", "-o", target, *files, flags=flags)

        declarations = "\n".join(_own_lines(run_gcc("-E", "-x", "c", "-", text=includes, flags=flags), own))
        declarations = _INLINE.sub("", declarations)
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(BASE_TYPES + declarations + "".join(f"\nextern UINT64 {c};" for c, _ in table))
        self.lib: Any = self.ffi.dlopen(str(target))
        self.constants = {name: int(getattr(self.lib, f"HvConst_{name}")) for name in macros}
        self.status = {name: int(getattr(self.lib, f"HvConst_{name}")) for name in _STATUS}
        self._status_names = {value: name for name, value in self.status.items()}

    def name(self, status: int) -> str:
        """Name of a RETURN_STATUS, without RETURN_."""
        return self._status_names[int(status)]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Compiles the pure libraries of HvPkg for this machine and loads them through cffi.

The declarations come from the preprocessed headers, so no structure and no constant is written twice.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parents[3]
LIBRARIES = ("Paging", "Mailbox", "Apic", "GuestWalk", "Decode", "MemoryType", "SvmCheck", "VmxCheck")
HERE = Path(__file__).resolve().parent
EXTRA = ("shim.c", "stress.c")

# Undefined behaviour, also in library code that only a strange input reaches, ends the test run with SIGILL.
FLAGS = [
    *("-std=gnu11", "-O1", "-g", "-fPIC", "-fshort-wchar", "-mgeneral-regs-only", "-DEFIAPI="),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"),
    *("-fsanitize=undefined,bounds-strict", "-fsanitize-undefined-trap-on-error"),
]

# The types of MdePkg's X64/ProcessorBind.h and Base.h that the headers use.
BASE_TYPES = """
typedef uint8_t UINT8; typedef uint16_t UINT16; typedef uint32_t UINT32; typedef uint64_t UINT64;
typedef int8_t INT8; typedef int16_t INT16; typedef int32_t INT32; typedef int64_t INT64;
typedef char CHAR8; typedef uint8_t BOOLEAN; typedef uint64_t UINTN; typedef int64_t INTN; typedef UINTN RETURN_STATUS;
typedef struct { UINT64 Words[512]; } HV_VMCB;
"""
OWN_HEADERS = tuple(f"/Hv{name}Lib.h" for name in LIBRARIES) + ("/Hv/HvFinding.h", "stress.h")
STATUS = (
    *("SUCCESS", "INVALID_PARAMETER", "UNSUPPORTED", "BUFFER_TOO_SMALL", "DEVICE_ERROR", "OUT_OF_RESOURCES"),
    *("NOT_FOUND", "ACCESS_DENIED", "COMPROMISED_DATA"),
)


def edk2() -> Path:
    """The EDK2 tree whose headers are used: $HV_EDK2_DIR, else the one that `hv setup` links into the clone."""
    own = os.environ.get("HV_EDK2_DIR")
    tree = Path(own) if own else ROOT / "edk2"
    if not (tree / "MdePkg" / "Include" / "Base.h").is_file():
        raise RuntimeError(f"no EDK2 tree at {tree}: run `./hv setup`, or set HV_EDK2_DIR")
    return tree


def include_flags() -> list[str]:
    """Where the headers are."""
    mde = edk2() / "MdePkg" / "Include"
    return [f"-I{mde}", f"-I{mde / 'X64'}", f"-I{ROOT / 'HvPkg' / 'Include'}"]


def run_gcc(*arguments: str | Path, text: str | None = None) -> str:
    """Runs the compiler and returns what it prints; its errors become a RuntimeError."""
    result = subprocess.run(
        ["gcc", *FLAGS, *include_flags(), *map(str, arguments)], input=text, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"gcc {' '.join(map(str, arguments))}:\n{result.stderr}")
    return result.stdout


def _own_lines(preprocessed: str) -> list[str]:
    """The lines that come from the headers of the pure libraries, without line markers."""
    own = False
    lines = []
    for line in preprocessed.splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            own = marker[1].endswith(OWN_HEADERS)
        elif own:
            lines.append(line)
    return lines


class HostLibrary:
    """The compiled libraries.

    Attributes:
        ffi: cffi's FFI with all types of the headers.
        lib: The functions, and the enumerators.
        constants: The HV_* macros without parameters, by name.
        status: RETURN_* by name, without that prefix.
    """

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        includes = "#include <Base.h>\n"
        includes += "".join(f"#include <Library/Hv{name}Lib.h>\n" for name in LIBRARIES)
        includes += f'#include "{HERE / "stress.h"}"\n'

        macros = run_gcc("-E", "-dD", "-x", "c", "-", text=includes)
        names = [m[1] for line in _own_lines(macros) if (m := re.match(r"#define (HV_[A-Z0-9_]+) +\S", line))]
        table = [(f"HvTest_{name}", name) for name in names] + [(f"HvTest_{n}", f"RETURN_{n}") for n in STATUS]
        constants = folder / "constants.c"
        constants.write_text(includes + "".join(f"CONST UINT64 {c} = (UINT64)({value});\n" for c, value in table))

        target = folder / "libhv.so"
        sources = [ROOT / "HvPkg" / "Library" / f"Hv{name}Lib" / f"Hv{name}Lib.c" for name in LIBRARIES]
        sources += [HERE / name for name in EXTRA]
        run_gcc("-shared", "-pthread", "-o", target, *sources, constants)

        declarations = "\n".join(_own_lines(run_gcc("-E", "-x", "c", "-", text=includes)))
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(BASE_TYPES + declarations + "".join(f"\nextern UINT64 {c};" for c, _ in table))
        self.lib: Any = self.ffi.dlopen(str(target))
        self.constants = {name: int(getattr(self.lib, f"HvTest_{name}")) for name in names}
        self.status = {name: int(getattr(self.lib, f"HvTest_{name}")) for name in STATUS}
        self._status_names = {value: name for name, value in self.status.items()}

    def name(self, status: int) -> str:
        """Name of a RETURN_STATUS, without RETURN_."""
        return self._status_names[int(status)]

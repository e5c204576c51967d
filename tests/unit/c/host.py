# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The pure libraries of HvPkg as the tests compile them: all together, with a sanitizer."""

from collections.abc import Sequence
from pathlib import Path

from hvtools import purelib
from hvtools.build import ROOT
from hvtools.purelib import BASE_TYPES, PureLibrary

__all__ = ["BASE_TYPES", "HERE", "LIBRARIES", "ROOT", "HostLibrary", "program", "run_gcc"]

LIBRARIES = (
    *("Paging", "Mailbox", "Apic", "GuestWalk", "Decode", "Emulate", "MemoryType", "Sleep", "SvmCheck", "VmxCheck"),
    *("Crash", "Iommu"),
)
HERE = Path(__file__).resolve().parent
EXTRA = ("shim.c", "stress.c")

# Undefined behaviour, also in library code that only a strange input reaches, ends the test run with SIGILL.
FLAGS = (*purelib.FLAGS, "-fsanitize=undefined,bounds-strict", "-fsanitize-undefined-trap-on-error")

# Programs that run by themselves, with libc's headers.
PROGRAM_FLAGS = (
    *("-std=gnu11", "-O2", "-g", "-fshort-wchar", "-fno-strict-aliasing", "-DEFIAPI="),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"),
)


def run_gcc(*arguments: str | Path, text: str | None = None) -> str:
    """Runs the compiler with the sanitizer, see `purelib.run_gcc`."""
    return purelib.run_gcc(*arguments, text=text, flags=FLAGS)


def program(target: Path, *names: str, flags: Sequence[str] = ()) -> Path:
    """Builds a program of this folder with the libraries that it names, and returns it."""
    sources = [HERE / f"{target.name}.c", HERE / "shim.c", *map(purelib.source, names)]
    purelib.run_gcc("-o", target, *sources, flags=[*PROGRAM_FLAGS, *flags])
    return target


class HostLibrary(PureLibrary):
    """The compiled libraries, and what the tests add to them."""

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        super().__init__(folder, LIBRARIES, [HERE / name for name in EXTRA], [HERE / "stress.h"], FLAGS)

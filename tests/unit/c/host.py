# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The pure libraries of HvPkg as the tests compile them: all together, with a sanitizer."""

from pathlib import Path

from hvtools import purelib
from hvtools.build import ROOT
from hvtools.purelib import BASE_TYPES, PureLibrary

__all__ = ["BASE_TYPES", "HERE", "LIBRARIES", "ROOT", "HostLibrary", "run_gcc"]

LIBRARIES = ("Paging", "Mailbox", "Apic", "GuestWalk", "Decode", "MemoryType", "Sleep", "SvmCheck", "VmxCheck")
HERE = Path(__file__).resolve().parent
EXTRA = ("shim.c", "stress.c")

# Undefined behaviour, also in library code that only a strange input reaches, ends the test run with SIGILL.
FLAGS = (*purelib.FLAGS, "-fsanitize=undefined,bounds-strict", "-fsanitize-undefined-trap-on-error")


def run_gcc(*arguments: str | Path, text: str | None = None) -> str:
    """Runs the compiler with the sanitizer, see `purelib.run_gcc`."""
    return purelib.run_gcc(*arguments, text=text, flags=FLAGS)


class HostLibrary(PureLibrary):
    """The compiled libraries, and what the tests add to them."""

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        super().__init__(folder, LIBRARIES, [HERE / name for name in EXTRA], [HERE / "stress.h"], FLAGS)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""HvCoreLib on a machine without hardware (core_fake.c), loaded through cffi."""

import re
from pathlib import Path
from typing import Any

import cffi

from hvtools.gen.emit import camel
from hvtools.generated import log_events
from tests.unit.c.host import BASE_TYPES, HERE, LIBRARIES, ROOT, run_gcc

CORE = ROOT / "HvPkg" / "Library" / "HvCoreLib"
CData = Any
"""What cffi gives: it has no types of its own."""

HEADERS = ("HvPkg/Include/", "core_fake.h", "console_fake.h")


def declarations(include: str) -> str:
    """What the headers of HvPkg and of the fakes declare, as cffi can read it."""
    own, lines = False, []
    for line in run_gcc("-E", "-DHV_HOST_FAKE", "-include", "Base.h", "-x", "c", "-", text=include).splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            own = any(part in marker[1] for part in HEADERS)
        elif own and not line.startswith("#pragma"):
            lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"_Static_assert\s*\((?:[^;\"]|\"[^\"]*\")*\);", "", text)
    text = re.sub(r"static\s+inline[^;{]*\{.*?\n\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\bsizeof\s*\(HV_STATUS_HEADER\)", "128", text)
    return BASE_TYPES + "typedef char CHAR8;\n" + text


class Core:
    """The core and its fake machine.

    Attributes:
        ffi: cffi's FFI with all types.
        lib: The functions and enumerators.
    """

    def __init__(self, folder: Path) -> None:
        """Compiles into a folder and loads the result."""
        include = f'#include <Base.h>\n#include "{HERE / "core_fake.h"}"\n'
        sources = [path for path in CORE.glob("*.c") if path.name != "Run.c"]
        sources += [ROOT / "HvPkg" / "Library" / "HvHostLib" / "Park.c"]
        sources += [ROOT / "HvPkg" / "Library" / f"Hv{name}Lib" / f"Hv{name}Lib.c" for name in LIBRARIES]
        target = folder / "libcore.so"
        fakes = [HERE / "core_fake.c", HERE / "shim.c"]
        flags = ["-DHV_HOST_FAKE", "-include", "Base.h", f"-I{CORE}", "-Wno-clobbered"]
        run_gcc("-shared", "-o", target, *flags, *sources, *fakes)
        self.ffi: Any = cffi.FFI()
        self.ffi.cdef(declarations(include))
        self.lib: Any = self.ffi.dlopen(str(target))
        self._events = [camel(name) for name in log_events.EVENTS]
        self.reset()

    def reset(self, cpus: int = 1, x2apic: bool = False, virtual_nmis: bool = False) -> CData:
        """A machine as it is after a launch; returns gFake."""
        self.lib.HvFakeReset(cpus, x2apic, virtual_nmis)
        return self.lib.gFake

    def exit(self, kind: str, **fields: CData) -> CData:
        """An exit by the name of its enumerator, without HvExit."""
        made = self.ffi.new("HV_EXIT *")
        made.Kind = getattr(self.lib, f"HvExit{kind}")
        code = fields.pop("code", b"")
        made.FetchedCount = len(code)
        for index, byte in enumerate(code):
            made.Fetched[index] = byte
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def run(self, *exits: CData, cpu: int = 0) -> int:
        """Runs a processor through exits; returns why it ended."""
        array = self.ffi.new("HV_EXIT[]", [made[0] for made in exits])
        return int(self.lib.HvFakeRun(cpu, array, len(exits)))

    def log(self) -> list[tuple[str, list[int]]]:
        """The events that were logged, with their values."""
        fake = self.lib.gFake
        names = list(log_events.EVENTS.values())
        return [
            (self._events[line.Event], list(line.Args)[: len(names[line.Event].fields)])
            for line in fake.Line[0 : fake.Lines]
        ]

    def text(self, address: int) -> str:
        """A string of the library."""
        return str(self.ffi.string(self.ffi.cast("char *", address)).decode())

    def writes(self, name: str) -> list[tuple[int, int]]:
        """A list of what the core did: ApicWrite, MsrWrite, Icr, Nmi, Xsetbv."""
        fake = self.lib.gFake
        return [(int(w.Where), int(w.Value)) for w in getattr(fake, name)[0 : getattr(fake, f"{name}s")]]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What makes the pure libraries pure: they stand on their headers, change no data of their own and call nobody."""

import re
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.unit.c.host import LIBRARIES, ROOT, run_gcc

# What the libraries may take from MdePkg or from one another, and the library class that an .inf has to name for it.
IMPORTS = {
    "ZeroMem": "BaseMemoryLib",
    "InterlockedCompareExchange32": "SynchronizationLib",
    "InterlockedCompareExchange64": "SynchronizationLib",
    **dict.fromkeys(("HvInsnOffset", "HvInsnReadRegister", "HvInsnWriteRegister"), "HvDecodeLib"),
    "HvPagePoolTake": "HvPagingLib",
}


def inf(name: str) -> dict[str, str | list[str]]:
    """The definitions of a library's .inf, and the lines of its sections by their name."""
    path = ROOT / "HvPkg" / "Library" / f"Hv{name}Lib" / f"Hv{name}Lib.inf"
    found: dict[str, str | list[str]] = {}
    section: list[str] = []
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = []
            found[heading[1]] = section
        elif "=" in line:
            key, value = line.split("=", 1)
            found[key.strip()] = value.strip()
        elif line:
            section.append(line)
    return found


@pytest.mark.parametrize("name", LIBRARIES)
def test_header_stands_alone(name: str) -> None:
    text = f"#include <Base.h>\n#include <Library/Hv{name}Lib.h>\n#include <Library/Hv{name}Lib.h>\n"
    run_gcc("-fsyntax-only", "-x", "c", "-", text=text)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("level", ["-O0", "-Os"])
def test_object_has_no_state_and_no_callee_but_the_named_ones(name: str, level: str, tmp_path: Path) -> None:
    """Compiled like the firmware, with its calling convention and without the sanitizer."""
    target = tmp_path / "object.o"
    source = ROOT / "HvPkg" / "Library" / f"Hv{name}Lib" / f"Hv{name}Lib.c"
    flags = ("-UEFIAPI", "-fno-sanitize=all", "-fno-pic", "-ffreestanding", "-fno-stack-protector", level)
    run_gcc(*flags, "-c", "-o", target, source)
    with target.open("rb") as file:
        elf = ELFFile(file)
        writable = {
            section.name: section["sh_size"]
            for section in elf.iter_sections()
            if section["sh_flags"] & SH_FLAGS.SHF_WRITE and section["sh_size"]
        }
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = table.iter_symbols()
        imports = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
    assert not writable
    assert imports <= set(IMPORTS)
    assert {IMPORTS[symbol] for symbol in imports} <= set(inf(name)["LibraryClasses"] if imports else [])


def test_infs_name_their_library() -> None:
    guids = set()
    for name in LIBRARIES:
        found = inf(name)
        assert found["BASE_NAME"] == found["LIBRARY_CLASS"] == f"Hv{name}Lib"
        assert found["MODULE_TYPE"] == "BASE"
        assert found["Sources"] == [f"Hv{name}Lib.c"]
        guids.add(found["FILE_GUID"])
    assert len(guids) == len(LIBRARIES)


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_public_function_is_documented(name: str) -> None:
    """Each declaration follows a block that names all its parameters and says in which life it may be called."""
    text = (ROOT / "HvPkg" / "Include" / "Library" / f"Hv{name}Lib.h").read_text()
    declarations = re.findall(r"(/\*\*(?:(?!\*/).)*\*/)\s*(?:\w+[ *]*\s)EFIAPI\s(\w+) \((.*?)\);", text, re.DOTALL)
    assert len(declarations) == len(re.findall(r"^EFIAPI$", text, re.MULTILINE)) > 0
    for block, function, parameters in declarations:
        assert re.search(r"@par Context: (Boot|Host|Any)\n", block), function
        assert "@retval" in block or "@return" in block or f"VOID\nEFIAPI\n{function} (" in text, function
        names = re.findall(r"(\w+)(?:\[\w+\])?(?:\s+OPTIONAL)?\s*(?:,|$)", parameters.strip())
        assert names == re.findall(r"@param\[[a-z,]+\]\s+(\w+)", block), function

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Each function with an external linkage says whether it belongs to boot life, to host life, or to both."""

from pathlib import Path

from tests.unit import contexts
from tests.unit.contexts import functions, missing

GOOD = "/**\n  Does it.\n\n  @par Context: Host\n**/\nVOID\nEFIAPI\nHvA (\n  IN UINT32  X\n  );\n"


def test_every_function_says_its_life() -> None:
    headers = {path: path.read_text() for path in contexts.headers()}
    sources = {path: path.read_text() for path in contexts.sources()}
    assert missing(headers, sources) == []


def test_the_headers_are_read() -> None:
    """As many functions as a search for prototypes by the house style finds, so that none is passed over."""
    text = "\n".join(path.read_text() for path in contexts.headers())
    prototypes = [line for line in text.splitlines() if line[:1].isalpha() and line.endswith(" (")]
    found = [function.name for path in contexts.headers() for function in functions(path.read_text(), path)]
    assert sorted(found) == sorted(line.removesuffix(" (") for line in prototypes)
    assert {"HvCoreLaunch", "HvHostJump", "HvOnCpuid", "HvLaunchThunk", "HvPagingMap", "HvSvmSwitch"} <= set(found)


def test_what_no_header_declares_says_it_itself() -> None:
    assert {"HvDxeEntry", "HvDxeUnload", "HvSvmConstructor"} <= set(contexts.contexts())


def complaints(header: str, source: str = "") -> list[str]:
    return missing({Path("a.h"): header}, {Path("a.c"): source})


def test_a_good_header_passes() -> None:
    assert complaints(GOOD) == []


def test_a_block_without_a_life_is_found() -> None:
    assert complaints(GOOD.replace("  @par Context: Host\n", "")) == ["a.h:7:HvA"]


def test_an_unknown_life_is_found() -> None:
    assert complaints(GOOD.replace("Host", "Ghost")) == ["a.h:8:HvA"]


def test_two_lives_at_once_are_found() -> None:
    twice = GOOD.replace("  @par Context: Host\n", "  @par Context: Host\n  @par Context: Boot\n")
    assert complaints(twice) == ["a.h:9:HvA"]


def test_a_missing_block_is_found() -> None:
    assert complaints(GOOD + "\nUINT64\nHvB (\n  VOID\n  );\n") == ["a.h:13:HvB"]


def test_the_block_of_another_function_does_not_count() -> None:
    assert complaints(GOOD + "VOID HvB (VOID);\n") == ["a.h:11:HvB"]


def test_a_plain_comment_is_no_block() -> None:
    assert complaints(GOOD.replace("/**", "/*")) == ["a.h:8:HvA"]


def test_types_variables_macros_and_asserts_are_no_functions() -> None:
    text = """
#define HV_M(a) \\
  HvC (a)
typedef VOID (*HV_F)(IN UINT32 A);
typedef struct { UINT32 (*Call)(VOID); } HV_T;
struct _HV_S { VOID (*Probe)(VOID); };
extern CONST UINT64  HvVectors[256];
STATIC_ASSERT (sizeof (HV_T) == 8, "HvD (");
/* VOID HvE (VOID); */ // VOID HvF (VOID);
STATIC CONST UINT32  mTable[] = { HV_M (1) };
"""
    assert functions(text, Path("a.h")) == []


def test_static_functions_and_declared_ones_need_no_block_in_the_source() -> None:
    source = "STATIC\nVOID\nLocal (\n  VOID\n  )\n{\n  if (1) {\n  }\n}\n\nVOID\nHvA (UINT32 X)\n{\n}\n\n"
    assert complaints(GOOD, source) == []
    assert complaints(GOOD, source + "UINT32\nHvEntry (\n  VOID\n  )\n{\n}\n") == ["a.c:17:HvEntry"]

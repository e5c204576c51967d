# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The generated headers as a compiler and an assembler see them."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hvtools import edk2, gen
from hvtools.errors import NetworkError, NotThereError
from hvtools.generated import msr, svm_exit, vmcb

INCLUDE = gen.ROOT / "HvPkg" / "Include"
HEADERS = sorted(path.name for path in (INCLUDE / "Generated").glob("*.h"))


@pytest.fixture(scope="session")
def tree() -> Path:
    try:
        return edk2.provide().path
    except (NetworkError, NotThereError) as error:
        pytest.skip(f"EDK2 is not here ({error}); `./hv test` brings it, or `./hv setup` with a network")


def compiled(tree: Path, source: Path, *more: str) -> None:
    """Compile with the warnings of an EDK2 build and some more."""
    mde = tree / "MdePkg" / "Include"
    result = subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-fshort-wchar", "-fno-builtin", *more]
        + [f"-I{mde}", f"-I{mde / 'X64'}", f"-I{INCLUDE}", str(source)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("header", HEADERS)
def test_each_header_compiles_alone_and_twice(tree: Path, tmp_path: Path, header: str) -> None:
    source = tmp_path / "alone.c"
    # A header without Base.h has macros only, and C wants something in a file.
    source.write_text(f"#include <Generated/{header}>\n#include <Generated/{header}>\nextern int x;\n")
    compiled(tree, source, "-fsyntax-only")


def test_all_headers_and_lists_together(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "all.c"
    text = "".join(f"#include <Generated/{header}>\n" for header in HEADERS)
    text += """
#define TWO(a, b) { (UINT64)(a), b },
#define EXIT_ROW(Code, Kind, Other, Name) { (UINT64)(Code), Name },
#define VMX_ROW(Code, Kind, Name) { (UINT64)(Code), Name },
#define IMPOSSIBLE_ROW(Code, Name, Reason) { (UINT64)(Code), Name Reason },
#define MSR_ROW(Msr, Read, Write, Rule, VmxRead, VmxWrite, VmxRule, Name) { (UINT64)(Msr) + (Read) + (VmxRule), Name },
#define CPUID_ROW(Leaf, Sub, Reg, Clear, Set, Name) { (UINT64)(Leaf) + (Sub) + (Reg) + (Clear) + (Set), Name },
#define DYNAMIC_ROW(Leaf, Reg, Bit, Name) { (UINT64)(Leaf) + (Reg) + (Bit), Name },
#define LOG_ROW(Event, Level, Name, Format) { (UINT64)HvLogEvent##Event + (Level), Name Format },
#define RING_ROW(Event, Name) { (UINT64)HvLogEvent##Event, Name },
#define OPTION_ROW(Id, Name, Type, Def, Min, Max, None, Debug, Choices) \\
  { (UINT64)HvOption##Id + (Type) + (Def) + (Min) + (Max) + (None) + (Debug), Name Choices },
#define VMCS_ROW(Field, Bytes, Name) { (UINT64)(Field) + (Bytes), Name },
CONST struct { UINT64 Value; CONST CHAR8 *Text; } mAll[] = {
  HV_EXIT_KIND_LIST (TWO)
  HV_SVM_EXIT_LIST (EXIT_ROW)
  HV_SVM_EXIT_IMPOSSIBLE_LIST (IMPOSSIBLE_ROW)
  HV_VMX_EXIT_LIST (VMX_ROW)
  HV_VMX_EXIT_IMPOSSIBLE_LIST (IMPOSSIBLE_ROW)
  HV_MSR_ROOT_POLICY_LIST (MSR_ROW)
  HV_CPUID_ROOT_POLICY_LIST (CPUID_ROW)
  HV_CPUID_ROOT_DYNAMIC_LIST (DYNAMIC_ROW)
  HV_LOG_LEVEL_LIST (TWO)
  HV_LOG_EVENT_LIST (LOG_ROW)
  HV_LOG_RING_ONLY_LIST (RING_ROW)
  HV_OPTION_LIST (OPTION_ROW)
  HV_HYPERCALL_LIST (TWO)
  HV_VMCS_LIST (VMCS_ROW)
};
CONST EFI_GUID_LIKE mGuid = HV_OPTIONS_GUID;
UINTN
Bytes (
  UINT32  Cpus
  )
{
  return HV_STATUS_BYTES (Cpus) + HV_STATUS_EXITS_OFFSET (Cpus);
}
"""
    source.write_text(text.replace("EFI_GUID_LIKE", "GUID"))
    compiled(tree, source, "-fsyntax-only")


def test_asserts_notice_a_wrong_layout(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Generated"
    folder.mkdir()
    text = (INCLUDE / "Generated" / "HvVmcb.h").read_text()
    assert text.count("  UINT8   Reserved05D[0x3];") == 1
    (folder / "HvVmcb.h").write_text(text.replace("  UINT8   Reserved05D[0x3];", "  UINT8   Reserved05D[0x2];"))
    source = tmp_path / "wrong.c"
    source.write_text("#include <Generated/HvVmcb.h>\n")
    with pytest.raises(AssertionError, match=r"HV_VMCB_CONTROL\.VIntr"):
        compiled(tree, source, "-fsyntax-only", f"-I{tmp_path}")


def assembled(source: Path) -> bytes:
    """Assemble what the preprocessor leaves into a flat binary."""
    flat = source.with_suffix(".bin")
    result = subprocess.run(["nasm", "-Werror", "-f", "bin", "-o", flat, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return flat.read_bytes()


def preprocessed(source: Path, *more: str) -> Path:
    """Preprocess as EDK2 does with NASM sources."""
    result = source.with_suffix(".i")
    command = ["gcc", "-E", "-x", "assembler-with-cpp", *more, f"-I{INCLUDE}", str(source)]
    result.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def test_offsets_in_nasm(tmp_path: Path) -> None:
    source = tmp_path / "offsets.nasm"
    rows = "\n".join(f"dd {name}" for name in vmcb.OFFSETS)
    source.write_text(f"#include <Generated/HvVmcbOffsets.h>\nbits 64\n{rows}\nmov rax, [rbx + HV_VMCB_SAVE_RAX]\n")
    binary = assembled(preprocessed(source, "-P"))
    count = len(vmcb.OFFSETS)
    assert count >= 140
    assert struct.unpack_from(f"<{count}I", binary) == tuple(vmcb.OFFSETS.values())
    assert binary[4 * count :] == bytes.fromhex("488b83") + struct.pack("<I", 0x5F8)


def test_constants_in_nasm_as_edk2_builds_it(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "constants.nasm"
    names = [f"HV_MSR_{name}" for name in msr.MSRS.values()]
    source.write_text(
        "#include <Generated/HvMsr.h>\n#include <Generated/HvSvmExit.h>\nbits 64\n"
        + "".join(f"dd {name}\n" for name in names)
        + "dq HV_EFER_SVME\ndq HV_SVM_EXIT_INVALID\n"
    )
    mde = tree / "MdePkg" / "Include"
    whole = preprocessed(source, f"-I{mde}", f"-I{mde / 'X64'}", "-fshort-wchar")
    trimmed = tmp_path / "trimmed.iii"
    python = tree / "BaseTools" / "Source" / "Python"
    subprocess.run(
        [
            sys.executable,
            str(python / "Trim" / "Trim.py"),
            "--trim-long",
            "--source-code",
            "-o",
            str(trimmed),
            str(whole),
        ],
        check=True,
        env={"PYTHONPATH": str(python)},
        capture_output=True,
    )
    binary = assembled(trimmed)
    assert struct.unpack_from(f"<{len(names)}I", binary) == tuple(msr.MSRS)
    efer, invalid = struct.unpack_from("<2Q", binary, 4 * len(names))
    assert efer == msr.CONSTANTS["HV_EFER_SVME"]
    assert svm_exit.EXITS[invalid] == "INVALID"

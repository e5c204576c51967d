# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The generator: its output is what is committed, is the same every time, and a bad table is one clear line."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hvtools import gen
from hvtools.errors import EXIT_FAILED, EXIT_USAGE, HvError
from hvtools.gen.emit import camel, hex_width, upper_snake
from hvtools.gen.hardware import decode_vmcs
from hvtools.gen.table import TableError
from hvtools.generated import (
    cpuid,
    exits,
    log_events,
    options,
    status,
    svm_checks,
    svm_exit,
    vmcb,
    vmcs,
    vmx_checks,
    vmx_exit,
)
from hvtools.verbs.gen import command
from tests.unit import gen_tables


def test_committed_files_are_up_to_date() -> None:
    assert gen.stale(gen.render(), gen.ROOT) == []


def test_same_output_every_time() -> None:
    first, second = gen.render(), gen.render()
    assert list(first) == list(second)
    assert first == second


def test_every_table_is_used() -> None:
    assert sorted(path.name for path in gen.SPEC.glob("*.toml")) == sorted(gen.TABLES)


def test_write_then_check(tmp_path: Path) -> None:
    files = gen.render()
    assert gen.write(files, tmp_path) == sorted(files)
    assert gen.stale(files, tmp_path) == []
    assert gen.write(files, tmp_path) == []


def test_stale_names_changed_missing_and_left_over(tmp_path: Path) -> None:
    files = gen.render()
    gen.write(files, tmp_path)
    header = gen.FOLDERS[".h"] / "HvMsr.h"
    module = gen.FOLDERS[".py"] / "msr.py"
    left = gen.FOLDERS[".md"] / "Left.md"
    (tmp_path / header).write_text((tmp_path / header).read_text().replace("0xC0000080", "0xC0000081"))
    (tmp_path / module).unlink()
    (tmp_path / left).write_text("old\n")
    (tmp_path / gen.FOLDERS[".py"] / "__init__.py").write_text("kept\n")
    assert gen.stale(files, tmp_path) == sorted([header, module, left])
    gen.write(files, tmp_path)
    assert gen.stale(files, tmp_path) == []
    assert not (tmp_path / left).exists()
    assert (tmp_path / gen.FOLDERS[".py"] / "__init__.py").exists()


def test_check_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gen, "ROOT", tmp_path)
    result = CliRunner().invoke(command, ["--check"])
    assert isinstance(result.exception, HvError)
    assert result.exception.exit_code == EXIT_FAILED
    assert "HvPkg/Include/Generated/HvVmcb.h" in result.exception.line
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    assert "HvPkg/Include/Generated/HvVmcb.h" in result.output.splitlines()
    result = CliRunner().invoke(command, ["--check"])
    assert result.exit_code == 0, result.output
    assert "up to date" in result.output


MALFORMED = [
    ("msr.toml", "[table]\n", "[tabel]\n", "msr.toml: 'table' is missing"),
    ("msr.toml", "[table]\n", "[table\n", "msr.toml: not TOML"),
    ("svm_exit.toml", "code = 0x72", 'code = "0x72"', "svm_exit.toml: exit CPUID: 'code' must be a number"),
    ("svm_exit.toml", "code = 0x72", "code = 0x73", "svm_exit.toml: exit code 0x73 occurs twice"),
    ("svm_exit.toml", 'name = "RSM"', 'name = "CPUID"', "svm_exit.toml: exit CPUID occurs twice"),
    (
        "svm_exit.toml",
        'kind = "cpuid"',
        'kind = "cpuidd"',
        "svm_exit.toml: exit CPUID: kind 'cpuidd' is not in exits.toml",
    ),
    ("svm_exit.toml", 'kind = "cpuid"\n', "", "svm_exit.toml: exit CPUID: needs either 'kind' or 'impossible'"),
    (
        "svm_exit.toml",
        'name = "RSM"',
        'name = "RSN"',
        "exit RSN has code 0x73, whose intercept is HV_SVM_INTERCEPT3_RSM",
    ),
    ("vmx_exit.toml", 'kind = "shutdown"', 'kind = "shutdown"\non_demand = true', "on_demand have no meaning here"),
    ("vmcb.toml", "offset = 0x0CB", "offset = 0x0CA", "fields Cpl: offset 0xca overlaps Vmpl"),
    ("vmcb.toml", 'name = "IbsOpData2"', 'name = "IbsOpData"', "struct HV_VMCB_SAVE: field IbsOpData occurs twice"),
    ("vmcb.toml", "count = 15", "count = 16", "fields AvicBackingPage: offset 0xe0 overlaps InstructionBytes"),
    ("vmcb.toml", 'type = "HV_VMCB_CONTROL"', 'type = "HV_VMCB_CONTROLS"', "type 'HV_VMCB_CONTROLS' is unknown"),
    ("vmcb.toml", 'name = "CR2",        bit = 9', 'name = "CR2",        bit = 8', "rows CR2: overlaps SEG in bit 8"),
    (
        "vmcb.toml",
        'bits = [16, 31], text = "port"',
        'bits = [16, 32], text = "port"',
        "bits 16..32 do not fit in 32 bits",
    ),
    ("vmcb.toml", 'section = "APM2 15.16.1"\n', "", "group HV_SVM_TLB: 'section' is missing"),
    (
        "vmcs.toml",
        "encoding = 0x681E",
        "encoding = 0x481E",
        "GUEST_RIP: encoding 0x481e is a 32 guest field, not natural guest",
    ),
    ("vmcs.toml", "encoding = 0x681E", "encoding = 0x681F", "GUEST_RIP: encoding 0x681f has a bit that is reserved"),
    ("vmcs.toml", "encoding = 0x681E", "encoding = 0x681C", "vmcs.toml: field with encoding 0x681c occurs twice"),
    ("msr.toml", "msr = 0xC0000081", "msr = 0xC0000080", "msr.toml: MSR number 0xc0000080 occurs twice"),
    (
        "msr.toml",
        'text = "local APIC base", root = "write-hook"',
        'text = "local APIC base", root = "hok"',
        "APIC_BASE: root 'hok' is none of",
    ),
    ("cpuid.toml", 'name = "SVM",    bit = 2', 'name = "SVM",    bit = 12', "overlaps SVM in ecx bit 12"),
    ("cpuid.toml", '"HvPkgHvPkgHv"', '"HvPkg"', "'signature' must be 12 ASCII characters"),
    (
        "log.toml",
        '"cpus:u", "virtualised:u"',
        '"cpus:u", "cpus:u"',
        "log.toml: events launch-done: field cpus occurs twice",
    ),
    (
        "log.toml",
        '"cpus:u", "virtualised:u"',
        '"cpus:d", "virtualised:u"',
        "events launch-done: field 'cpus:d' has no type of",
    ),
    ("options.toml", 'default = "info"', 'default = "inform"', "option log: default 'inform' is none of the choices"),
    (
        "options.toml",
        'none = true\ndefault = "none"\ndebug_only = true',
        'none = true\ndefault = "none"\ndebug_olny = true',
        "option fail_cpu: unknown key 'debug_olny'",
    ),
    ("options.toml", 'choices_of = "corruptions"', 'choices_of = "corruption"', "choices_of 'corruption' is none of"),
    (
        "svm_checks.toml",
        'part = "control"\nfields = ["Control.IopmBase"]',
        'part = "host"\nfields = ["Control.IopmBase"]',
        "rule iopm-range: part 'host' is none of control, guest",
    ),
    (
        "svm_checks.toml",
        'fields = ["Control.IopmBase"]',
        'fields = ["Control.IopmBose"]',
        "field 'Control.IopmBose' is unknown",
    ),
    ("svm_checks.toml", 'rule = "iopm-range"', 'rule = "iopm"', "corruption vmcb-iopm-range: rule 'iopm' is unknown"),
    ("svm_checks.toml", "set = 0xFFFFFFFF\n", "set = 0x1FFFFFFFF\n", "must change bits of the field's 4 bytes"),
    ("vmx_checks.toml", 'name = "vmcs-vpid-zero"', 'name = "vpid-zero"', "the name must begin with 'vmcs-'"),
    (
        "vmx_checks.toml",
        'rule = "vpid-zero"\nfield = "VPID"',
        'rule = "vpid-zero"\nfield = "TPR_THRESHOLD"',
        "field 'TPR_THRESHOLD' is none of rule vpid-zero",
    ),
    ("exits.toml", "max = 32", "max = 8", "exits.toml: 30 kinds, but a row of counters has 8"),
    ("status.toml", "offset = 0x30", "offset = 0x2E", "offset 0x2e overlaps NestedPageSizes"),
    ("hypercall.toml", "number = 3", "number = 2", "hypercall.toml: call number 2 occurs twice"),
]


@pytest.mark.parametrize(
    ("table", "old", "new", "message"), MALFORMED, ids=[f"{row[0]}-{n}" for n, row in enumerate(MALFORMED)]
)
def test_malformed_table_is_one_clear_line(tmp_path: Path, table: str, old: str, new: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        gen_tables.changed(tmp_path, table, old, new)
    line = str(caught.value)
    assert message in line
    assert line.startswith(table)
    assert "\n" not in line
    assert caught.value.exit_code == EXIT_USAGE


def test_missing_and_unknown_tables(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"^vmcb.toml: No such file"):
        gen.render(tmp_path)
    (tmp_path / "extra.toml").write_text("")
    with pytest.raises(TableError, match=r"^extra.toml: no such table is known"):
        gen.render(tmp_path)


def test_changed_row_changes_the_files_that_stand_on_it(tmp_path: Path) -> None:
    before = gen.render()
    after = gen_tables.changed(tmp_path, "exits.toml", 'text = "CPUID"', 'text = "CPUID of the guest"')
    assert {path.name for path in before if before[path] != after[path]} == {"HvExitKind.h", "ExitKinds.md"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ExitInfo1", "EXIT_INFO1"),
        ("NCr3", "NCR3"),
        ("VIntr", "VINTR"),
        ("Rax", "RAX"),
        ("KernelGsBase", "KERNEL_GS_BASE"),
    ],
)
def test_upper_snake(name: str, expected: str) -> None:
    assert upper_snake(name) == expected


def test_names_and_numbers_in_c() -> None:
    assert camel("nested-fault") == "NestedFault"
    assert camel("nested_page") == "NestedPage"
    assert hex_width(0x1000, 64) == "0x0000000000001000ULL"
    assert hex_width(0x12, 32) == "0x00000012"
    assert hex_width(6, 8) == "0x06"


def test_vmcs_encoding_rule() -> None:
    assert decode_vmcs(0x0800) == ("16", "guest", 0)
    assert decode_vmcs(0x2C06) == ("64", "host", 3)
    assert decode_vmcs(0x440E) == ("32", "read-only", 7)
    assert decode_vmcs(0x6008) == ("natural", "control", 4)
    for wrong in (0x2001, 0x1000, 0x8000):
        with pytest.raises(ValueError, match="reserved"):
            decode_vmcs(wrong)


# ---------------------------------------------------------------------------------------------------------------
# What the tables must say, whatever the manuals do


def test_offsets_that_the_manual_states_absolutely() -> None:
    # APM2 Table B-2 is relative to the save area at 400h.
    assert vmcb.OFFSETS["HV_VMCB_SAVE_RAX"] == 0x5F8
    assert vmcb.OFFSETS["HV_VMCB_SAVE_CS_BASE"] == 0x418
    assert vmcb.OFFSETS["HV_VMCB_CONTROL_EXIT_CODE"] == 0x70
    assert vmcb.OFFSETS["HV_VMCB_SIZE"] == 0x1000


def test_impossible_exits_have_a_reason_and_the_others_a_kind() -> None:
    text = (gen.ROOT / gen.FOLDERS[".h"] / "HvSvmExit.h").read_text()
    possible = set(re.findall(r"X \((HV_SVM_EXIT_\w+),\s+HvExit", text))
    impossible = dict(re.findall(r'X \((HV_SVM_EXIT_\w+),\s+"\w+",\s+"([^"]+)"\)', text))
    every = {f"HV_SVM_EXIT_{name}" for name in svm_exit.EXITS.values()}
    assert possible | set(impossible) == every
    assert not possible & set(impossible)
    assert {f"HV_SVM_EXIT_{svm_exit.EXITS[code]}" for code in svm_exit.KINDS} == possible
    assert all(len(reason.split()) >= 3 for reason in impossible.values())


def test_root_intercepts_are_those_of_the_exits_with_a_kind() -> None:
    text = (gen.ROOT / gen.FOLDERS[".h"] / "HvSvmExit.h").read_text()
    found = dict(re.findall(r"#define (HV_SVM_ROOT_INTERCEPT\d) \\\n  \((.+)\)", text))
    words = {name: {part for part in value.split(" | ") if part != "0"} for name, value in found.items()}
    assert words["HV_SVM_ROOT_INTERCEPT5"] == set()
    # By the numbers alone: the bit of an intercept is its exit code less the code of the word's first.
    on_demand = {"IRET", "EXCEPTION_DB", "SMI"}
    for word, first in (("3", 0x60), ("4", 0x80)):
        wanted = {
            1 << code - first
            for code in svm_exit.KINDS
            if 0 <= code - first < 32 and svm_exit.EXITS[code] not in on_demand
        }
        assert {vmcb.CONSTANTS[name] for name in words[f"HV_SVM_ROOT_INTERCEPT{word}"]} == wanted


def test_kinds_of_both_vendors_are_known() -> None:
    names = {f"HvExit{camel(name)}" for name in exits.KINDS}
    assert set(svm_exit.KINDS.values()) <= names
    assert set(vmx_exit.KINDS.values()) <= names
    assert exits.KINDS[0] == "none"
    assert exits.KINDS[-1] == "unknown"


def test_root_sees_no_virtualization_in_cpuid() -> None:
    rules = {(leaf, reg, name): rule for leaf, _, reg, name, _, _, rule in cpuid.BITS}
    assert rules[0x80000001, "ecx", "SVM"] == "clear"
    assert rules[1, "ecx", "VMX"] == "clear"
    assert rules[1, "ecx", "HYPERVISOR"] == "set"
    text = (gen.ROOT / gen.FOLDERS[".h"] / "HvCpuid.h").read_text()
    policy = text[text.index("HV_CPUID_ROOT_POLICY_LIST(X)") :]
    row = r"X \(HV_CPUID_8000000A, +HV_CPUID_ANY_SUBLEAF, +HV_CPUID_REG_E[ABCD]X, MAX_UINT32,"
    assert len(re.findall(row, policy)) == 4


def test_signature_words() -> None:
    words = [cpuid.CONSTANTS[f"HV_CPUID_SIGNATURE_{reg}"] for reg in ("EBX", "ECX", "EDX")]
    assert struct.pack("<3I", *words) == b"HvPkgHvPkgHv"
    assert cpuid.SIGNATURE == "HvPkgHvPkgHv"
    assert cpuid.CONSTANTS["HV_CPUID_HYPERVISOR_MAX"] == 0x40000002


def test_status_layout_is_what_readers_unpack() -> None:
    fields = status.LAYOUT["HV_STATUS_HEADER"]
    assert status.SIZES["HV_STATUS_HEADER"] == 128
    assert [name for name, *_ in fields][:4] == ["Signature", "Version", "CpuCount", "KindCount"]
    assert status.ARRAYS[0] == ("AtExitBootServices", "Q", exits.KIND_MAX)
    assert status.SIGNATURE == b"HvStatus"


def test_options_are_consistent_with_the_log() -> None:
    assert options.OPTIONS["log"].choices == log_events.LEVELS
    assert options.OPTIONS["nested_page"].choices == ("auto", "4k", "2m", "1g")
    assert options.OPTIONS["fail_cpu"].debug_only
    for option in options.OPTIONS.values():
        if option.kind == "choice":
            assert option.default in option.choices
        else:
            assert option.none if option.default == "none" else int(option.default) >= option.minimum


def test_corruptions_are_choices_of_their_option() -> None:
    assert options.OPTIONS["corrupt"].choices == ("none", *svm_checks.CORRUPTIONS, *vmx_checks.CORRUPTIONS)


def formats() -> Iterator[tuple[str, str]]:
    text = (gen.ROOT / gen.FOLDERS[".h"] / "HvLogEvents.h").read_text()
    lines = text[text.index("HV_LOG_EVENT_LIST(X)") : text.index("HV_LOG_RING_ONLY_LIST")]
    yield from re.findall(r'X \(\w+,\s+HvLog\w+,\s+"([^"]+)",\s+"([^"]*)"\)', lines)


def test_log_formats_in_c_are_the_fields_in_python() -> None:
    found = dict(formats())
    assert set(found) == set(log_events.EVENTS)
    for name, event in log_events.EVENTS.items():
        assert found[name] == " ".join(f"{key}=%{kind}" for key, kind in event.fields)


def test_vmcs_names_are_unique() -> None:
    names = [name for name, _, _ in vmcs.FIELDS.values()]
    assert len(names) == len(set(names)) >= 180

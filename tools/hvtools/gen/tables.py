# SPDX-License-Identifier: BSD-2-Clause-Patent
"""One function for each table: checked rows in, files out.

Each returns ``{name: text}``; names ending in ``.h`` go to HvPkg/Include/Generated, ``.py`` to hvtools/generated and ``.md`` to
HvPkg/Docs/Reference.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hvtools.gen import emit
from hvtools.gen.emit import aligned, c_defines, c_enum, c_file, c_group, c_struct, c_title, c_xmacro, camel
from hvtools.gen.emit import md_file, md_group, md_struct, md_table, py_constants, py_dict, py_file, py_string
from hvtools.gen.table import (
    SCALARS,
    Constant,
    Group,
    Head,
    Row,
    Struct,
    bits_constants,
    check_name,
    load,
    read_bit_range,
    read_groups,
    read_head,
    read_structs,
    refuse_duplicates,
)

Files = dict[str, str]
CPUID_REGISTERS = ("eax", "ebx", "ecx", "edx")
ROOT_MSR = {
    "pass": (False, False),
    "read-hook": (True, False),
    "write-hook": (False, True),
    "hook": (True, True),
    "deny": (True, True),
}
"""Policy of an MSR for the root as (intercept reads, intercept writes)."""


@dataclass
class Spec:
    """The folder of the tables; what more than one table needs is read once."""

    folder: Path

    def load(self, name: str) -> tuple[Row, Head, Row]:
        """Return the whole table, its head, and the head's row."""
        table = load(self.folder / name)
        head, row = read_head(table, name)
        return table, head, row

    @cached_property
    def kinds(self) -> list[tuple[str, str]]:
        """Exit kinds as (name, text), in counting order."""
        table, _, head = self.load("exits.toml")
        kinds = []
        for row in table.rows("kind"):
            kinds.append((row.name("name", "kebab"), row.text("text")))
            row.done()
        refuse_duplicates(table, [name for name, _ in kinds], "kind")
        limit = head.number("max")
        if len(kinds) > limit:
            table.fail(f"{len(kinds)} kinds, but a row of counters has {limit}")
        return kinds

    @cached_property
    def levels(self) -> list[str]:
        """Log levels, most severe first."""
        _, _, head = self.load("log.toml")
        levels = head.strings("levels")
        refuse_duplicates(head, levels, "level")
        return levels

    def kind(self, row: Row, key: str) -> str:
        """Return the C name of the exit kind that a row names."""
        name = row.text(key)
        if name not in (kind for kind, _ in self.kinds):
            row.fail(f"kind '{name}' is not in exits.toml")
        return f"HvExit{camel(name)}"


def _defined_once(row: Row, constants: list[Constant]) -> None:
    refuse_duplicates(row, [constant.name for constant in constants], "name")


def _group_constants(groups: list[Group]) -> list[Constant]:
    return [constant for group in groups for constant in group.constants]


def _py_groups(groups: list[Group], extra: list[Constant] | None = None) -> list[str]:
    """Return CONSTANTS and WORDS of a table with groups."""
    body = py_dict(
        "CONSTANTS", "dict[str, int]", py_constants([*(extra or []), *_group_constants(groups)]), "Values by their name in C."
    )
    body += ["WORDS: dict[str, tuple[tuple[str, int, int], ...]] = {"]
    for group in groups:
        if group.kind == "bits":
            body.append(f"    {py_string(group.prefix)}: (")
            body += [f"        ({py_string(name)}, {low}, {high})," for name, low, high, _ in group.fields]
            body.append("    ),")
    return [*body, "}", '"""Fields of a word, by the prefix of its constants: (name, lowest bit, highest bit)."""', ""]


def _py_struct_codes(structs: list[Struct]) -> list[str]:
    """Return LAYOUT: each scalar of each structure, structures within opened up."""
    by_name = {struct.name: struct for struct in structs}
    body = ["LAYOUT: dict[str, tuple[tuple[str, int, str, int], ...]] = {"]

    def walk(struct: Struct, prefix: str, at: int) -> None:
        for field in struct.fields:
            if field.type in SCALARS:
                code = emit.STRUCT_CODES[field.type]
                body.append(f"        ({py_string(prefix + field.name)}, 0x{at + field.offset:X}, {py_string(code)}, {field.count}),")
            else:
                walk(by_name[field.type], f"{prefix}{field.name}.", at + field.offset)

    for struct in structs:
        body.append(f"    {py_string(struct.name)}: (")
        walk(struct, "", 0)
        body.append("    ),")
    body += ["}", '"""Scalars of each structure: (path, offset in bytes, code of the struct module, count)."""', ""]
    return body + py_dict(
        "SIZES", "dict[str, int]", [(py_string(struct.name), f"0x{struct.size:X}") for struct in structs], "Sizes in bytes."
    )


# ---------------------------------------------------------------------------------------------------------------


def vmcb(spec: Spec) -> Files:
    """The virtual machine control block: structures, offsets, control bits."""
    table, head, row = spec.load("vmcb.toml")
    offsets_name = row.text("offsets")
    row.done()
    structs = read_structs(table)
    groups = read_groups(table)
    table.done()
    by_name = {struct.name: struct for struct in structs}
    offsets = [constant for struct in structs for constant in emit.struct_offsets(struct, by_name)]
    offsets.append(Constant("HV_VMCB_SIZE", by_name["HV_VMCB"].size, "bytes of a VMCB", "APM2 Appendix B"))
    _defined_once(table, [*offsets, *_group_constants(groups)])

    body: list[str] = [f"#include <Generated/{offsets_name}>", ""]
    for struct in structs:
        body += c_struct(struct)
    for group in groups:
        body += c_group(group)
    numbers = aligned([f"#define {item.name}", f"0x{item.value:03X}", f"///< {item.text}"] for item in offsets)
    note = ["//", "// Offsets from the start of the VMCB in bytes. Only macros, so that NASM sources can include this file too.", "//"]
    page = [line for struct in structs for line in md_struct(struct)] + [line for group in groups for line in md_group(group)]
    return {
        head.header: c_file(head, head.header, body),
        offsets_name: c_file(head, offsets_name, [*note, *numbers], include_base=False),
        "vmcb.py": py_file(
            head,
            [
                *_py_struct_codes(structs),
                *py_dict("OFFSETS", "dict[str, int]", py_constants(offsets), "Offsets from the start of the VMCB in bytes."),
                *_py_groups(groups),
            ],
        ),
        "Vmcb.md": md_file(head, page),
    }


def exits(spec: Spec) -> Files:
    """The neutral exit kinds."""
    _, head, row = spec.load("exits.toml")
    limit = row.number("max")
    row.section()
    row.done()
    named = [(f"HvExit{camel(name)}", name, text) for name, text in spec.kinds]
    body = c_enum(
        "HV_EXIT_KIND",
        "What a backend makes of a hardware exit.",
        [*((enum, text) for enum, _, text in named), ("HvExitKindCount", "number of kinds")],
    )
    body += ["/// Entries in a row of exit counters; a power of two, so that a row is addressed by a shift.", f"#define HV_EXIT_KIND_MAX  {limit}"]
    body += ["", 'STATIC_ASSERT (HvExitKindCount <= HV_EXIT_KIND_MAX, "HvExitKindCount");', ""]
    body += c_xmacro("HV_EXIT_KIND_LIST", "X (kind, name), in the order of the enum.", [[enum, f'"{name}"'] for enum, name, _ in named])
    names = ["KINDS: tuple[str, ...] = (", *(f"    {py_string(name)}," for name, _ in spec.kinds), ")"]
    names += ['"""Names of the exit kinds, by index."""', "", f"KIND_MAX = {limit}", '"""Entries in a row of exit counters."""']
    page = md_table(["index", "name", "meaning"], [[str(index), name, text] for index, (name, text) in enumerate(spec.kinds)])
    return {head.header: c_file(head, head.header, body), "exits.py": py_file(head, names), "ExitKinds.md": md_file(head, page)}


@dataclass(frozen=True)
class HardwareExit:
    """One hardware exit code; `kind` is empty when it cannot arrive."""

    name: str
    code: int
    kind: str
    kind_if_info1: str
    impossible: str
    section: str


def _read_exits(spec: Spec, table: Row, section: str, width: int) -> list[HardwareExit]:
    result: list[HardwareExit] = []
    for row in table.rows("exit"):
        count = row.number("count", 1)
        first = row.number("first", 0)
        pattern = row.text("name")
        if ("{n}" in pattern) != (count > 1):
            row.fail("'{n}' in the name and a 'count' belong together")
        if row.has("kind") == row.has("impossible"):
            row.fail("needs either 'kind' or 'impossible'")
        kind = spec.kind(row, "kind") if row.has("kind") else ""
        other = spec.kind(row, "kind_if_info1") if row.has("kind_if_info1") else kind
        impossible = row.text("impossible", "")
        code = row.number("code")
        where = row.section(section)
        for index in range(count):
            name = pattern.replace("{n}", str(first + index))
            check_name(row, name, "upper")
            result.append(HardwareExit(name, (code + index) % (1 << width), kind, other, impossible, where))
        row.done()
    refuse_duplicates(table, [item.name for item in result], "exit")
    refuse_duplicates(table, [f"code {item.code:#x}" for item in result], "exit")
    return result


def _exit_files(spec: Spec, file: str, width: int, python: str, page: str, info1: bool) -> Files:
    """Return the files of a table of exit codes; with `info1` the list of codes has a kind for EXITINFO1 other than 0."""
    table, head, row = spec.load(file)
    prefix = row.name("prefix", "upper")
    section = row.section()
    row.done()
    items = _read_exits(spec, table, section, width)
    groups = read_groups(table)
    table.done()
    constants = [Constant(f"{prefix}_{item.name}", item.code, item.impossible or item.kind, item.section) for item in items]
    _defined_once(table, [*constants, *_group_constants(groups)])
    body = ["#include <Generated/HvExitKind.h>", "", *c_title("exit codes", section), *c_defines(constants, width), ""]
    if not info1 and any(item.kind != item.kind_if_info1 for item in items):
        table.fail("kind_if_info1 has no meaning here")
    body += c_xmacro(
        f"{prefix}_LIST",
        f"X (code, kind, {'kind if EXITINFO1 is not 0, ' if info1 else ''}name): the codes that can arrive.",
        [
            [f"{prefix}_{item.name}", item.kind, *([item.kind_if_info1] if info1 else []), f'"{item.name}"']
            for item in items
            if item.kind
        ],
    )
    body += c_xmacro(
        f"{prefix}_IMPOSSIBLE_LIST",
        "X (code, name, reason): the codes that cannot arrive with the controls that HvPkg sets for the root.",
        [[f"{prefix}_{item.name}", f'"{item.name}"', f'"{item.impossible}"'] for item in items if item.impossible],
    )
    for group in groups:
        body += c_group(group)
    names = py_dict("EXITS", "dict[int, str]", [(f"0x{item.code:X}", py_string(item.name)) for item in items], "Names by code.")
    names += py_dict(
        "KINDS", "dict[int, str]", [(f"0x{item.code:X}", py_string(item.kind)) for item in items if item.kind], "Neutral kind by code."
    )
    if groups:
        names += _py_groups(groups)
    rows = [
        [f"0x{item.code:X}", item.name, (item.kind + ("" if item.kind_if_info1 == item.kind else f" or {item.kind_if_info1}")) or "-", item.impossible, item.section]
        for item in items
    ]
    text = md_table(["code", "name", "kind", "why it cannot arrive", "section"], rows)
    text += [line for group in groups for line in md_group(group)]
    return {head.header: c_file(head, head.header, body), python: py_file(head, names), page: md_file(head, text)}


def svm_exit(spec: Spec) -> Files:
    """SVM exit codes and their neutral kinds."""
    return _exit_files(spec, "svm_exit.toml", 64, "svm_exit.py", "SvmExits.md", info1=True)


def vmx_exit(spec: Spec) -> Files:
    """VMX basic exit reasons, their neutral kinds, and the words that describe an exit."""
    return _exit_files(spec, "vmx_exit.toml", 16, "vmx_exit.py", "VmxExits.md", info1=False)


def vmx_controls(spec: Spec) -> Files:
    """VM-execution, exit and entry controls."""
    table, head, row = spec.load("vmx_controls.toml")
    row.done()
    groups = read_groups(table)
    table.done()
    _defined_once(table, _group_constants(groups))
    return {
        head.header: c_file(head, head.header, [line for group in groups for line in c_group(group)], include_base=False),
        "vmx_controls.py": py_file(head, _py_groups(groups)),
        "VmxControls.md": md_file(head, [line for group in groups for line in md_group(group)]),
    }


VMCS_WIDTHS = ("16", "64", "32", "natural")
"""Width of a VMCS field by bits 14:13 of its encoding (SDM 25.11.2)."""
VMCS_TYPES = ("control", "read-only", "guest", "host")
"""Type of a VMCS field by bits 11:10 of its encoding (SDM 25.11.2)."""


def decode_vmcs(encoding: int) -> tuple[str, str, int]:
    """Return width, type and index of a VMCS field from its encoding (SDM 25.11.2).

    Raises:
        ValueError: If a bit that must be 0 is set, bit 0 (the high half of a 64-bit field) among them.
    """
    if encoding & ~0x6FFE:
        raise ValueError(f"encoding {encoding:#06x} has a bit that is reserved or selects a high half")
    return VMCS_WIDTHS[encoding >> 13 & 3], VMCS_TYPES[encoding >> 10 & 3], encoding >> 1 & 0x1FF


def vmcs(spec: Spec) -> Files:
    """VMCS field encodings, and the words of guest state."""
    table, head, row = spec.load("vmcs.toml")
    prefix = row.name("prefix", "upper")
    row.done()
    body: list[str] = []
    page: list[str] = []
    fields: list[tuple[Constant, str, str]] = []
    for block in table.rows("set"):
        width, kind = block.text("width"), block.text("type")
        section = block.section()
        constants: list[Constant] = []
        for item in block.rows("rows"):
            constant = Constant(
                f"{prefix}_{item.name('name', 'upper')}", item.number("encoding"), item.text("text"), item.section(section)
            )
            try:
                real = decode_vmcs(constant.value)[:2]
            except ValueError as error:
                item.fail(str(error))
            if real != (width, kind):
                item.fail(f"encoding {constant.value:#06x} is a {real[0]} {real[1]} field, not {width} {kind}")
            item.done()
            constants.append(constant)
        block.done()
        title = f"{width}{'' if width == 'natural' else '-bit'} {kind} fields"
        body += [*c_title(title, section), *c_defines(constants, 16), ""]
        page += [f"## {title[:1].upper() + title[1:]} ({section})", ""]
        page += md_table(
            ["encoding", "name", "meaning"],
            [[f"0x{item.value:04X}", item.name.removeprefix(f"{prefix}_"), item.text] for item in constants],
        )
        fields += [(constant, width, kind) for constant in constants]
    groups = read_groups(table)
    table.done()
    constants = [constant for constant, _, _ in fields]
    _defined_once(table, [*constants, *_group_constants(groups)])
    refuse_duplicates(table, [f"encoding {constant.value:#06x}" for constant in constants], "field with")
    for group in groups:
        body += c_group(group)
        page += md_group(group)
    body += c_xmacro(
        "HV_VMCS_LIST",
        "X (field, bytes, name); natural width is 8 bytes here.",
        [
            [constant.name, {"16": "2", "32": "4"}.get(width, "8"), f'"{constant.name.removeprefix(f"{prefix}_")}"']
            for constant, width, _ in fields
        ],
    )
    python = ["FIELDS: dict[int, tuple[str, str, str]] = {"]
    python += [
        f"    0x{constant.value:04X}: ({py_string(constant.name.removeprefix(f'{prefix}_'))}, {py_string(width)}, {py_string(kind)}),"
        for constant, width, kind in fields
    ]
    python += ["}", '"""Fields by encoding: (name, width, type)."""', ""]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "vmcs.py": py_file(head, [*python, *_py_groups(groups)]),
        "Vmcs.md": md_file(head, page),
    }


def msr(spec: Spec) -> Files:
    """Model specific registers, their bits, and the policy for the root."""
    table, head, row = spec.load("msr.toml")
    prefix = row.name("prefix", "upper")
    row.done()
    body: list[str] = []
    page: list[str] = []
    every: list[Constant] = []
    policy: list[list[str]] = []
    for number, block in enumerate(table.rows("set")):
        constants: list[Constant] = []
        rows: list[list[str]] = []
        title = block.text("text")
        for item in block.rows("rows"):
            count = item.number("count", 1)
            step = item.number("step", 1)
            pattern = item.text("name")
            if ("{n}" in pattern) != (count > 1):
                item.fail("'{n}' in the name and a 'count' belong together")
            first = item.number("msr")
            if not 0 <= first <= 0xFFFFFFFF:
                item.fail(f"msr {first:#x} does not fit in 32 bits")
            root = item.text("root", "pass")
            if root not in ROOT_MSR:
                item.fail(f"root '{root}' is none of {', '.join(ROOT_MSR)}")
            text, section = item.text("text"), item.section()
            for index in range(count):
                name = pattern.replace("{n}", str(index))
                check_name(item, name, "upper")
                constants.append(Constant(f"{prefix}_{name}", first + index * step, text, section))
                if root != "pass":
                    policy.append([f"{prefix}_{name}", *(str(flag).upper() for flag in ROOT_MSR[root]), f'"{name}"'])
                rows.append([f"0x{first + index * step:08X}", name, root, text, section])
            item.done()
        block.done()
        every += constants
        body += [*c_title(f"MSR numbers: {title}", head.source.split(";")[0] if number == 0 else "as above")[:2], "//"]
        body += aligned([f"#define {item.name}", f"0x{item.value:08X}", f"///< {item.text} ({item.section})"] for item in constants)
        body.append("")
        page += [f"## {title[:1].upper() + title[1:]}", "", *md_table(["MSR", "name", "root", "meaning", "section"], rows)]
    groups = read_groups(table)
    table.done()
    _defined_once(table, [*every, *_group_constants(groups)])
    refuse_duplicates(table, [f"number {item.value:#x}" for item in every], "MSR")
    for group in groups:
        body += c_group(group)
        page += md_group(group)
    body += c_xmacro(
        "HV_MSR_ROOT_POLICY_LIST", "X (msr, intercept reads, intercept writes, name): what the root does not reach by itself.", policy
    )
    names = py_dict(
        "MSRS", "dict[int, str]", [(f"0x{item.value:08X}", py_string(item.name.removeprefix(f"{prefix}_"))) for item in every], "Names by number."
    )
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "msr.py": py_file(head, [*names, *_py_groups(groups)]),
        "Msrs.md": md_file(head, page),
    }


def cpuid(spec: Spec) -> Files:
    """CPUID leaves and bits, the policy for the root, control register bits."""
    table, head, row = spec.load("cpuid.toml")
    prefix = row.name("prefix", "upper")
    row.done()
    own = table.row("hypervisor")
    signature = own.text("signature")
    own.section()
    own.done()
    if len(signature) != 12 or not signature.isascii():
        own.fail("'signature' must be 12 ASCII characters")
    body: list[str] = [*c_title("registers of a CPUID result, as in the policy lists", "order of EAX, EBX, ECX, EDX")]
    body += aligned([f"#define {prefix}_REG_{reg.upper()}", str(index)] for index, reg in enumerate(CPUID_REGISTERS))
    body.append("")
    every: list[Constant] = []
    leaves: list[tuple[int, str, int | None]] = []
    page: list[str] = []
    policy: list[list[str]] = []
    dynamic: list[list[str]] = []
    bits_py: list[str] = []
    for leaf in table.rows("leaf"):
        number = leaf.number("leaf")
        tag = leaf.name("tag", "upper")
        subleaf = leaf.number("subleaf") if leaf.has("subleaf") else None
        section = leaf.section()
        text = leaf.text("text")
        root = leaf.text("root", "pass")
        if root not in ("pass", "zero", "own"):
            leaf.fail(f"root '{root}' is none of pass, zero, own")
        if not 0 <= number <= 0xFFFFFFFF or not format(number, "X") == tag.split("_")[0]:
            leaf.fail(f"tag '{tag}' does not name leaf {number:X}")
        leaves.append((number, root, subleaf))
        constants: list[Constant] = []
        if number not in [entry[0] for entry in leaves[:-1]]:
            constants.append(Constant(f"{prefix}_{number:X}", number, text, section))
        rows: list[list[str]] = []
        taken: dict[tuple[str, int], str] = {}
        clear: dict[str, list[str]] = {reg: [] for reg in CPUID_REGISTERS}
        force: dict[str, list[str]] = {reg: [] for reg in CPUID_REGISTERS}
        for item in leaf.rows("bits", optional=True):
            reg = item.text("reg")
            if reg not in CPUID_REGISTERS:
                item.fail(f"reg '{reg}' is none of {', '.join(CPUID_REGISTERS)}")
            name = item.name("name", "upper")
            low, high = read_bit_range(item, 32)
            for bit in range(low, high + 1):
                if (reg, bit) in taken:
                    item.fail(f"overlaps {taken[reg, bit]} in {reg} bit {bit}")
                taken[reg, bit] = name
            full = f"{prefix}_{tag}_{reg.upper()}_{name}"
            made = bits_constants(item, full, low, high, item.text("text"), section)
            constants += made
            rule = item.text("root", "pass")
            if rule == "clear":
                clear[reg].append(made[0].name)
            elif rule == "set":
                force[reg].append(made[0].name)
            elif rule == "dynamic":
                dynamic.append([f"{prefix}_{number:X}", f"{prefix}_REG_{reg.upper()}", made[0].name, f'"{name}"'])
            elif rule != "pass":
                item.fail(f"root '{rule}' is none of pass, clear, set, dynamic")
            rows.append([reg, str(low) if low == high else f"{high}:{low}", name, rule, item.text("text")])
            bits_py.append(f"    (0x{number:X}, {subleaf or 0}, {py_string(reg)}, {py_string(name)}, {low}, {high}, {py_string(rule)}),")
            item.done()
        leaf.done()
        if root == "pass":
            for reg in CPUID_REGISTERS:
                if clear[reg] or force[reg]:
                    if subleaf is not None:
                        leaf.fail("a policy that clears or sets bits of a subleaf has no C form yet")
                    policy.append(
                        [
                            f"{prefix}_{number:X}",
                            f"{prefix}_REG_{reg.upper()}",
                            " | ".join(clear[reg]) or "0",
                            " | ".join(force[reg]) or "0",
                            f'"{tag}.{reg}"',
                        ]
                    )
        elif root == "zero":
            policy += [
                [f"{prefix}_{number:X}", f"{prefix}_REG_{reg.upper()}", "MAX_UINT32", "0", f'"{tag}.{reg}"'] for reg in CPUID_REGISTERS
            ]
        every += constants
        body += [*c_title(f"leaf {number:X}: {text}", section), *c_defines(constants, 32), ""]
        page += [f"## Leaf {number:08X}" + (f", subleaf {subleaf}" if subleaf is not None else ""), ""]
        page += [f"{text[:1].upper() + text[1:]} ({section})." + ("" if root == "pass" else f" Root: {root}."), ""]
        page += md_table(["register", "bits", "name", "root", "meaning"], rows) if rows else []
    refuse_duplicates(table, [f"{number:X}/{subleaf}" for number, _, subleaf in leaves], "leaf")
    words = [int.from_bytes(signature[at : at + 4].encode(), "little") for at in (0, 4, 8)]
    highest = max(number for number, root, _ in leaves if root == "own")
    ours = [
        Constant(f"{prefix}_SIGNATURE_{reg.upper()}", word, f'"{signature[4 * at : 4 * at + 4]}"', "HvPkg")
        for at, (reg, word) in enumerate(zip(CPUID_REGISTERS[1:], words, strict=True))
    ]
    ours.append(Constant(f"{prefix}_HYPERVISOR_MAX", highest, "highest hypervisor leaf", "HvPkg"))
    body += [*c_title("leaf 40000000: EAX is the highest leaf, the rest the signature", "HvPkg"), *c_defines(ours, 32), ""]
    body += [f'#define {prefix}_SIGNATURE  "{signature}"', ""]
    groups = read_groups(table)
    table.done()
    _defined_once(table, [*every, *ours, *_group_constants(groups)])
    for group in groups:
        body += c_group(group)
        page += md_group(group)
    body += c_xmacro("HV_CPUID_ROOT_POLICY_LIST", "X (leaf, register, bits cleared, bits set, name): what the root sees otherwise.", policy)
    body += c_xmacro("HV_CPUID_ROOT_DYNAMIC_LIST", "X (leaf, register, bit, name): bits that follow the root's own CR4.", dynamic)
    python = [
        f"SIGNATURE = {py_string(signature)}",
        '"""Signature in EBX, ECX, EDX of leaf 0x40000000."""',
        "",
        "BITS: tuple[tuple[int, int, str, str, int, int, str], ...] = (",
        *bits_py,
        ")",
        '"""Bits by (leaf, subleaf, register, name, lowest bit, highest bit, policy for the root)."""',
        "",
        *_py_groups(groups, [*every, *ours]),
    ]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "cpuid.py": py_file(head, python),
        "Cpuid.md": md_file(head, page),
    }


FIELD_TYPES = {"u": "%u", "x": "%x", "s": "%s"}


def log(spec: Spec) -> Files:
    """Log events."""
    table, head, row = spec.load("log.toml")
    row.section()
    row.strings("levels")
    row.done()
    levels = spec.levels
    entries: list[list[str]] = []
    enums: list[tuple[str, str]] = []
    ring: list[list[str]] = []
    most = 0
    python: list[str] = []
    rows: list[list[str]] = []
    for name, event in table.named("events"):
        check_name(event, name, "kebab")
        level = event.text("level")
        if level not in levels:
            event.fail(f"level '{level}' is none of {', '.join(levels)}")
        text = event.text("text")
        fields: list[tuple[str, str]] = []
        for item in event.strings("fields"):
            key, _, kind = item.partition(":")
            check_name(event, key, "kebab")
            if kind not in FIELD_TYPES:
                event.fail(f"field '{item}' has no type of {', '.join(FIELD_TYPES)}")
            fields.append((key, kind))
        refuse_duplicates(event, [key for key, _ in fields], "field")
        if event.flag("ring_only"):
            ring.append([camel(name), f'"{name}"'])
        event.done()
        pattern = " ".join(f"{key}={FIELD_TYPES[kind]}" for key, kind in fields)
        entries.append([camel(name), f"HvLog{camel(level)}", f'"{name}"', f'"{pattern}"'])
        most = max(most, len(fields))
        enums.append((f"HvLogEvent{camel(name)}", text))
        python.append(f"    {py_string(name)}: Event(")
        python.append(f"        {py_string(level)},")
        if fields:
            python.append("        (")
            python += [f"            ({py_string(key)}, {py_string(kind)})," for key, kind in fields]
            python.append("        ),")
        else:
            python.append("        (),")
        python += [f"        {py_string(text)},", "    ),"]
        rows.append([name, level, " ".join(f"{key}:{kind}" for key, kind in fields), text])
    table.done()
    if not entries:
        table.fail("has no events")
    body = c_enum("HV_LOG_LEVEL", "Levels, most severe first.", [(f"HvLog{camel(level)}", f'"{level}"') for level in levels])
    body += c_xmacro("HV_LOG_LEVEL_LIST", "X (level, name).", [[f"HvLog{camel(level)}", f'"{level}"'] for level in levels])
    body += c_enum("HV_LOG_EVENT", "Events.", [*enums, ("HvLogEventCount", "number of events")])
    body += c_xmacro(
        "HV_LOG_EVENT_LIST",
        "X (event, level, name, format): %u is an UINT64 in decimal, %x an UINT64 in hex with 0x, %s an ASCII string.",
        entries,
    )
    body += c_xmacro("HV_LOG_RING_ONLY_LIST", "X (event, name): events that go to the ring only, never to a slow device.", ring)
    body += ["/// Most fields that an event has.", f"#define HV_LOG_FIELDS_MAX  {most}"]
    module = [
        f"LEVELS = ({', '.join(py_string(level) for level in levels)})",
        '"""Levels, most severe first."""',
        "",
        "",
        "class Event(NamedTuple):",
        '    """An event: level, fields as (key, type u, x or s) in their order, meaning."""',
        "",
        "    level: str",
        "    fields: tuple[tuple[str, str], ...]",
        "    text: str",
        "",
        "",
        "EVENTS: dict[str, Event] = {",
        *python,
        "}",
        '"""Events by name."""',
    ]
    return {
        head.header: c_file(head, head.header, body),
        "log_events.py": py_file(head, module, ["from typing import NamedTuple"]),
        "LogEvents.md": md_file(head, md_table(["event", "level", "fields", "meaning"], rows)),
    }


def options(spec: Spec) -> Files:
    """Options of the hypervisor."""
    table, head, row = spec.load("options.toml")
    row.section()
    variable = row.text("variable")
    limit = row.number("max_bytes")
    try:
        guid = uuid.UUID(row.text("guid"))
    except ValueError:
        row.fail("'guid' is not a GUID")
    row.done()
    entries: list[list[str]] = []
    enums: list[tuple[str, str]] = []
    values: list[list[str]] = []
    python: list[str] = []
    rows: list[list[str]] = []
    for item in table.rows("option"):
        name = item.name("name", "snake")
        kind = item.text("type")
        text = item.text("text")
        debug_only = item.flag("debug_only")
        none = item.flag("none")
        default = item.text("default")
        low = high = 0
        choices: list[str] = []
        if kind == "choice":
            source = item.text("choices_of", "")
            if source and source != "log.levels":
                item.fail(f"choices_of '{source}' is not log.levels")
            choices = spec.levels if source else item.strings("choices")
            refuse_duplicates(item, choices, "choice")
            if default not in choices:
                item.fail(f"default '{default}' is none of the choices")
            high = len(choices) - 1
            start = str(choices.index(default))
            values += [[f"#define HV_OPTION_{name.upper()}_{choice.upper()}", str(index)] for index, choice in enumerate(choices)]
            allowed = "|".join(choices)
        elif kind == "number":
            low, high = item.number("min"), item.number("max")
            if not 0 <= low <= high < 1 << 63:
                item.fail(f"min {low} and max {high} make no range")
            if default == "none" and none:
                start = "HV_OPTION_NONE"
            elif default.isdigit() and low <= int(default) <= high:
                start = default
            else:
                item.fail(f"default '{default}' is out of range")
            allowed = f"{low}..{high}" + ("|none" if none else "")
        else:
            item.fail(f"type '{kind}' is neither choice nor number")
        item.done()
        enums.append((f"HvOption{camel(name)}", text))
        entries.append(
            [
                camel(name),
                f'"{name}"',
                f"HvOption{camel(kind)}",
                start,
                str(low),
                str(high),
                str(none).upper(),
                str(debug_only).upper(),
                f'"{"|".join(choices)}"',
            ]
        )
        python += [f"    {py_string(name)}: Option(", f"        kind={py_string(kind)},"]
        python.append("        choices=(" + "".join(f"{py_string(choice)}, " for choice in choices).rstrip() + "),")
        python += [f"        minimum={low},", f"        maximum={high},", f"        none={none},", f"        default={py_string(default)},"]
        python += [f"        debug_only={debug_only},", f"        text={py_string(text)},", "    ),"]
        rows.append([name, allowed, default, "DEBUG" if debug_only else "all", text])
    table.done()
    refuse_duplicates(table, [entry[1] for entry in entries], "option")
    node = ", ".join(f"0x{byte:02x}" for byte in guid.bytes[8:])
    body = c_enum("HV_OPTION", "Options.", [*enums, ("HvOptionCount", "number of options")])
    body += c_enum("HV_OPTION_TYPE", "Types of options.", [("HvOptionChoice", "one of a list; the value is its index"), ("HvOptionNumber", "decimal number")])
    body += ["/// Value of a number that is none.", "#define HV_OPTION_NONE  MAX_UINT64", ""]
    body += ["//", "// Values of choices.", "//", *aligned(values), ""]
    body += [
        "/// The UEFI variable with the options: ASCII, `name=value name=value`.",
        f'#define HV_OPTIONS_VARIABLE   L"{variable}"',
        f"#define HV_OPTIONS_MAX_BYTES  {limit}",
        "#define HV_OPTIONS_GUID \\",
        f"  {{ 0x{guid.time_low:08x}, 0x{guid.time_mid:04x}, 0x{guid.time_hi_version:04x}, {{ {node} }} }}",
        "",
    ]
    body += c_xmacro(
        "HV_OPTION_LIST",
        "X (option, name, type, default, minimum, maximum, whether none is allowed, DEBUG build only, choices).",
        entries,
    )
    module = [
        f"VARIABLE = {py_string(variable)}",
        '"""Name of the UEFI variable."""',
        "",
        f"GUID = {py_string(str(guid))}",
        '"""Vendor GUID of the UEFI variable."""',
        "",
        f"MAX_BYTES = {limit}",
        '"""Longest text of the variable in bytes."""',
        "",
        "",
        "class Option(NamedTuple):",
        '    """An option: a choice, or a number from minimum to maximum, or none where that is allowed."""',
        "",
        *(f"    {line}" for line in ("kind: str", "choices: tuple[str, ...]", "minimum: int", "maximum: int", "none: bool")),
        *(f"    {line}" for line in ("default: str", "debug_only: bool", "text: str")),
        "",
        "",
        "OPTIONS: dict[str, Option] = {",
        *python,
        "}",
        '"""Options by name."""',
    ]
    page = [f"UEFI variable `{variable}`, vendor GUID `{guid}`: ASCII text `name=value name=value`, at most {limit} bytes.", ""]
    page += md_table(["option", "values", "default", "builds", "meaning"], rows)
    return {
        head.header: c_file(head, head.header, body),
        "options.py": py_file(head, module, ["from typing import NamedTuple"]),
        "Options.md": md_file(head, page),
    }


def status(spec: Spec) -> Files:
    """The status pages."""
    table, head, row = spec.load("status.toml")
    row.section()
    row.done()
    structs = read_structs(table)
    groups = read_groups(table)
    mark = table.row("signature")
    mark_name, mark_text = mark.name("name", "upper"), mark.text("text")
    if len(mark_text) != 8 or not mark_text.isascii():
        mark.fail("'text' must be 8 ASCII characters")
    mark.done()
    arrays: list[tuple[str, str, int, str]] = []
    for item in table.rows("array"):
        element = item.text("element")
        if element not in SCALARS:
            item.fail(f"element '{element}' is unknown")
        arrays.append((item.name("name", "camel"), element, item.number("per_cpu"), item.text("text")))
        item.done()
    table.done()
    if len(structs) != 1:
        table.fail("needs exactly one struct")
    header = structs[0]
    signature = int.from_bytes(mark_text.encode(), "little")
    body = c_struct(header)
    body += [f"#define {mark_name}  {emit.hex_width(signature, 64)}  ///< \"{mark_text}\"", ""]
    for group in groups:
        body += c_group(group)
    body += ["//", "// The arrays behind the header, for Cpus processors: offsets in bytes.", "//"]
    at = f"sizeof ({header.name})"
    for name, element, per_cpu, text in arrays:
        macro = f"HV_STATUS_{emit.upper_snake(name)}_OFFSET"
        body += [f"/// {text}: {emit.C_TYPES[element]} [Cpus]" + (f"[{per_cpu}]" if per_cpu > 1 else "")]
        body += [f"#define {macro}(Cpus)  ({at})"]
        at = f"{macro} (Cpus) + (UINTN)(Cpus) * {per_cpu * SCALARS[element]}"
    body += ["/// Bytes of it all.", f"#define HV_STATUS_BYTES(Cpus)  ({at})", ""]
    rows_max = [name for name, _, per_cpu, _ in arrays if per_cpu > 1]
    for name, _, per_cpu, _ in arrays:
        if name in rows_max and per_cpu != 1:
            body.append(f'STATIC_ASSERT (HV_EXIT_KIND_MAX == {per_cpu}, "{name}");')
    body = ["#include <Generated/HvExitKind.h>", "", *body]
    module = [
        f"SIGNATURE = {mark_text.encode()!r}".replace("'", '"'),
        '"""First 8 bytes of the status pages."""',
        "",
        *_py_struct_codes(structs),
        *_py_groups(groups),
        "ARRAYS: tuple[tuple[str, str, int], ...] = (",
        *(f"    ({py_string(name)}, {py_string(emit.STRUCT_CODES[element])}, {per_cpu})," for name, element, per_cpu, _ in arrays),
        ")",
        '"""Arrays behind the header, one after the other: (name, code of the struct module, elements for each processor)."""',
    ]
    page = md_struct(header)
    page += [f"`Signature` is the text `{mark_text}`. Behind the header, one after the other:", ""]
    page += md_table(
        ["array", "type", "meaning"],
        [[name, f"{element}[CpuCount]" + (f"[{per_cpu}]" if per_cpu > 1 else ""), text] for name, element, per_cpu, text in arrays],
    )
    page += [line for group in groups for line in md_group(group)]
    return {head.header: c_file(head, head.header, body), "status.py": py_file(head, module), "Status.md": md_file(head, page)}


def hypercall(spec: Spec) -> Files:
    """Hypercalls."""
    table, head, row = spec.load("hypercall.toml")
    row.section()
    magic = row.number("magic")
    row.done()
    calls: list[tuple[str, int, str, str]] = []
    for item in table.rows("call"):
        calls.append((item.name("name", "kebab"), item.number("number"), item.text("text"), item.text("returns")))
        if calls[-1][1] & ~0xFFFF:
            item.fail(f"number {calls[-1][1]} does not fit in 16 bits")
        item.done()
    groups = read_groups(table)
    table.done()
    if magic & 0xFFFF or magic >> 32:
        row.fail("'magic' must have 16 zero bits below 16 others")
    refuse_duplicates(table, [name for name, *_ in calls], "call")
    refuse_duplicates(table, [f"number {number}" for _, number, *_ in calls], "call")
    constants = [Constant(f"HV_HC_{name.upper().replace('-', '_')}", magic | number, text, "HvPkg") for name, number, text, _ in calls]
    _defined_once(table, [*constants, *_group_constants(groups)])
    body = ["//", "// RAX on VMCALL or VMMCALL at CPL 0: the magic and the number.", "//"]
    body += [*c_defines([Constant("HV_HC_MAGIC", magic, "upper half of a call", "HvPkg"), *constants], 64), ""]
    for group in groups:
        body += c_group(group)
    body += c_xmacro("HV_HYPERCALL_LIST", "X (call, name).", [[constant.name, f'"{name}"'] for constant, (name, *_) in zip(constants, calls, strict=True)])
    module = py_dict(
        "CALLS", "dict[str, int]", [(py_string(name), f"0x{magic | number:X}") for name, number, *_ in calls], "RAX of each call, by name."
    )
    page = ["`VMCALL` or `VMMCALL` at CPL 0, RAX as below.", ""]
    page += md_table(["RAX", "name", "does", "returns in RAX"], [[f"0x{magic | number:08X}", name, text, back] for name, number, text, back in calls])
    page += [line for group in groups for line in md_group(group)]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "hypercall.py": py_file(head, [*module, *_py_groups(groups)]),
        "Hypercalls.md": md_file(head, page),
    }


TABLES: dict[str, Callable[[Spec], Files]] = {
    "vmcb.toml": vmcb,
    "exits.toml": exits,
    "svm_exit.toml": svm_exit,
    "vmcs.toml": vmcs,
    "vmx_exit.toml": vmx_exit,
    "vmx_controls.toml": vmx_controls,
    "msr.toml": msr,
    "cpuid.toml": cpuid,
    "log.toml": log,
    "options.toml": options,
    "status.toml": status,
    "hypercall.toml": hypercall,
}
"""What makes the files of each table."""

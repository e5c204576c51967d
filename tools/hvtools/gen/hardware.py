# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The tables of the processors: each function turns one into a header, a Python module and a reference page."""

from __future__ import annotations

from dataclasses import dataclass

from hvtools.gen import emit
from hvtools.gen.emit import (
    aligned,
    c_defines,
    c_file,
    c_group,
    c_struct,
    c_title,
    c_xmacro,
    md_file,
    md_group,
    md_struct,
    md_table,
    py_constants,
    py_dict,
    py_file,
    py_string,
)
from hvtools.gen.spec import Files, Spec, defined_once, group_constants, py_groups, py_struct_codes
from hvtools.gen.table import (
    Constant,
    Row,
    bits_constants,
    check_name,
    read_bit_range,
    read_groups,
    read_structs,
    refuse_duplicates,
)

CPUID_REGISTERS = ("eax", "ebx", "ecx", "edx")
ROOT_MSR = {
    "pass": (False, False, "Hook"),
    "read-hook": (True, False, "Hook"),
    "write-hook": (False, True, "Hook"),
    "hook": (True, True, "Hook"),
    "deny": (True, True, "Deny"),
    "read-only": (False, True, "ReadOnly"),
    "frozen": (False, True, "Frozen"),
    "drop": (False, True, "Drop"),
}
"""Policy of an MSR for the root as (intercept reads, intercept writes, the core's rule)."""

MSR_RULES = {
    "Hook": "the core's own code",
    "Deny": "#GP, as where there is no such MSR",
    "ReadOnly": "a write is #GP",
    "Frozen": "a write of another value is #GP",
    "Drop": "a write does nothing",
}


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
    defined_once(table, [*offsets, *group_constants(groups)])

    body: list[str] = [f"#include <Generated/{offsets_name}>", ""]
    for struct in structs:
        body += c_struct(struct)
    for group in groups:
        body += c_group(group)
    numbers = aligned([f"#define {item.name}", f"0x{item.value:03X}", f"///< {item.text}"] for item in offsets)
    note = [
        "//",
        "// Offsets from the start of the VMCB in bytes. Only macros, so that NASM sources can include this file too.",
        "//",
    ]
    page = [line for struct in structs for line in md_struct(struct)] + [
        line for group in groups for line in md_group(group)
    ]
    return {
        head.header: c_file(head, head.header, body),
        offsets_name: c_file(head, offsets_name, [*note, *numbers], include_base=False),
        "vmcb.py": py_file(
            head,
            [
                *py_struct_codes(structs),
                *py_dict(
                    "OFFSETS", "dict[str, int]", py_constants(offsets), "Offsets from the start of the VMCB in bytes."
                ),
                *py_groups(groups),
            ],
        ),
        "Vmcb.md": md_file(head, page),
    }


@dataclass(frozen=True)
class HardwareExit:
    """One hardware exit code; `kind` is empty when it cannot arrive."""

    name: str
    code: int
    kind: str
    kind_if_info1: str
    impossible: str
    on_demand: bool
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
        on_demand = row.flag("on_demand")
        code = row.number("code")
        where = row.section(section)
        for index in range(count):
            name = pattern.replace("{n}", str(first + index))
            check_name(row, name, "upper")
            result.append(HardwareExit(name, (code + index) % (1 << width), kind, other, impossible, on_demand, where))
        row.done()
    refuse_duplicates(table, [item.name for item in result], "exit")
    refuse_duplicates(table, [f"code {item.code:#x}" for item in result], "exit")
    return result


SVM_INTERCEPT_WORDS = {0x60: 3, 0x80: 4, 0xA0: 5}
"""First exit code of each word whose bits are in the order of the codes (APM2 Table B-1, Table C-1)."""
SVM_INTERCEPT_NAMES = {"IOIO": "IOIO_PROT", "MSR": "MSR_PROT"}
"""Exits that the table of exit codes calls otherwise than the table of intercepts."""


def _root_intercepts(spec: Spec, table: Row, items: list[HardwareExit]) -> list[str]:
    """Return the intercept words that make exactly the exits that have a kind possible."""
    lines: list[str] = []
    for first, word in SVM_INTERCEPT_WORDS.items():
        names: list[str] = []
        for item in items:
            bit = item.code - first
            if not 0 <= bit < 32 or (word, bit) not in spec.intercepts:
                continue
            name = f"HV_SVM_INTERCEPT{word}_{SVM_INTERCEPT_NAMES.get(item.name, item.name)}"
            if spec.intercepts[word, bit] != name:
                table.fail(f"exit {item.name} has code {item.code:#x}, whose intercept is {spec.intercepts[word, bit]}")
            if item.kind and not item.on_demand:
                names.append(name)
        lines += [f"#define HV_SVM_ROOT_INTERCEPT{word} \\", f"  ({' | '.join(names) or '0'})"]
    return [*c_title("intercepts that are always set for the root, of HvVmcb.h", "HvPkg"), *lines, ""]


def _exit_files(spec: Spec, file: str, width: int, python: str, page: str, svm: bool) -> Files:
    """Return the files of a table of exit codes; SVM has a second kind for EXITINFO1 other than 0, and intercepts."""
    table, head, row = spec.load(file)
    prefix = row.name("prefix", "upper")
    section = row.section()
    row.done()
    items = _read_exits(spec, table, section, width)
    groups = read_groups(table)
    table.done()
    constants = [
        Constant(f"{prefix}_{item.name}", item.code, item.impossible or item.kind, item.section) for item in items
    ]
    defined_once(table, [*constants, *group_constants(groups)])
    body = ["#include <Generated/HvExitKind.h>", "", *c_title("exit codes", section), *c_defines(constants, width), ""]
    if svm:
        body += _root_intercepts(spec, table, items)
    elif any(item.kind != item.kind_if_info1 or item.on_demand for item in items):
        table.fail("kind_if_info1 and on_demand have no meaning here")
    body += c_xmacro(
        f"{prefix}_LIST",
        f"X (code, kind, {'kind if EXITINFO1 is not 0, ' if svm else ''}name): the codes that can arrive.",
        [
            [f"{prefix}_{item.name}", item.kind, *([item.kind_if_info1] if svm else []), f'"{item.name}"']
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
    names = py_dict(
        "EXITS", "dict[int, str]", [(f"0x{item.code:X}", py_string(item.name)) for item in items], "Names by code."
    )
    names += py_dict(
        "KINDS",
        "dict[int, str]",
        [(f"0x{item.code:X}", py_string(item.kind)) for item in items if item.kind],
        "Neutral kind by code.",
    )
    if groups:
        names += py_groups(groups)
    rows = [
        [
            f"0x{item.code:X}",
            item.name,
            (item.kind + ("" if item.kind_if_info1 == item.kind else f" or {item.kind_if_info1}")) or "-",
            item.impossible,
            item.section,
        ]
        for item in items
    ]
    text = md_table(["code", "name", "kind", "why it cannot arrive", "section"], rows)
    text += [line for group in groups for line in md_group(group)]
    return {head.header: c_file(head, head.header, body), python: py_file(head, names), page: md_file(head, text)}


def svm_exit(spec: Spec) -> Files:
    """SVM exit codes and their neutral kinds."""
    return _exit_files(spec, "svm_exit.toml", 64, "svm_exit.py", "SvmExits.md", svm=True)


def vmx_exit(spec: Spec) -> Files:
    """VMX basic exit reasons, their neutral kinds, and the words that describe an exit."""
    return _exit_files(spec, "vmx_exit.toml", 16, "vmx_exit.py", "VmxExits.md", svm=False)


def vmx_controls(spec: Spec) -> Files:
    """VM-execution, exit and entry controls."""
    table, head, row = spec.load("vmx_controls.toml")
    row.done()
    groups = read_groups(table)
    table.done()
    defined_once(table, group_constants(groups))
    return {
        head.header: c_file(
            head, head.header, [line for group in groups for line in c_group(group)], include_base=False
        ),
        "vmx_controls.py": py_file(head, py_groups(groups)),
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
                f"{prefix}_{item.name('name', 'upper')}",
                item.number("encoding"),
                item.text("text"),
                item.section(section),
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
    defined_once(table, [*constants, *group_constants(groups)])
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
        f'    0x{constant.value:04X}: ("{constant.name.removeprefix(f"{prefix}_")}", "{width}", "{kind}"),'
        for constant, width, kind in fields
    ]
    python += ["}", '"""Fields by encoding: (name, width, type)."""', ""]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "vmcs.py": py_file(head, [*python, *py_groups(groups)]),
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
    policy: dict[int, list[str]] = {}
    policy_py: dict[int, tuple[str, str]] = {}
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
            vmx = item.text("root-vmx", root)
            if vmx not in ROOT_MSR:
                item.fail(f"root-vmx '{vmx}' is none of {', '.join(ROOT_MSR)}")
            text, section = item.text("text"), item.section()
            why = f". {item.text('why')}" if item.has("why") else ""
            for index in range(count):
                name = pattern.replace("{n}", str(index))
                check_name(item, name, "upper")
                constants.append(Constant(f"{prefix}_{name}", first + index * step, text, section))
                if root != "pass" or vmx != "pass":
                    columns = [f"{prefix}_{name}"]
                    for read, write, rule in (ROOT_MSR[root], ROOT_MSR[vmx]):
                        columns += [str(read).upper(), str(write).upper(), f"HvMsr{rule}"]
                    policy[first + index * step] = [*columns, f'"{name}"']
                    policy_py[first + index * step] = (root, vmx)
                shown = root if vmx == root else f"{root}; VMX: {vmx}"
                rows.append([f"0x{first + index * step:08X}", name, shown, f"{text}{why}", section])
            item.done()
        block.done()
        every += constants
        body += [*c_title(f"MSR numbers: {title}", head.source.split(";")[0] if number == 0 else "as above")[:2], "//"]
        body += aligned(
            [f"#define {item.name}", f"0x{item.value:08X}", f"///< {item.text} ({item.section})"] for item in constants
        )
        body.append("")
        page += [
            f"## {title[:1].upper() + title[1:]}",
            "",
            *md_table(["MSR", "name", "root", "meaning", "section"], rows),
        ]
    groups = read_groups(table)
    table.done()
    defined_once(table, [*every, *group_constants(groups)])
    refuse_duplicates(table, [f"number {item.value:#x}" for item in every], "MSR")
    for group in groups:
        body += c_group(group)
        page += md_group(group)
    body += ["///", "/// What the core does with an MSR of HV_MSR_ROOT_POLICY_LIST.", "///", "typedef enum {"]
    body += aligned([f"  HvMsr{rule},", f"///< {text}"] for rule, text in MSR_RULES.items())
    body += ["} HV_MSR_RULE;", ""]
    body += c_xmacro(
        "HV_MSR_ROOT_POLICY_LIST",
        "X (msr, SVM intercepts reads, writes, rule, VMX intercepts reads, writes, rule, name): "
        "what the root does not reach by itself, by number.",
        [policy[number] for number in sorted(policy)],
    )
    names = py_dict(
        "MSRS",
        "dict[int, str]",
        [(f"0x{item.value:08X}", py_string(item.name.removeprefix(f"{prefix}_"))) for item in every],
        "Names by number.",
    )
    policies = py_dict(
        "ROOT",
        "dict[int, tuple[str, str]]",
        [
            (f"0x{number:08X}", f"({py_string(svm)}, {py_string(vmx)})")
            for number, (svm, vmx) in sorted(policy_py.items())
        ],
        "Policy for the root, under SVM and under VMX, of those that have one.",
    )
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "msr.py": py_file(head, [*names, *policies, *py_groups(groups)]),
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
            bits_py.append(f'    (0x{number:X}, {subleaf}, "{reg}", "{name}", {low}, {high}, "{rule}"),')
            item.done()
        leaf.done()
        if root == "pass":
            for reg in CPUID_REGISTERS:
                if clear[reg] or force[reg]:
                    policy.append(
                        [
                            f"{prefix}_{number:X}",
                            f"{prefix}_ANY_SUBLEAF" if subleaf is None else str(subleaf),
                            f"{prefix}_REG_{reg.upper()}",
                            " | ".join(clear[reg]) or "0",
                            " | ".join(force[reg]) or "0",
                            f'"{tag}.{reg}"',
                        ]
                    )
        elif root == "zero":
            policy += [
                [
                    f"{prefix}_{number:X}",
                    f"{prefix}_ANY_SUBLEAF",
                    f"{prefix}_REG_{reg.upper()}",
                    "MAX_UINT32",
                    "0",
                    f'"{tag}.{reg}"',
                ]
                for reg in CPUID_REGISTERS
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
    body += [
        *c_title("leaf 40000000: EAX is the highest leaf, the rest the signature", "HvPkg"),
        *c_defines(ours, 32),
        "",
    ]
    body += [f'#define {prefix}_SIGNATURE  "{signature}"', ""]
    body += ["/// In a row of HV_CPUID_ROOT_POLICY_LIST: the leaf has no subleaves, or all are treated alike."]
    body += [f"#define {prefix}_ANY_SUBLEAF  MAX_UINT32", ""]
    groups = read_groups(table)
    table.done()
    defined_once(table, [*every, *ours, *group_constants(groups)])
    for group in groups:
        body += c_group(group)
        page += md_group(group)
    policy.sort(key=lambda row: int(row[0].removeprefix(f"{prefix}_"), 16))
    body += c_xmacro(
        "HV_CPUID_ROOT_POLICY_LIST",
        "X (leaf, subleaf, register, bits cleared, bits set, name): what the root sees otherwise, leaves in order.",
        policy,
    )
    body += c_xmacro(
        "HV_CPUID_ROOT_DYNAMIC_LIST", "X (leaf, register, bit, name): bits that follow the root's own CR4.", dynamic
    )
    python = [
        f"SIGNATURE = {py_string(signature)}",
        '"""Signature in EBX, ECX, EDX of leaf 0x40000000."""',
        "",
        "BITS: tuple[tuple[int, int | None, str, str, int, int, str], ...] = (",
        *bits_py,
        ")",
        '"""Bits by (leaf, subleaf or None, register, name, lowest bit, highest bit, policy for the root)."""',
        "",
        "NO_LEAVES: frozenset[int] = frozenset({"
        + ", ".join(f"0x{number:X}" for number, root, _ in sorted(set(leaves), key=str) if root == "zero")
        + "})",
        '"""Leaves that are all zeros for the root, where the processor has them."""',
        "",
        *py_groups(groups, [*every, *ours]),
    ]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "cpuid.py": py_file(head, python),
        "Cpuid.md": md_file(head, page),
    }

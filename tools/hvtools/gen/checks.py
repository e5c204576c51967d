# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The tables of consistency checks: rules, the fields that they look at, and corruptions that break one of them."""

from __future__ import annotations

from dataclasses import dataclass

from hvtools.gen.emit import c_enum, c_file, c_xmacro, camel, hex_width, md_file, md_table, py_file, py_string
from hvtools.gen.spec import Files, Spec
from hvtools.gen.table import SCALARS, Head, Row, read_structs, refuse_duplicates

CORRUPTIONS_FIRST = "none"
"""The choice of the option that corrupts nothing."""


@dataclass(frozen=True)
class Rule:
    """One rule of a manual: part control, host or guest; fields by name."""

    name: str
    part: str
    fields: tuple[str, ...]
    section: str
    expected: str


@dataclass(frozen=True)
class Corruption:
    """A change of one field that breaks one rule: new = (old & ~clear) | set."""

    name: str
    rule: str
    field: str
    clear: int
    set: int


def _read(
    table: Row, prefix: str, parts: tuple[str, ...], sizes: dict[str, int]
) -> tuple[list[Rule], list[Corruption]]:
    rules: list[Rule] = []
    for row in table.rows("rule"):
        rule = Rule(
            row.name("name", "kebab"),
            row.text("part"),
            tuple(row.strings("fields")),
            row.section(),
            row.text("expected"),
        )
        if rule.part not in parts:
            row.fail(f"part '{rule.part}' is none of {', '.join(parts)}")
        refuse_duplicates(row, list(rule.fields), "field")
        unknown = [field for field in rule.fields if field not in sizes]
        if unknown or not rule.fields:
            row.fail(f"field '{unknown[0]}' is unknown" if unknown else "has no fields")
        row.done()
        rules.append(rule)
    refuse_duplicates(table, [rule.name for rule in rules], "rule")
    by_name = {rule.name: rule for rule in rules}
    corruptions: list[Corruption] = []
    for row in table.rows("corruption"):
        item = Corruption(
            row.name("name", "kebab"), row.text("rule"), row.text("field"), row.number("clear", 0), row.number("set", 0)
        )
        if not item.name.startswith(prefix):
            row.fail(f"the name must begin with '{prefix}'")
        if item.rule not in by_name:
            row.fail(f"rule '{item.rule}' is unknown")
        if item.field not in by_name[item.rule].fields:
            row.fail(f"field '{item.field}' is none of rule {item.rule}")
        if not 0 < item.clear | item.set < 1 << 8 * sizes[item.field]:
            row.fail(f"clear and set must change bits of the field's {sizes[item.field]} bytes")
        row.done()
        corruptions.append(item)
    table.done()
    refuse_duplicates(table, [item.name for item in corruptions], "corruption")
    return rules, corruptions


def _vmcb_fields(spec: Spec) -> dict[str, tuple[int, int]]:
    """Return offset and bytes of each scalar of the VMCB by its path."""
    table, _, _ = spec.load("vmcb.toml")
    by_name = {struct.name: struct for struct in read_structs(table)}
    found: dict[str, tuple[int, int]] = {}

    def walk(prefix: str, at: int, name: str) -> None:
        for field in by_name[name].fields:
            if field.type in SCALARS:
                found[f"{prefix}{field.name}"] = (at + field.offset, field.size)
            elif field.count == 1:
                walk(f"{prefix}{field.name}.", at + field.offset, field.type)

    walk("", 0, "HV_VMCB")
    return found


def _vmcs_fields(spec: Spec) -> dict[str, tuple[int, int]]:
    """Return encoding and bytes of each field of the VMCS by its name."""
    table, _, row = spec.load("vmcs.toml")
    widths = {"16": 2, "32": 4, "64": 8, "natural": 8}
    return {
        item.text("name"): (item.number("encoding"), widths[block.text("width")])
        for block in table.rows("set")
        for item in block.rows("rows")
    }


def _svm_table(spec: Spec) -> tuple[Head, list[Rule], list[Corruption], dict[str, tuple[int, int]]]:
    table, head, row = spec.load("svm_checks.toml")
    row.done()
    fields = _vmcb_fields(spec)
    rules, corruptions = _read(
        table, "vmcb-", ("control", "guest"), {name: size for name, (_, size) in fields.items() if size in (1, 2, 4, 8)}
    )
    return head, rules, corruptions, fields


def _vmx_table(spec: Spec) -> tuple[Head, list[Rule], list[Corruption], dict[str, tuple[int, int]]]:
    table, head, row = spec.load("vmx_checks.toml")
    row.done()
    fields = _vmcs_fields(spec)
    rules, corruptions = _read(
        table, "vmcs-", ("control", "host", "guest"), {name: size for name, (_, size) in fields.items()}
    )
    return head, rules, corruptions, fields


def corruptions(spec: Spec) -> list[str]:
    """Return the choices of an option that names a corruption, none first."""
    return [CORRUPTIONS_FIRST, *(item.name for item in [*_svm_table(spec)[2], *_vmx_table(spec)[2]])]


def _files(
    title: str,
    head: Head,
    rules: list[Rule],
    items: list[Corruption],
    fields: dict[str, tuple[int, int]],
    list_fields: bool,
) -> Files:
    enum = f"Hv{title}Rule"
    upper = f"HV_{title.upper()}"
    parts = list(dict.fromkeys(rule.part for rule in rules))
    body = c_enum(
        f"{upper}_RULE",
        "Rules.",
        [*((f"{enum}{camel(rule.name)}", rule.expected) for rule in rules), (f"{enum}Count", "number of rules")],
    )
    body += c_xmacro(
        f"{upper}_RULE_LIST",
        "X (rule, part, name, section, what is expected), in the order of the enum.",
        [
            [
                f"{enum}{camel(rule.name)}",
                f"HvPart{camel(rule.part)}",
                f'"{rule.name}"',
                f'"{rule.section}"',
                f'"{rule.expected}"',
            ]
            for rule in rules
        ],
    )
    if list_fields:
        used = sorted({name for rule in rules for name in rule.fields}, key=lambda name: fields[name][0])
        body += c_xmacro(
            f"{upper}_RULE_FIELD_LIST",
            "X (offset in the VMCB, bytes, name): the fields that rules look at.",
            [[f"0x{fields[name][0]:03X}", str(fields[name][1]), f'"{name}"'] for name in used],
        )
    body += c_xmacro(
        f"{upper}_CORRUPTION_LIST",
        f"X (choice of the option corrupt, {'offset' if list_fields else 'encoding'}, bytes, bits cleared, bits set).",
        [
            [
                f"HV_OPTION_CORRUPT_{item.name.upper().replace('-', '_')}",
                f"0x{fields[item.field][0]:0{3 if list_fields else 4}X}",
                str(fields[item.field][1]),
                hex_width(item.clear, 64),
                hex_width(item.set, 64),
            ]
            for item in items
        ],
    )
    module = [
        "",
        "class Rule(NamedTuple):",
        '    """A rule: part of the state, fields by name, section of the manual, what is expected."""',
        "",
        "    part: str",
        "    fields: tuple[str, ...]",
        "    section: str",
        "    expected: str",
        "",
        "",
        "class Corruption(NamedTuple):",
        '    """A change of one field that breaks one rule: new = (old & ~clear) | set."""',
        "",
        "    rule: str",
        "    field: str",
        "    clear: int",
        "    set: int",
        "",
        "",
        "RULES: dict[str, Rule] = {",
    ]
    for rule in rules:
        module += [f"    {py_string(rule.name)}: Rule(", f"        {py_string(rule.part)},"]
        module += ["        (", *(f"            {py_string(name)}," for name in rule.fields), "        ),"]
        module += [f"        {py_string(rule.section)},", f"        {py_string(rule.expected)},", "    ),"]
    module += ["}", '"""Rules by name."""', "", "CORRUPTIONS: dict[str, Corruption] = {"]
    for item in items:
        values = f"{py_string(item.rule)}, {py_string(item.field)}, 0x{item.clear:X}, 0x{item.set:X}"
        module.append(f"    {py_string(item.name)}: Corruption({values}),")
    module += ["}", '"""Corruptions by name."""']
    page: list[str] = []
    for part in parts:
        page += [f"## {part[:1].upper() + part[1:]}", ""]
        page += md_table(
            ["rule", "fields", "expected", "section"],
            [[rule.name, ", ".join(rule.fields), rule.expected, rule.section] for rule in rules if rule.part == part],
        )
    page += ["## Corruptions", "", "Values of the option `corrupt`, each for one field before the first entry.", ""]
    page += md_table(
        ["name", "field", "bits cleared", "bits set", "rule"],
        [[item.name, item.field, f"{item.clear:#x}", f"{item.set:#x}", item.rule] for item in items],
    )
    return {
        head.header: c_file(head, head.header, body),
        f"{title.lower()}_checks.py": py_file(head, module, ["from typing import NamedTuple"]),
        f"{title}Checks.md": md_file(head, page),
    }


def svm(spec: Spec) -> Files:
    """Rules of VMRUN."""
    return _files("Svm", *_svm_table(spec), list_fields=True)


def vmx(spec: Spec) -> Files:
    """Rules of a VM entry."""
    return _files("Vmx", *_vmx_table(spec), list_fields=False)

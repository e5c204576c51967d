# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The tables of HvPkg's own interfaces: each function turns one into a header, a Python module and a reference page."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from hvtools.gen import checks, emit
from hvtools.gen.emit import (
    aligned,
    c_defines,
    c_enum,
    c_file,
    c_group,
    c_struct,
    c_xmacro,
    camel,
    md_file,
    md_group,
    md_struct,
    md_table,
    py_dict,
    py_file,
    py_string,
)
from hvtools.gen.spec import Files, Spec, defined_once, group_constants, py_groups, py_struct_codes
from hvtools.gen.table import SCALARS, Constant, Row, check_name, read_groups, read_structs, refuse_duplicates

CHOICES_OF: dict[str, Callable[[Spec], list[str]]] = {
    "log.levels": lambda spec: spec.levels,
    "corruptions": checks.corruptions,
}
"""Choices of options that come from other tables."""
FIELD_TYPES = {"u": "%u", "x": "%x", "s": "%s"}


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
    body += [
        "/// Entries in a row of exit counters; a power of two, so that a row is addressed by a shift.",
        f"#define HV_EXIT_KIND_MAX  {limit}",
    ]
    body += ["", 'STATIC_ASSERT (HvExitKindCount <= HV_EXIT_KIND_MAX, "HvExitKindCount");', ""]
    body += c_xmacro(
        "HV_EXIT_KIND_LIST",
        "X (kind, name), in the order of the enum.",
        [[enum, f'"{name}"'] for enum, name, _ in named],
    )
    names = ["KINDS: tuple[str, ...] = (", *(f"    {py_string(name)}," for name, _ in spec.kinds), ")"]
    names += [
        '"""Names of the exit kinds, by index."""',
        "",
        f"KIND_MAX = {limit}",
        '"""Entries in a row of exit counters."""',
    ]
    page = md_table(
        ["index", "name", "meaning"], [[str(index), name, text] for index, (name, text) in enumerate(spec.kinds)]
    )
    return {
        head.header: c_file(head, head.header, body),
        "exits.py": py_file(head, names),
        "ExitKinds.md": md_file(head, page),
    }


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
    body = c_enum(
        "HV_LOG_LEVEL", "Levels, most severe first.", [(f"HvLog{camel(level)}", f'"{level}"') for level in levels]
    )
    body += c_xmacro(
        "HV_LOG_LEVEL_LIST", "X (level, name).", [[f"HvLog{camel(level)}", f'"{level}"'] for level in levels]
    )
    body += c_enum("HV_LOG_EVENT", "Events.", [*enums, ("HvLogEventCount", "number of events")])
    body += c_xmacro(
        "HV_LOG_EVENT_LIST",
        "X (event, level, name, format): %u is an UINT64 in decimal, %x an UINT64 in hex with 0x, %s an ASCII string.",
        entries,
    )
    body += c_xmacro(
        "HV_LOG_RING_ONLY_LIST", "X (event, name): events that go to the ring only, never to a slow device.", ring
    )
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
            if source and source not in CHOICES_OF:
                item.fail(f"choices_of '{source}' is none of {', '.join(CHOICES_OF)}")
            choices = CHOICES_OF[source](spec) if source else item.strings("choices")
            refuse_duplicates(item, choices, "choice")
            if default not in choices:
                item.fail(f"default '{default}' is none of the choices")
            high = len(choices) - 1
            start = str(choices.index(default))
            values += [
                [f"#define HV_OPTION_{name.upper()}_{choice.upper().replace('-', '_')}", str(index)]
                for index, choice in enumerate(choices)
            ]
            allowed = item.text("shown", "|".join(choices))
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
            allowed = ("none or " if none else "") + f"{low} to {high}"
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
        python += ["        choices=(", *(f"            {py_string(choice)}," for choice in choices), "        ),"]
        python += [
            f"        minimum={low},",
            f"        maximum={high},",
            f"        none={none},",
            f"        default={py_string(default)},",
        ]
        python += [
            f"        shown={py_string(allowed)},",
            f"        debug_only={debug_only},",
            f"        text={py_string(text)},",
            "    ),",
        ]
        rows.append([name, allowed, default, "DEBUG" if debug_only else "all", text])
    table.done()
    refuse_duplicates(table, [entry[1] for entry in entries], "option")
    node = ", ".join(f"0x{byte:02x}" for byte in guid.bytes[8:])
    body = c_enum("HV_OPTION", "Options.", [*enums, ("HvOptionCount", "number of options")])
    body += c_enum(
        "HV_OPTION_TYPE",
        "Types of options.",
        [("HvOptionChoice", "one of a list; the value is its index"), ("HvOptionNumber", "decimal number")],
    )
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
        '    """An option: a choice, or a number from minimum to maximum, or none where allowed; shown: the values."""',
        "",
        *(
            f"    {line}"
            for line in ("kind: str", "choices: tuple[str, ...]", "minimum: int", "maximum: int", "none: bool")
        ),
        *(f"    {line}" for line in ("default: str", "shown: str", "debug_only: bool", "text: str")),
        "",
        "",
        "OPTIONS: dict[str, Option] = {",
        *python,
        "}",
        '"""Options by name."""',
    ]
    page = [
        f"UEFI variable `{variable}`, vendor GUID `{guid}`: ASCII text `name=value name=value`, at most {limit} bytes.",
        "",
    ]
    page += md_table(["option", "values", "default", "builds", "meaning"], rows)
    return {
        head.header: c_file(head, head.header, body),
        "options.py": py_file(head, module, ["from typing import NamedTuple"]),
        "Options.md": md_file(head, page),
    }


def _signature(table: Row) -> tuple[str, str]:
    """Read the macro and the 8 characters by which something is found in memory."""
    mark = table.row("signature")
    name, text = mark.name("name", "upper"), mark.text("text")
    if len(text) != 8 or not text.isascii():
        mark.fail("'text' must be 8 ASCII characters")
    mark.done()
    return name, text


def _signature_define(name: str, text: str) -> str:
    return f'#define {name}  {emit.hex_width(int.from_bytes(text.encode(), "little"), 64)}  ///< "{text}"'


def trace(spec: Spec) -> Files:
    """The trace of exits."""
    table, head, row = spec.load("trace.toml")
    row.section()
    row.done()
    structs = read_structs(table)
    name, text = _signature(table)
    table.done()
    body = [line for struct in structs for line in c_struct(struct)] + [_signature_define(name, text)]
    module = [
        f"SIGNATURE = {text.encode()!r}".replace("'", '"'),
        '"""First 8 bytes of a ring."""',
        "",
        *py_struct_codes(structs),
    ]
    return {
        head.header: c_file(head, head.header, body),
        "trace.py": py_file(head, module),
        "Trace.md": md_file(head, [line for struct in structs for line in md_struct(struct)]),
    }


def status(spec: Spec) -> Files:
    """The status pages."""
    table, head, row = spec.load("status.toml")
    row.section()
    row.done()
    structs = read_structs(table)
    groups = read_groups(table)
    mark_name, mark_text = _signature(table)
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
    body = [*c_struct(header), _signature_define(mark_name, mark_text), ""]
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
        *py_struct_codes(structs),
        *py_groups(groups),
        "ARRAYS: tuple[tuple[str, str, int], ...] = (",
        *(
            f"    ({py_string(name)}, {py_string(emit.STRUCT_CODES[element])}, {per_cpu}),"
            for name, element, per_cpu, _ in arrays
        ),
        ")",
        '"""Arrays behind the header, one after the other: (name, code of the struct module, elements a processor)."""',
    ]
    page = md_struct(header)
    page += [f"`Signature` is the text `{mark_text}`. Behind the header, one after the other:", ""]
    page += md_table(
        ["array", "type", "meaning"],
        [
            [name, f"{element}[CpuCount]" + (f"[{per_cpu}]" if per_cpu > 1 else ""), text]
            for name, element, per_cpu, text in arrays
        ],
    )
    page += [line for group in groups for line in md_group(group)]
    return {
        head.header: c_file(head, head.header, body),
        "status.py": py_file(head, module),
        "Status.md": md_file(head, page),
    }


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
    constants = [
        Constant(f"HV_HC_{name.upper().replace('-', '_')}", magic | number, text, "HvPkg")
        for name, number, text, _ in calls
    ]
    defined_once(table, [*constants, *group_constants(groups)])
    body = ["//", "// RAX on VMCALL or VMMCALL at CPL 0: the magic and the number.", "//"]
    body += [*c_defines([Constant("HV_HC_MAGIC", magic, "upper half of a call", "HvPkg"), *constants], 64), ""]
    for group in groups:
        body += c_group(group)
    body += c_xmacro(
        "HV_HYPERCALL_LIST",
        "X (call, name).",
        [[constant.name, f'"{name}"'] for constant, (name, *_) in zip(constants, calls, strict=True)],
    )
    module = py_dict(
        "CALLS",
        "dict[str, int]",
        [(py_string(name), f"0x{magic | number:X}") for name, number, *_ in calls],
        "RAX of each call, by name.",
    )
    page = ["`VMCALL` or `VMMCALL` with RAX as below. At another CPL than 0, or without the magic: #UD.", ""]
    page += md_table(
        ["RAX", "name", "does", "returns in RAX"],
        [[f"0x{magic | number:08X}", name, text, back] for name, number, text, back in calls],
    )
    page += [line for group in groups for line in md_group(group)]
    return {
        head.header: c_file(head, head.header, body, include_base=False),
        "hypercall.py": py_file(head, [*module, *py_groups(groups)]),
        "Hypercalls.md": md_file(head, page),
    }

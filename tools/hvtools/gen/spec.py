# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the functions of the tables share: the folder with what several tables need, and pieces of output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hvtools.gen import emit
from hvtools.gen.emit import camel, py_constants, py_dict, py_string
from hvtools.gen.table import (
    SCALARS,
    Constant,
    Group,
    Head,
    Row,
    Struct,
    load,
    read_groups,
    read_head,
    refuse_duplicates,
)

Files = dict[str, str]
"""Generated texts by file name; the end of the name says in which folder it belongs."""


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

    @cached_property
    def intercepts(self) -> dict[tuple[int, int], str]:
        """C names of the intercepts of vmcb.toml by (word, bit), where one bit is one intercept."""
        table, _, _ = self.load("vmcb.toml")
        return {
            (int(group.prefix[-1]), low): f"{group.prefix}_{name}"
            for group in read_groups(table)
            if group.prefix.startswith("HV_SVM_INTERCEPT")
            for name, low, high, _ in group.fields
            if low == high
        }

    def kind(self, row: Row, key: str) -> str:
        """Return the C name of the exit kind that a row names."""
        name = row.text(key)
        if name not in (kind for kind, _ in self.kinds):
            row.fail(f"kind '{name}' is not in exits.toml")
        return f"HvExit{camel(name)}"


def defined_once(row: Row, constants: list[Constant]) -> None:
    """Refuse a name that two constants of a table have."""
    refuse_duplicates(row, [constant.name for constant in constants], "name")


def group_constants(groups: list[Group]) -> list[Constant]:
    """Return the constants of all groups."""
    return [constant for group in groups for constant in group.constants]


def py_groups(groups: list[Group], extra: list[Constant] | None = None) -> list[str]:
    """Return CONSTANTS and WORDS of a table with groups."""
    body = py_dict(
        "CONSTANTS",
        "dict[str, int]",
        py_constants([*(extra or []), *group_constants(groups)]),
        "Values by their name in C.",
    )
    body += ["WORDS: dict[str, tuple[tuple[str, int, int], ...]] = {"]
    for group in groups:
        if group.kind == "bits":
            body.append(f"    {py_string(group.prefix)}: (")
            body += [f"        ({py_string(name)}, {low}, {high})," for name, low, high, _ in group.fields]
            body.append("    ),")
    return [*body, "}", '"""Fields of a word, by the prefix of its constants: (name, lowest bit, highest bit)."""', ""]


def py_struct_codes(structs: list[Struct]) -> list[str]:
    """Return LAYOUT: each scalar of each structure, structures within opened up."""
    by_name = {struct.name: struct for struct in structs}
    body = ["LAYOUT: dict[str, tuple[tuple[str, int, str, int], ...]] = {"]

    def walk(struct: Struct, prefix: str, at: int) -> None:
        for field in struct.fields:
            if field.type in SCALARS:
                code = emit.STRUCT_CODES[field.type]
                body.append(f'        ("{prefix}{field.name}", 0x{at + field.offset:X}, "{code}", {field.count}),')
            else:
                walk(by_name[field.type], f"{prefix}{field.name}.", at + field.offset)

    for struct in structs:
        body.append(f"    {py_string(struct.name)}: (")
        walk(struct, "", 0)
        body.append("    ),")
    body += ["}", '"""Scalars of each structure: (path, offset in bytes, code of the struct module, count)."""', ""]
    return body + py_dict(
        "SIZES",
        "dict[str, int]",
        [(py_string(struct.name), f"0x{struct.size:X}") for struct in structs],
        "Sizes in bytes.",
    )

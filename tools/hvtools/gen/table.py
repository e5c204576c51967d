# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Reading the tables: TOML in, checked rows out; every complaint names the file and the row."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from hvtools.errors import UsageError

SCALARS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
"""Scalar field types and their sizes in bytes."""

_CAMEL = re.compile(r"[A-Z][A-Za-z0-9]*\Z")
_UPPER = re.compile(r"[A-Z0-9][A-Z0-9_]*\Z")
_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")
_KINDS: dict[type, str] = {str: "text", int: "a number", bool: "true or false", list: "a list", dict: "a table"}

T = TypeVar("T")


class TableError(UsageError):
    """A table that cannot be used: the message is one line with file, row and reason."""


class Row:
    """One TOML table with checked access; `done` refuses keys that nobody asked for."""

    def __init__(self, data: object, where: str) -> None:
        """Wrap `data`; `where` is the place for messages, such as ``vmcb.toml: group HV_NPF``."""
        if not isinstance(data, dict):
            raise TableError(f"{where}: must be a table, not {data!r}")
        self.data: dict[str, object] = data
        self.where = where
        self._used: set[str] = set()

    def fail(self, reason: str) -> NoReturn:
        """Raise the one-line error for this row."""
        raise TableError(f"{self.where}: {reason}")

    def has(self, key: str) -> bool:
        """Return whether the row has the key."""
        return key in self.data

    def _get(self, key: str, kind: type[T]) -> T:
        self._used.add(key)
        if key not in self.data:
            self.fail(f"'{key}' is missing")
        value = self.data[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(f"'{key}' must be {_KINDS[kind]}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a non-empty string without a line break."""
        if default is not None and key not in self.data:
            return default
        value = self._get(key, str)
        if not value or not value.isprintable() or "*/" in value:
            self.fail(f"'{key}' must be one line of text")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """Return an integer."""
        if default is not None and key not in self.data:
            return default
        return self._get(key, int)

    def flag(self, key: str) -> bool:
        """Return a boolean, false when absent."""
        return key in self.data and self._get(key, bool)

    def strings(self, key: str) -> list[str]:
        """Return a list of strings."""
        value = self._get(key, list)
        if not all(isinstance(item, str) and item for item in value):
            self.fail(f"'{key}' must be a list of strings")
        return [str(item) for item in value]

    def pair(self, key: str) -> tuple[int, int]:
        """Return a list of two integers."""
        value = self._get(key, list)
        if len(value) != 2 or not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            self.fail(f"'{key}' must be [lowest, highest]")
        return value[0], value[1]

    def rows(self, key: str, optional: bool = False) -> list[Row]:
        """Return a list of rows."""
        value = [] if optional and key not in self.data else self._get(key, list)
        return [Row(item, f"{self.where}: {_label(key, number, item)}") for number, item in enumerate(value)]

    def row(self, key: str) -> Row:
        """Return one nested row."""
        return Row(self._get(key, dict), f"{self.where}: {key}")

    def named(self, key: str) -> list[tuple[str, Row]]:
        """Return the entries of a nested table as (name, row), in file order."""
        value = self._get(key, dict)
        return [(name, Row(item, f"{self.where}: {key} {name}")) for name, item in value.items()]

    def name(self, key: str, style: str) -> str:
        """Return a name in one of the styles camel, upper, kebab, snake."""
        value = self.text(key)
        check_name(self, value, style)
        return value

    def section(self, outer: str | None = None) -> str:
        """Return the section that the row cites, or the one of the rows around it."""
        value = self.text("section", outer or "")
        if not value:
            self.fail("'section' is missing: every row says where it comes from")
        return value

    def done(self) -> None:
        """Refuse the keys that were not read."""
        unknown = sorted(set(self.data) - self._used)
        if unknown:
            self.fail(f"unknown key '{unknown[0]}'")


def check_name(row: Row, value: str, style: str) -> None:
    """Refuse a name that is not in the style (camel, upper, kebab, snake)."""
    pattern = {"camel": _CAMEL, "upper": _UPPER, "kebab": _KEBAB, "snake": _SNAKE}[style]
    if not pattern.match(value):
        row.fail(f"'{value}' is not a {style} name")


def _label(key: str, number: int, item: object) -> str:
    name = item.get("name", item.get("prefix")) if isinstance(item, dict) else None
    return f"{key} {name}" if name else f"{key} #{number + 1}"


def load(path: Path) -> Row:
    """Read one TOML file.

    Raises:
        TableError: If the file is absent or not TOML.
    """
    try:
        with path.open("rb") as stream:
            return Row(tomllib.load(stream), path.name)
    except OSError as error:
        raise TableError(f"{path.name}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TableError(f"{path.name}: not TOML: {error}") from error


@dataclass(frozen=True)
class Head:
    """The head of a table."""

    file: str
    title: str
    source: str
    header: str


def read_head(table: Row, file: str) -> tuple[Head, Row]:
    """Read ``[table]``; the row is returned for the keys that only one kind of table has."""
    row = table.row("table")
    head = Head(file=file, title=row.text("title"), source=row.text("source"), header=row.text("header"))
    return head, row


# ---------------------------------------------------------------------------------------------------------------
# Groups of constants


@dataclass(frozen=True)
class Constant:
    """One ``#define``: full name, value and what it is for."""

    name: str
    value: int
    text: str
    section: str


@dataclass(frozen=True)
class Group:
    """Constants under one prefix; `width` is that of the register or field in bits."""

    prefix: str
    kind: str
    width: int
    text: str
    section: str
    constants: tuple[Constant, ...]
    fields: tuple[tuple[str, int, int, str], ...]
    """Fields of a ``bits`` group: (name, lowest bit, highest bit, text)."""


def read_bit_range(row: Row, width: int) -> tuple[int, int]:
    """Read ``bit = n`` or ``bits = [low, high]``."""
    if row.has("bit") == row.has("bits"):
        row.fail("needs either 'bit' or 'bits'")
    if row.has("bit"):
        low = high = row.number("bit")
    else:
        low, high = row.pair("bits")
    if not 0 <= low <= high < width:
        row.fail(f"bits {low}..{high} do not fit in {width} bits")
    return low, high


def bits_constants(row: Row, full: str, low: int, high: int, text: str, section: str) -> list[Constant]:
    """Return the mask of a field, and for a field of more than one bit its shift and its named values."""
    mask = ((1 << (high - low + 1)) - 1) << low
    if row.has("bit"):
        return [Constant(full, mask, text, section)]
    constants = [
        Constant(f"{full}_MASK", mask, text, section),
        Constant(f"{full}_SHIFT", low, f"{text}: lowest bit", section),
    ]
    if row.has("values"):
        values = row.row("values")
        for name in values.data:
            check_name(values, name, "upper")
            value = values.number(name)
            if value << low & ~mask:
                values.fail(f"{name} = {value} does not fit in bits {low}..{high}")
            constants.append(Constant(f"{full}_{name}", value << low, f"{text}: {name}, in place", section))
    return constants


def read_group(row: Row) -> Group:
    """Read one ``[[group]]``: kind ``values`` or ``bits``."""
    prefix = row.name("prefix", "upper")
    kind = row.text("kind")
    width = row.number("width")
    section = row.section()
    text = row.text("text")
    if kind not in ("values", "bits"):
        row.fail(f"kind '{kind}' is neither values nor bits")
    if width not in (8, 16, 32, 64):
        row.fail(f"width {width} is not 8, 16, 32 or 64")
    constants: list[Constant] = []
    fields: list[tuple[str, int, int, str]] = []
    taken: dict[int, str] = {}
    rows = row.rows("rows")
    if not rows:
        row.fail("has no rows")
    for item in rows:
        name = item.name("name", "upper")
        item_text = item.text("text")
        item_section = item.section(section)
        if kind == "values":
            value = item.number("value")
            if not 0 <= value < 1 << width:
                item.fail(f"value {value:#x} does not fit in {width} bits")
            constants.append(Constant(f"{prefix}_{name}", value, item_text, item_section))
        else:
            low, high = read_bit_range(item, width)
            for bit in range(low, high + 1):
                if bit in taken:
                    item.fail(f"overlaps {taken[bit]} in bit {bit}")
                taken[bit] = name
            fields.append((name, low, high, item_text))
            constants += bits_constants(item, f"{prefix}_{name}", low, high, item_text, item_section)
        item.done()
    row.done()
    return Group(prefix, kind, width, text, section, tuple(constants), tuple(fields))


def read_groups(table: Row) -> list[Group]:
    """Read all ``[[group]]`` of a table."""
    groups = [read_group(row) for row in table.rows("group", optional=True)]
    refuse_duplicates(table, [group.prefix for group in groups], "group")
    return groups


def refuse_duplicates(row: Row, names: list[str], what: str) -> None:
    """Refuse a name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            row.fail(f"{what} {name} occurs twice")
        seen.add(name)


# ---------------------------------------------------------------------------------------------------------------
# Structures


@dataclass(frozen=True)
class Field:
    """A field of a structure; offset and size in bytes, size of the whole array for `count` > 1."""

    name: str
    offset: int
    type: str
    count: int
    size: int
    text: str
    section: str


@dataclass(frozen=True)
class Struct:
    """A packed structure; `base` is where its macros count from, `macro` their prefix (empty: no macros)."""

    name: str
    size: int
    base: int
    macro: str
    text: str
    section: str
    fields: tuple[Field, ...]


def read_structs(table: Row) -> list[Struct]:
    """Read all ``[[struct]]`` of a table; a structure may use those before it as field types."""
    structs: list[Struct] = []
    for row in table.rows("struct", optional=True):
        sizes = SCALARS | {struct.name: struct.size for struct in structs}
        name = row.name("name", "upper")
        size = row.number("size")
        section = row.section()
        fields: list[Field] = []
        end = 0
        for item in row.rows("fields"):
            kind = item.text("type")
            if kind not in sizes:
                item.fail(f"type '{kind}' is unknown")
            count = item.number("count", 1)
            field = Field(
                name=item.name("name", "camel"),
                offset=item.number("offset"),
                type=kind,
                count=count,
                size=sizes[kind] * count,
                text=item.text("text"),
                section=item.section(section),
            )
            item.done()
            if count < 1:
                item.fail(f"count {count} is not positive")
            if field.offset < end:
                item.fail(f"offset {field.offset:#x} overlaps {fields[-1].name if fields else 'the start'}")
            end = field.offset + field.size
            if end > size:
                item.fail(f"ends at {end:#x}, past the size {size:#x}")
            fields.append(field)
        refuse_duplicates(row, [field.name for field in fields], "field")
        structs.append(
            Struct(
                name=name,
                size=size,
                base=row.number("base", 0),
                macro=row.text("macro", ""),
                text=row.text("text"),
                section=section,
                fields=tuple(fields),
            )
        )
        row.done()
    refuse_duplicates(table, [struct.name for struct in structs], "struct")
    return structs

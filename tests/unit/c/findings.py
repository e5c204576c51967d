# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the tests of both consistency checks share."""

from dataclasses import dataclass
from typing import Any, Protocol

from tests.unit.c.host import HostLibrary


class Rule(Protocol):
    """A row of a table of rules."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def section(self) -> str: ...

    @property
    def expected(self) -> str: ...


@dataclass(frozen=True)
class Finding:
    """One rule that does not hold."""

    rule: str
    field: str
    value: int


def read_findings(hv: HostLibrary, array: Any, rules: dict[str, Any]) -> list[Finding]:  # noqa: ANN401
    """The findings in an array, each compared with its row of the table."""
    result = []
    for item in array:
        name, section, field, expected = (
            hv.ffi.string(text).decode() for text in (item.Name, item.Section, item.FieldName, item.Expected)
        )
        rule: Rule = rules[name]
        assert list(rules)[item.Rule] == name
        assert (section, expected) == (rule.section, rule.expected)
        assert field in rule.fields, f"{name} blames {field}"
        result.append(Finding(name, field, item.Value))
    return result

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Reads what HvPkg's sources say about their functions: which life each may be called in."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "HvPkg"

_TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|^[ \t]*#(?:\\\n|[^\n])*', re.S | re.M)
_CONTEXT = re.compile(r"@par Context: (\w+)\s*$", re.M)
_NO_FUNCTION = ("typedef", "STATIC_ASSERT", "#")


@dataclass(frozen=True)
class Function:
    """A function as a source declares or defines it."""

    name: str
    file: Path
    line: int
    static: bool
    defined: bool
    block: str | None

    @property
    def context(self) -> str | None:
        """The life it says it belongs to: Boot, Host or Any; None if it says nothing or something else."""
        found = _CONTEXT.findall(self.block or "")
        return found[0] if len(found) == 1 and found[0] in ("Boot", "Host", "Any") else None

    @property
    def place(self) -> str:
        """file:line:function."""
        path = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        return f"{path}:{self.line}:{self.name}"


def _top_level(text: str) -> Iterator[tuple[int, str, bool]]:
    """The declarations and definitions of a C text: (offset, text up to the body, has a body)."""
    start, depth, parens = 0, 0, 0
    for offset, char in enumerate(text):
        if char == "(":
            parens += 1
        elif char == ")":
            parens -= 1
        elif char == "{":
            if depth == 0 and parens == 0:
                yield start, text[start:offset], True
            depth += 1
        elif char == "}":
            depth -= 1
            start = offset + 1 if depth == 0 else start
        elif char == ";" and depth == 0 and parens == 0:
            yield start, text[start:offset], False
            start = offset + 1


def functions(text: str, file: Path) -> list[Function]:
    """All functions that a C text declares or defines."""
    blocks: list[tuple[int, int, str]] = []

    def blank(match: re.Match[str]) -> str:
        if match[0].startswith("/**"):
            blocks.append((match.start(), match.end(), match[0]))
        return re.sub(r"[^\n]", " ", match[0])

    code = _TOKEN.sub(blank, text)
    found = []
    for offset, chunk, defined in _top_level(code):
        start = offset + len(chunk) - len(chunk.lstrip())
        words = chunk.strip()
        match = re.match(r"[\w\s*]*?\b(\w+)\s*\(", words)
        if (
            match is None
            or words.startswith(_NO_FUNCTION)
            or re.match(r"(STATIC\s+)?(CONST\s+)?(struct|union)\b", words)
        ):
            continue
        if "=" in words[: match.end()]:
            continue
        # Only blanks may stand between a block and what it describes.
        block = next(
            (
                b
                for _, end, b in blocks
                if end <= start and not code[end:start].strip() and "\n\n" not in text[end:start]
            ),
            None,
        )
        line = text.count("\n", 0, start + match.start(1)) + 1
        found.append(Function(match[1], file, line, bool(re.match(r"STATIC\b", words)), defined, block))
    return found


def headers() -> list[Path]:
    """The headers whose functions have to say their life: the contracts, and what the parts of a module share."""
    return sorted(path for path in PACKAGE.rglob("*.h") if "Generated" not in path.parts and "Linux" not in path.parts)


def sources() -> list[Path]:
    """The C sources of the image and its applications."""
    return sorted(path for path in PACKAGE.rglob("*.c") if "Linux" not in path.parts)


def missing(header_texts: dict[Path, str], source_texts: dict[Path, str]) -> list[str]:
    """The functions with an external linkage that do not say their life, as file:line:function.

    What a header declares says it there; what no header declares (entry points, constructors) where it is defined.
    """
    declared: set[str] = set()
    silent: list[str] = []
    for path, text in header_texts.items():
        for function in functions(text, path):
            declared.add(function.name)
            if function.context is None:
                silent.append(function.place)
    for path, text in source_texts.items():
        for function in functions(text, path):
            if function.defined and not function.static and function.name not in declared and function.context is None:
                silent.append(function.place)
    return silent


def contexts() -> dict[str, str]:
    """The life of each function that says it, by name."""
    return {
        function.name: function.context
        for path in [*headers(), *sources()]
        for function in functions(path.read_text(), path)
        if function.context is not None
    }

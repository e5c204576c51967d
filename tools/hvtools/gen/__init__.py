# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The generator: tables under ``spec`` become C headers, Python modules and reference pages, all committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hvtools.errors import HvError
from hvtools.gen import checks, hardware, own, proofs
from hvtools.gen.spec import Files, Spec
from hvtools.gen.table import TableError

TABLES: dict[str, Callable[[Spec], Files]] = {
    "vmcb.toml": hardware.vmcb,
    "svm_exit.toml": hardware.svm_exit,
    "vmcs.toml": hardware.vmcs,
    "vmx_exit.toml": hardware.vmx_exit,
    "vmx_controls.toml": hardware.vmx_controls,
    "svm_checks.toml": checks.svm,
    "vmx_checks.toml": checks.vmx,
    "msr.toml": hardware.msr,
    "cpuid.toml": hardware.cpuid,
    "exits.toml": own.exits,
    "log.toml": own.log,
    "options.toml": own.options,
    "status.toml": own.status,
    "trace.toml": own.trace,
    "hypercall.toml": own.hypercall,
    "proofs.toml": proofs.proofs,
}
"""What makes the files of each table."""
ROOT = Path(__file__).resolve().parents[3]
"""Top of the clone."""
SPEC = Path(__file__).resolve().parents[1] / "spec"
"""Folder of the tables."""
FOLDERS = {
    ".h": Path("HvPkg/Include/Generated"),
    ".py": Path("tools/hvtools/generated"),
    ".md": Path("HvPkg/Docs/Reference"),
}
"""Where generated files go, by the end of their names, from the top of the clone."""
KEPT = frozenset({Path("tools/hvtools/generated/__init__.py")})
"""Files in those folders that are written by hand."""


def render(spec: Path = SPEC) -> dict[Path, str]:
    """Return the text of every generated file by its path from the top of the clone.

    Args:
        spec: Folder of the tables.

    Raises:
        TableError: If a table is absent, malformed, or nobody makes anything of it.
    """
    unknown = sorted(path.name for path in spec.glob("*.toml") if path.name not in TABLES)
    if unknown:
        raise TableError(f"{unknown[0]}: no such table is known")
    tables = Spec(spec)
    result: dict[Path, str] = {}
    for make in TABLES.values():
        for name, text in make(tables).items():
            path = FOLDERS[Path(name).suffix] / name
            if path in result:
                raise TableError(f"{name} comes from two tables")
            result[path] = text
    return result


def stale(files: dict[Path, str], root: Path) -> list[Path]:
    """Return the paths that differ from what the tables say: changed, missing, or no longer made."""
    wrong = [path for path, text in files.items() if not _same(root / path, text)]
    for suffix, folder in FOLDERS.items():
        present = {path.relative_to(root) for path in (root / folder).glob(f"*{suffix}")}
        wrong += present - set(files) - KEPT
    return sorted(wrong)


def write(files: dict[Path, str], root: Path) -> list[Path]:
    """Write what is stale and remove what is no longer made; return the paths that changed.

    Raises:
        HvError: If a file cannot be written.
    """
    changed = stale(files, root)
    for path in changed:
        try:
            if path in files:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(files[path], encoding="utf-8")
            else:
                (root / path).unlink()
        except OSError as error:
            raise HvError(f"{path}: {error.strerror or error}") from error
    return changed


def _same(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False

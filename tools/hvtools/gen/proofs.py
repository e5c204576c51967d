# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The page of proofs: what is done at each exit and for each intercepted MSR, and which tests show it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from hvtools.gen.emit import md_file, md_table
from hvtools.gen.spec import Files, Spec
from hvtools.gen.table import Head, Row, load

FILE = "proofs.toml"
_PROOF = re.compile(r"[a-z0-9_/]+/test_[a-z0-9_]+\.py::test_[a-z0-9_]+")


def _proofs(row: Row) -> list[str]:
    proofs = row.strings("proof")
    if not proofs:
        row.fail("has no proof")
    for proof in proofs:
        if not _PROOF.fullmatch(proof):
            row.fail(f"'{proof}' is not of the form folder/test_file.py::test_name")
    return proofs


def _shown(proofs: list[str]) -> str:
    """Give the tests of a row."""
    return "<br>".join(f"`{proof}`" for proof in proofs)


def hardware_exits(spec: Spec) -> dict[str, list[str]]:
    """Give the hardware exits that become each kind, as in `SVM CPUID`."""
    found: dict[str, list[str]] = {}
    for vendor, file in (("SVM", "svm_exit.toml"), ("VMX", "vmx_exit.toml")):
        for row in load(spec.folder / file).rows("exit"):
            for key in ("kind", "kind_if_info1"):
                if row.has(key):
                    found.setdefault(row.text(key), []).append(f"{vendor} {row.text('name')}")
    return found


def intercepted_msrs(spec: Spec) -> dict[str, str]:
    """Give the policy of each MSR that the root does not reach by itself, by its name in msr.toml."""
    found = {}
    for block in load(spec.folder / "msr.toml").rows("set"):
        for row in block.rows("rows"):
            root = row.text("root", "pass")
            vmx = row.text("root-vmx", root)
            if (root, vmx) != ("pass", "pass"):
                found[row.text("name")] = root if vmx == root else f"SVM: {root}, VMX: {vmx}"
    return found


def _kind_rows(spec: Spec, table: Row) -> list[list[str]]:
    rows = dict(table.named("kinds"))
    hardware = hardware_exits(spec)
    result = []
    for kind, _ in spec.kinds:
        row = rows.pop(kind, None)
        if row is None:
            table.fail(f"no proof for the exit kind '{kind}'")
        result.append([kind, ", ".join(hardware.get(kind, [])) or "-", row.text("does"), _shown(_proofs(row))])
        row.done()
    for name, row in rows.items():
        row.fail(f"'{name}' is no exit kind")
    return result


def _msr_rows(spec: Spec, table: Row) -> list[list[str]]:
    left = intercepted_msrs(spec)
    result = []
    for row in table.rows("msr"):
        does, proofs = row.text("does"), _proofs(row)
        for pattern in row.strings("names"):
            names = [name for name in left if fnmatchcase(name, pattern)]
            if not names:
                row.fail(f"'{pattern}' names no intercepted MSR that no row before names")
            result += [[name, left.pop(name), does, _shown(proofs)] for name in names]
        row.done()
    if left:
        table.fail(f"no proof for the intercepted MSR {min(left)}")
    return result


def proofs(spec: Spec) -> Files:
    """The page of proofs."""
    table = load(spec.folder / FILE)
    row = table.row("table")
    head = Head(file=FILE, title=row.text("title"), source=row.text("source"), header="")
    row.section()
    row.done()
    page = [
        "Tests are named below `tests`: `unit` runs the code on the build machine, `boot` on the emulated ones.",
        "",
        "## Exits",
        "",
        *md_table(["kind", "exits of the processor", "what is done", "proof"], _kind_rows(spec, table)),
        "## Intercepted MSRs",
        "",
        *md_table(["MSR", "policy", "what is done", "proof"], _msr_rows(spec, table)),
    ]
    table.done()
    return {"Proofs.md": md_file(head, page)}

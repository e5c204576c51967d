# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The table of proofs: no exit kind and no intercepted MSR without a test, and each test is one that runs."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

from hvtools import gen
from hvtools.gen.table import TableError
from tests.unit.gen_tables import changed

TESTS = Path(__file__).resolve().parents[1]
TABLE = tomllib.loads((gen.SPEC / "proofs.toml").read_text())
PROOFS = sorted({proof for row in (*TABLE["kinds"].values(), *TABLE["msr"]) for proof in row["proof"]})


@cache
def functions_of(file: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a file, by name."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("proof", PROOFS)
def test_each_proof_is_a_test_that_asserts(proof: str) -> None:
    file, _, name = proof.partition("::")
    assert (TESTS / file).is_file(), f"there is no tests/{file}"
    assert name in functions_of(file), f"tests/{file} has no {name}"
    text = ast.unparse(functions_of(file)[name])
    assert "skip" not in text
    checks = ("assert", "must_be_ok")
    assert any(word in text for word in checks), f"{name} asserts nothing"


def test_the_page_has_every_exit_of_both_processors() -> None:
    page = gen.render()[gen.FOLDERS[".md"] / "Proofs.md"]
    for vendor, file in (("SVM", "svm_exit.toml"), ("VMX", "vmx_exit.toml")):
        rows = tomllib.loads((gen.SPEC / file).read_text())["exit"]
        can_happen = [row["name"] for row in rows if "kind" in row]
        assert can_happen and all(f"{vendor} {name}" in page for name in can_happen)


@pytest.mark.parametrize(
    ("table", "old", "new", "said"),
    [
        ("proofs.toml", "[kinds.cpuid]", "[kinds.cpuld]", "no proof for the exit kind 'cpuid'"),
        ("proofs.toml", "[kinds.unknown]", "[kinds.unknown2]", "no proof for the exit kind 'unknown'"),
        ("exits.toml", 'name = "pause"', 'name = "pause2"', "no proof for the exit kind 'pause2'"),
        ("proofs.toml", 'names = ["EFER"]', 'names = ["EFER2"]', "'EFER2' names no intercepted MSR"),
        ("proofs.toml", '"VM_CR", ', "", "no proof for the intercepted MSR VM_CR"),
        ("msr.toml", 'text = "performance counters on"', 'text = "on", root = "deny"', "MSR PERF_GLOBAL_CTRL"),
        ("proofs.toml", '["unit/c/test_core.py::test_apic_base"]', "[]", "has no proof"),
        ("proofs.toml", "test_core.py::test_efer", "test_core.py", "is not of the form"),
    ],
)
def test_a_row_without_a_proof_is_refused(tmp_path: Path, table: str, old: str, new: str, said: str) -> None:
    with pytest.raises(TableError, match=said):
        changed(tmp_path, table, old, new)

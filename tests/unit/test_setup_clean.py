# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv clean`: what it removes, and what it leaves."""

from pathlib import Path

import pytest

from hvtools import build, cache, cli
from hvtools.boot.runs import in_use
from hvtools.cache import Cache


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone after a build, with two Python environments and a source."""
    root = tmp_path / "clone"
    for name in ("Build/HvPkg", "Conf", "HvPkg", ".venv/old", ".venv/now"):
        (root / name).mkdir(parents=True)
    for name in ("old.lock", "now.lock"):
        (root / ".venv" / name).touch()
    (root / "HvPkg" / "a.c").touch()
    monkeypatch.setattr(build, "ROOT", root)
    monkeypatch.setattr("sys.prefix", str(root / ".venv" / "now"))
    return root


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache with something in it."""
    opened = Cache(tmp_path / "cache")
    opened.set_pin("kernel", {})
    monkeypatch.setattr(cache, "default", lambda: opened)
    return opened


def test_clean_keeps_sources_the_environment_and_the_cache(clone: Path, store: Cache) -> None:
    assert cli.run(["clean"]) == 0
    assert sorted(entry.name for entry in clone.iterdir()) == [".hv", ".venv", "HvPkg"]
    assert sorted(entry.name for entry in (clone / ".venv").iterdir()) == ["now", "now.lock"]
    assert (clone / "HvPkg" / "a.c").exists()
    assert store.pin("kernel") == {}
    assert cli.run(["clean"]) == 0


def test_clean_refuses_while_a_boot_runs(clone: Path, store: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    boots = [in_use(clone), in_use(clone)]
    for boot in boots:
        assert cli.run(["clean", "--cache"]) == 1
        assert "a boot of this clone runs" in capsys.readouterr().err
        assert (clone / "Build" / "HvPkg").is_dir() and store.pin("kernel") == {}
        boot.close()
    assert cli.run(["clean"]) == 0
    assert not (clone / "Build").exists()


def test_clean_cache_empties_the_cache(clone: Path, store: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["clean", "--cache"]) == 0
    assert [entry.name for entry in store.root.iterdir()] == ["lock"]
    assert str(store.root) in capsys.readouterr().out


def test_clean_cache_refuses_while_another_run_uses_it(
    clone: Path, store: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Cache(store.root)
    assert cli.run(["clean", "--cache"]) == 1
    assert "in use by another hv" in capsys.readouterr().err
    other.close()
    assert store.pin("kernel") == {}
    assert cli.run(["clean", "--cache"]) == 0

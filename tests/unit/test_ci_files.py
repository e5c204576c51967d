# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The files for CI services know nothing of their own: they run `./hv`, and install what a bare image lacks for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.unit.test_docs import parsed

CI = Path(__file__).resolve().parents[2] / "ci"
ALLOWED = {
    ("apt-get", "update"),
    ("apt-get", "install", "-y", "--no-install-recommends", "ca-certificates", "git"),
    ("rm", "-rf", "/var/lib/apt/lists/*"),
}


def commands(script: str) -> Iterator[list[str]]:
    """The commands of a shell script of the simplest kind."""
    for line in re.split(r"\n|&&|;|\|", script):
        if words := shlex.split(line):
            yield words


def check(scripts: list[str]) -> int:
    """Refuse what is neither `./hv` as the command line has it nor allowed; gives the number of calls of `./hv`."""
    called = 0
    for words in (words for script in scripts for words in commands(script)):
        if words[0] == "./hv":
            parsed(shlex.join(words[1:]))
            called += 1
        else:
            assert tuple(words) in ALLOWED, words
    return called


def test_the_workflow_calls_hv_only() -> None:
    workflow = yaml.safe_load((CI / "github.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert {step["uses"].partition("@")[0] for step in steps if "uses" in step} <= {
        "actions/checkout",
        "actions/cache",
        "actions/upload-artifact",
    }
    assert check([step["run"] for step in steps if "run" in step]) >= 2


def test_the_image_calls_hv_only() -> None:
    lines = re.findall(r"^([A-Z]+) (.*)$", (CI / "Containerfile").read_text(), re.MULTILINE)
    assert check([rest for word, rest in lines if word == "RUN"]) >= 2
    assert {word for word, _ in lines} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    values = dict(lines)
    assert json.loads(values["ENTRYPOINT"]) == ["./hv"]
    parsed(shlex.join(json.loads(values["CMD"])))


@pytest.mark.parametrize("script", ["make", "./hv build && stuart_build", "apt-get install -y gcc", "curl x | sh"])
def test_the_check_knows_others(script: str) -> None:
    with pytest.raises(AssertionError):
        check([script])

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""One report of many boxes: JUnit XML for programs, a table in HTML for people."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

HANG = "hang"
"""Property of a test suite: the box hangs, and how that was seen."""

XML = "report.xml"
HTML = "report.html"


@dataclass(frozen=True)
class Test:
    """One test: its name, what became of it (passed, failed, skipped), seconds, and why."""

    name: str
    outcome: str
    seconds: float
    reason: str


@dataclass
class BoxResult:
    """What one box came to.

    Attributes:
        name: the place.
        folder: name of its folder, beside the reports.
        seconds: from the start of its tests to its release.
        fault: what is wrong with the box itself, empty for nothing.
        tests: those that were run.
        suites: as JUnit has them.
    """

    name: str
    folder: str
    seconds: float
    fault: str
    tests: list[Test] = field(default_factory=list)
    suites: list[ElementTree.Element] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        """Count tests."""
        return sum(test.outcome == outcome for test in self.tests)

    @property
    def ok(self) -> bool:
        """It ran tests, and none failed."""
        return not self.fault and self.count("passed") > 0 and self.count("failed") == 0

    @property
    def state(self) -> str:
        """One word, or what is wrong with it."""
        if self.fault:
            return self.fault
        if not self.tests:
            return "no test was run"
        return "ok" if self.ok else "failed"

    @property
    def line(self) -> str:
        """Everything in one line."""
        counts = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return f"{self.name}: {self.state} ({counts}, {self.seconds:.0f} s)"

    def as_json(self) -> dict[str, Any]:
        """Give it for `--json`."""
        counts = {outcome: self.count(outcome) for outcome in ("passed", "failed", "skipped")}
        own = {"box": self.name, "folder": self.folder, "ok": self.ok, "fault": self.fault}
        return {**own, "seconds": round(self.seconds, 1), **counts}


def _test(case: ElementTree.Element) -> Test:
    outcome, reason = "passed", ""
    for tag, word in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
        if (found := case.find(tag)) is not None:
            outcome, reason = word, " ".join((found.get("message") or "").split())
    return Test(case.get("name", ""), outcome, float(case.get("time", "0")), reason)


def read(name: str, junit: Path, seconds: float, fault: str) -> BoxResult:
    """Read what pytest left of a box.

    Args:
        name: the place.
        junit: its file in the box's folder; it need not be there.
        seconds: how long it took.
        fault: what is known to be wrong.
    """
    result = BoxResult(name, junit.parent.name, seconds, fault)
    if junit.is_file():
        try:
            result.suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
        except ElementTree.ParseError:
            result.fault = fault or "pytest ended while it wrote its report"
    for suite in result.suites:
        suite.set("name", name)
        result.tests += [_test(case) for case in suite.iter("testcase")]
        for found in suite.iter("property"):
            if found.get("name") == HANG:
                result.fault = f"hangs: {found.get('value', '')}"
    return result


def write(folder: Path, results: Sequence[BoxResult], logs: Sequence[str]) -> None:
    """Write both reports.

    Args:
        folder: where they go, and where each box has its folder.
        results: of the boxes.
        logs: names of the files in a box's folder that the table leads to.
    """
    root = ElementTree.Element("testsuites", name="hv lab run")
    for result in results:
        root.extend(result.suites or [ElementTree.Element("testsuite", name=result.name)])
        if result.fault:
            # Whoever counts failures counts the box, too.
            suite = root[-1]
            case = ElementTree.SubElement(suite, "testcase", classname="box", name=result.name)
            ElementTree.SubElement(case, "error", message=result.fault)
            for key in ("tests", "errors"):
                suite.set(key, str(int(suite.get(key, "0")) + 1))
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(folder / XML, encoding="utf-8", xml_declaration=True)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("hvtools.lab", "."), autoescape=True)
    (folder / HTML).write_text(environment.get_template("report.html").render(results=results, logs=logs))

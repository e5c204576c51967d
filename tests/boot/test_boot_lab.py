# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The boot tests on boxes of a lab: emulated ones, behind labgrid's own coordinator and exporter."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from hvtools import build, toolchain
from hvtools.bench.figures import read_report
from hvtools.images.fat import build_volume
from hvtools.lab.demo import Demo
from hvtools.lab.places import connected
from hvtools.machines.console import clean

if TYPE_CHECKING:
    from tests.boot.conftest import Hv

SILENCE = 45.0  # a box that works says something more often, also on a host with other things to do
ONE = "test_the_default_takes_the_largest_pages_that_the_processor_reports"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Three boxes, of which the second one hangs."""
    with Demo(tmp_path_factory.mktemp("lab"), ["box1", "box2", "box3"], frozenset({"box2"}), SILENCE) as demo:
        yield demo


def states(lab: Demo) -> dict[str, tuple[str | None, str | None]]:
    """Who has each place, and who reserved it."""

    async def asked() -> dict[str, tuple[str | None, str | None]]:
        async with connected(lab.address) as session:
            return {name: (place.acquired, place.reservation) for name, place in session.places.items()}

    return asyncio.run(asked())


FREE: dict[str, Any] = {name: (None, None) for name in ("box1", "box2", "box3")}


def labgrid(lab: Demo, *arguments: str, **environment: str) -> str:
    """Call labgrid-client."""
    command = [sys.executable, "-m", "labgrid.remote.client", "-x", lab.address, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(lab: Demo, hv: Hv, *arguments: str) -> subprocess.CompletedProcess[str]:
    return hv("lab", "run", "--env", str(lab.environment), "--coordinator", lab.address, *arguments)


def test_of_three_boxes_one_hangs_and_the_others_finish(lab: Demo, hv: Hv) -> None:
    lab.rack.switched.clear()
    done = run(lab, hv, "--tag", "board=qemu", "--keep", "out", "--json", "out.json", "--", "-k", ONE)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "hv: error: 1 of 3 boxes did not pass: box2 (see the report)"
    boxes = {box["box"]: box for box in json.loads((hv.folder / "out.json").read_text())["boxes"]}
    for name in ("box1", "box3"):
        assert boxes[name]["ok"] and boxes[name]["passed"] == 1, done.stderr
        log = hv.folder / "out" / name / "boots" / "000" / "hypervisor.log"
        assert "hv: " in log.read_text(), "the log came over the second port"
    assert boxes["box2"]["fault"] == f"hangs: nothing came from its serial port for {SILENCE:.0f} s"
    # Everybody's power is cut, the hanging one's too, and every place is free again.
    assert not any(box.is_on for box in lab.rack.boxes.values())
    for name in lab.rack.boxes:
        assert [line for line in lab.rack.switched if line.startswith(name)] == [
            f"{name} off",
            f"{name} on",
            f"{name} off",
        ]
    assert states(lab) == FREE
    suites = {suite.get("name"): suite for suite in ElementTree.parse(hv.folder / "out" / "report.xml").getroot()}
    assert suites.keys() == set(lab.rack.boxes)
    assert [suites[name].get("errors") for name in sorted(lab.rack.boxes)] == ["0", "1", "0"]
    assert "2 of 3 boxes passed" in (hv.folder / "out" / "report.html").read_text()


def test_a_busy_box_is_one_line_and_nothing_changes(lab: Demo, hv: Hv) -> None:
    labgrid(lab, "-p", "box3", "acquire", LG_USERNAME="somebody", LG_HOSTNAME="elsewhere")
    before = list(lab.rack.switched)
    try:
        done = run(lab, hv, "--place", "box1", "--place", "box3")
        assert done.returncode == 1
        assert done.stderr.splitlines() == ["hv: error: box3 is busy, elsewhere/somebody has it: choose another"]
        assert states(lab) == {**FREE, "box3": ("elsewhere/somebody", None)}
        done = run(lab, hv, "--place", "box9")
        assert done.returncode == 2
        assert done.stderr.splitlines() == ["hv: error: the coordinator has no place 'box9': they are box1, box2, box3"]
        assert lab.rack.switched == before
    finally:
        labgrid(lab, "-p", "box3", "release", "--kick")


def test_ctrl_c_ends_a_lab_and_leaves_nothing(lab: Demo, hv: Hv) -> None:
    """It runs beside another one."""
    with hv.start("lab", "demo", "--boxes", "1") as demo:
        assert demo.stdout is not None and demo.stderr is not None
        said = demo.stdout.readline()
        match = re.fullmatch(r"LG_COORDINATOR=(\S+) LG_ENV=(\S+)\n", said)
        assert match is not None and match[1] != lab.address and Path(match[2]).is_file()
        family = children(demo.pid)
        assert len(family) == 2, "coordinator and exporter"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
        assert demo.stderr.read().splitlines()[-1] == "hv: error: interrupted"
    assert not any(Path(f"/proc/{pid}").exists() for pid in family)
    assert list(hv.temporary.iterdir()) == []


def children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


@pytest.mark.slow
def test_a_box_over_its_limit_is_switched_off_and_released(lab: Demo, hv: Hv) -> None:
    done = run(lab, hv, "--place", "box2", "--limit", "15", "--json", "out.json", "--", "-k", ONE)
    assert done.returncode == 1
    (box,) = json.loads((hv.folder / "out.json").read_text())["boxes"]
    assert box["fault"] == "the limit of 15 s is over"
    assert lab.rack.switched[-1] == "box2 off" and not lab.rack.boxes["box2"].is_on
    assert states(lab) == FREE


@pytest.mark.slow
def test_ctrl_c_of_a_run_switches_off_and_releases(lab: Demo, hv: Hv) -> None:
    arguments = ["--env", str(lab.environment), "--coordinator", lab.address, "--place", "box2", "--", "-k", ONE]
    lab.rack.switched.clear()
    with hv.start("lab", "run", *arguments) as running:
        while "box2 on" not in lab.rack.switched:
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and said.splitlines()[-1] == "hv: error: interrupted"
    assert lab.rack.switched[-1] == "box2 off" and not lab.rack.boxes["box2"].is_on
    assert states(lab) == FREE


@pytest.fixture
def box1(lab: Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Demo]:
    """The first box is ours."""
    labgrid(lab, "-p", "box1", "acquire")
    monkeypatch.setenv("LG_PLACE", "box1")
    monkeypatch.setenv("LG_COORDINATOR", lab.address)
    yield lab
    labgrid(lab, "-p", "box1", "release")


@pytest.mark.slow
def test_the_tests_of_one_box_by_hv_test(box1: Demo, hv: Hv) -> None:
    selected = "command_line_boots or application_that_returns or any_number_of or refused or two_boots"
    arguments = ("test", "--lab", str(box1.environment), "--json", "out.json", "-k", selected)
    done = hv(*arguments)
    assert done.returncode == 0, done.stdout
    counts = json.loads((hv.folder / "out.json").read_text())["pytest"]
    assert counts["failures"] == counts["errors"] == 0 and counts["skipped"] > 3, done.stdout
    assert counts["tests"] - counts["skipped"] >= 3, done.stdout
    assert "1 processors are asked for, and this box has 4" in done.stdout
    assert "the box has no ticks among its features" in done.stdout


def changed(lab: Demo, folder: Path, old: str, new: str) -> Path:
    """The environment file with something put before a line."""
    text = lab.environment.read_text()
    assert text.count(old) == 1
    path = folder / "box.yaml"
    path.write_text(text.replace(old, new + old))
    return path


@pytest.mark.slow
def test_a_shell_on_the_medium_finds_its_script_whatever_else_is_in_the_box(box1: Demo, hv: Hv) -> None:
    shell = build.ovmf_image().parents[1] / "X64" / "Shell.efi"
    environment = changed(box1, hv.folder, "        log: log", f"        shell: {shell}\n")
    other = hv.folder / "other.img"
    build_volume(other, {PurePosixPath("startup.nsh"): b"@echo -off\r\necho not mine\r\nreset -s\r\n"})
    box = box1.rack.boxes["box1"]
    drive = f"if=none,id=inside,format=raw,file={other}"
    box.inside = ["-drive", drive, "-device", "virtio-blk-pci,drive=inside"]
    box.usb = False  # the firmware connects both disks only where no boot order is given
    try:
        done = hv("boot", "--on", f"lab:{environment}", "--keep", "logs")
    finally:
        box.inside, box.usb = [], True
    assert done.returncode == 0, done.stderr
    console = clean((hv.folder / "logs" / "console.log").read_text())
    assert re.search(r"FS1: +Alias\(s\):\S*;fs0:", console), "the second file system became the first"
    assert "not mine" not in console


@pytest.mark.slow
def test_the_chip_of_a_box_is_written_and_boots(box1: Demo, hv: Hv) -> None:
    toolchain.require("flash")
    box = box1.rack.boxes["box1"]
    box.chip.write_bytes(b"\xff" * (4 << 20))
    resource = f'    - Flashrom: {{programmer: "dummy:emulate=SST25VF032B,image={box.chip}"}}\n'
    environment = changed(box1, hv.folder, "    drivers:", resource)
    driver = "    - FlashromDriver: {}\n    - HvStrategy"
    environment.write_text(environment.read_text().replace("    - HvStrategy", driver))
    try:
        done = hv("boot", "--on", f"lab:{environment}", "--firmware", "ours", "--json", "out.json")
        assert done.returncode == 0, done.stderr
        assert json.loads((hv.folder / "out.json").read_text())["virtualised"] == [0, 1, 2, 3]
        assert box.chip.read_bytes() == build.ovmf_image().read_bytes()
    finally:
        box.chip.unlink()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_of_a_box_is_in_cycles(box1: Demo, hv: Hv) -> None:
    name = f"lab:{box1.environment}"
    with hv.start("bench", "--quick", "--on", name, "--json", "out.json", "--plot", "plots") as running:
        _, said = running.communicate()
    assert running.returncode == 0, said
    figures = {each.name: each for each in read_report(hv.folder / "out.json").figures if each.platform == name}
    assert {each.cpus for each in figures.values()} == {4}, "its own number of processors"
    exits = ("exit.cpuid", "exit.cpuid.linux", "exit.hypercall", "exit.icr.xapic")
    assert all(figures[each].unit == "cycles" and figures[each].value > 0 for each in exits)
    assert figures["boot.exits.total"].value >= figures["boot.exits.cpuid"].value > 0
    assert (hv.folder / "plots" / "exit-cycles.png").stat().st_size > 0


USERS_TEST = """
def test_the_shell_is_under_the_hypervisor(strategy, target):
    strategy.transition("linux")
    shell = target.get_driver("ShellDriver")
    lines = shell.run_check("/hvtools/bin/hvcheck")
    assert sum("signature=HvPkgHvPkgHv" in line for line in lines) == 4, lines
    strategy.transition("off")
"""


@pytest.mark.slow
def test_the_strategy_serves_labgrids_own_plugin(box1: Demo, hv: Hv) -> None:
    environment = hv.folder / "box.yaml"
    bindings = "    - ShellDriver:\n        bindings: {console: console}\n"
    options = "        prompt: '/ # '\n        login_prompt: 'login: '\n        username: root\n"
    environment.write_text(box1.environment.read_text() + bindings + options)
    (hv.folder / "test_mine.py").write_text(USERS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "--lg-env", str(environment), "test_mine.py"]
    done = subprocess.run(command, cwd=hv.folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    assert box1.rack.switched[-1] == "box1 off"

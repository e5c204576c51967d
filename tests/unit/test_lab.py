# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Boxes in a lab: environment files, drivers, serial ports that a test plays, and the report."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest
from labgrid.remote.common import ReservationState

from hvtools import cli
from hvtools.boot.request import BootRequest, BoxError
from hvtools.boot.strategy import BootStrategy, State, StrategyError
from hvtools.errors import HvError, UsageError
from hvtools.lab import places, report
from hvtools.lab import run as runs
from hvtools.lab.machine import LabMachine
from hvtools.lab.places import select
from hvtools.lab.rack import Rack
from hvtools.lab.strategy import HvStrategy
from hvtools.machines.protocols import Cause, MachineError
from hvtools.machines.registry import Box, Platform, platform_named
from hvtools.machines.spec import MachineSpec

ROOT = Path(__file__).resolve().parents[2]

BOX = """
imports: [hvtools.lab.strategy]
targets:
  main:
    features: [svm, hypervisor, smp, linux]
    resources:
    - NetworkSerialPort: {host: 127.0.0.1, port: 1, protocol: raw}
    drivers:
    - ExternalPowerDriver: {cmd_on: "true", cmd_off: "true"}
    - SerialDriver: {}
    - HvStrategy: {vendor: svm, cpus: 8, memory_mib: 4096}
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    path = tmp_path / "box.yaml"
    path.write_text(BOX)
    return path


def test_an_environment_file_is_a_platform(environment: Path) -> None:
    platform = platform_named(f"lab:{environment}")
    assert platform.vendor == "svm" and platform.box == Box(8, 4096, flash=False)
    assert platform.capabilities == {"svm", "hypervisor", "smp", "linux"}


def test_the_example_is_a_platform() -> None:
    platform = platform_named(f"lab:{ROOT / 'ci' / 'lab-box.yaml'}")
    assert platform.box == Box(8, 16384, flash=False) and "hypervisor" in platform.capabilities


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("linux]", "linux, wings]", "no capability 'wings'"),
        ("HvStrategy: {vendor: svm,", "HvStrategy: {vendor: sun,", "'vendor' must be in"),
        ("cpus: 8", "cpus: many", "'cpus' must be"),
        ("cpus: 8", "silence: 1", "missing 1 required positional argument: 'cpus'"),
        ("main:", "other:", "no target 'main'"),
        ("    - HvStrategy: {vendor: svm, cpus: 8, memory_mib: 4096}\n", "", "no HvStrategy"),
        ("    - SerialDriver: {}\n", "", "ConsoleProtocol"),
        ("SerialDriver:", "SteamDriver:", "SteamDriver"),
        ("targets:", "targets: [", "Error in configuration file"),
        ("host: 127.0.0.1", 'host: !template "$LG_NOSUCH"', "LG_NOSUCH"),
    ],
)
def test_a_wrong_environment_file_is_refused_in_one_line(
    environment: Path, old: str, new: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert BOX.count(old) == 1
    environment.write_text(BOX.replace(old, new))
    assert cli.run(["test", "--lab", str(environment)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(environment) in line and reason in line


def test_a_box_is_what_it_is(environment: Path) -> None:
    fitting: dict[str, Any] = {"platform": f"lab:{environment}", "cpus": 8, "memory_mib": 4096}
    assert isinstance(BootRequest(**fitting).checked(), Platform)
    for other, reason in (
        ({"cpus": 4}, "4 processors are asked for, and this box has 8"),
        ({"memory_mib": 512}, "512 MiB"),
        ({"cpu_model": "max"}, "--cpu "),
        ({"firmware": environment}, "--firmware "),
    ):
        with pytest.raises(BoxError, match=reason):
            BootRequest(**{**fitting, **other}).checked()


def test_a_box_has_a_firmware_of_its_own(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["boot", "--on", f"lab:{environment}", "--firmware", "debian"]) == 2
    assert "say --firmware platform" in capsys.readouterr().err


class Recorder:
    """A driver of labgrid that notes what is done with it."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

    def __getattr__(self, action: str) -> Any:  # noqa: ANN401
        if action not in ("on", "off", "set_mode", "write_image", "load"):
            raise AttributeError(action)

        def noted(*arguments: str) -> None:
            self._calls.append(" ".join([self._name, action, *arguments]))

        return noted


class PlayedPort:
    """A serial port that says its lines when the power is on, and then nothing."""

    def __init__(self, output: bytes = b"", hangs_up: bool = False) -> None:
        self.output = output
        self.hangs_up = hangs_up
        self.typed = b""

    def _read(self, size: int, timeout: float) -> bytes:
        if self.output:
            data, self.output = self.output[:size], self.output[size:]
            return data
        if self.hangs_up:
            raise OSError("disconnected")
        time.sleep(0.01)
        raise pexpect.TIMEOUT("")

    def write(self, data: bytes) -> None:
        self.typed += data


def played(calls: list[str], port: PlayedPort, **changes: Any) -> Any:  # noqa: ANN401
    """A box whose drivers note what is done with them, with the methods of the real one."""
    target = SimpleNamespace(activate=lambda driver: None, deactivate=lambda driver: None)
    values: dict[str, Any] = {
        "label": "box1",
        "target": target,
        "power": Recorder("power", calls),
        "console": port,
        "log_port": None,
        "storage": None,
        "mux": None,
        "flash": None,
        "firmware": None,
        "silence": 60.0,
        "hang": None,
    }
    box: Any = SimpleNamespace(**{**values, **changes})
    box.deploy = lambda image, firmware: HvStrategy.deploy(box, image, firmware)
    box.file = Path
    return box


def machine(box: Any, folder: Path) -> LabMachine:  # noqa: ANN401
    return LabMachine(box, MachineSpec(8, 4096, folder, folder / "disk.img"), None)


BOOT = b"BdsDxe: starting\nany other key to continue\nhvboot: shell\nhvboot: load 0x0\nhvcheck: init x\n"


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (b"reboot: Power down\n", Cause.POWEROFF),
        (b"reboot: Restarting system\n", Cause.REBOOT),
        (b"hvboot: end\n", Cause.POWEROFF),
        (b"BdsDxe: starting\n", Cause.REBOOT),
        (b"", Cause.CRASHED),
    ],
)
def test_the_last_words_say_how_a_boot_ended(tmp_path: Path, words: bytes, cause: Cause) -> None:
    calls: list[str] = []
    port = PlayedPort(BOOT + words, hangs_up=not words)
    box = played(calls, port, log_port=PlayedPort(b"hv: info cpu0 ready\n"))
    with BootStrategy(machine(box, tmp_path), hypervisor=True, seconds=30) as boot:
        boot.transition(State.ROOT)
        assert boot.finish().cause is cause
        assert boot.machine.hypervisor_log() == "hv: info cpu0 ready\n"
        assert calls == ["power off", "power on"]
    assert calls == ["power off", "power on", "power off"]
    assert port.typed == b"\r" and box.hang is None
    assert (tmp_path / "console.log").read_bytes() == BOOT + words


def test_a_box_that_says_nothing_hangs_and_is_left_alone(tmp_path: Path) -> None:
    calls: list[str] = []
    box = played(calls, PlayedPort(b"BdsDxe: starting\n"), silence=0.3)
    with (
        pytest.raises(StrategyError, match=r"box1 hangs: nothing came from its serial port for 0 s"),
        BootStrategy(machine(box, tmp_path), hypervisor=True, seconds=3600) as boot,
    ):
        boot.transition(State.SHELL)
    assert calls == ["power off", "power on", "power off"]
    with pytest.raises(HvError, match="box1 hung before"), BootStrategy(machine(box, tmp_path), True, 3600) as boot:
        boot.transition(State.SHELL)
    assert calls == ["power off", "power on", "power off"], "it was not touched again"


def test_a_box_that_says_much_but_not_what_is_awaited_fails_at_the_limit(tmp_path: Path) -> None:
    box = played([], PlayedPort(b"panic again\n" * 1000), silence=3600)
    with (
        pytest.raises(StrategyError, match="the limit of 1 s is over"),
        BootStrategy(machine(box, tmp_path), hypervisor=True, seconds=1) as boot,
    ):
        boot.transition(State.FIRMWARE)
    assert box.hang is None, "the next test may fare better"


def test_a_driver_that_fails_is_named_with_the_box(tmp_path: Path) -> None:
    def refuse() -> None:
        raise subprocess.CalledProcessError(1, ["switch"])

    box = played([], PlayedPort(), power=SimpleNamespace(off=refuse, on=refuse))
    with pytest.raises(MachineError, match="box1: switching it off failed: .*switch"):
        machine(box, tmp_path).power.on()


def test_the_medium_is_written_while_the_multiplexer_gives_it_to_us(tmp_path: Path) -> None:
    calls: list[str] = []
    box = played(calls, PlayedPort(), storage=Recorder("storage", calls), mux=Recorder("mux", calls))
    box.deploy(tmp_path / "disk.img", None)
    assert calls == ["mux set_mode host", f"storage write_image {tmp_path / 'disk.img'}", "mux set_mode dut"]


def test_the_chip_gets_its_own_firmware_back(tmp_path: Path) -> None:
    calls: list[str] = []
    box = played(calls, PlayedPort(), flash=Recorder("flash", calls), firmware="/own.fd")
    box.deploy(tmp_path / "disk.img", tmp_path / "ours.fd")
    box.deploy(tmp_path / "disk.img", None)
    assert calls == [f"flash load {tmp_path / 'ours.fd'}", "flash load /own.fd"]


def session(**places: dict[str, str]) -> Any:  # noqa: ANN401
    return SimpleNamespace(places={name: SimpleNamespace(tags=tags) for name, tags in places.items()})


def test_places_are_found_by_name_and_by_all_tags() -> None:
    lab = session(a={"board": "x"}, b={"board": "x", "cpu": "zen"}, c={})
    assert select(lab, ["c", "b"], {"board": "x"}) == ["c", "b", "a"]
    assert select(lab, [], {"board": "x", "cpu": "zen"}) == ["b"]
    with pytest.raises(UsageError, match="no place 'd': they are a, b, c"):
        select(lab, ["d"], {})
    with pytest.raises(UsageError, match="no place has the tag board=y"):
        select(lab, [], {"board": "y"})


class Reservations:
    """A coordinator's part for reservations: each answer to a poll takes the next of a place's states."""

    def __init__(self, **states: list[ReservationState]) -> None:
        self.states = states
        self.polled: list[str] = []
        self.acquired: list[str] = []
        self.released: list[str] = []
        self.cancelled: list[str] = []

    async def CreateReservation(self, request: Any) -> Any:  # noqa: ANN401
        return SimpleNamespace(reservation=SimpleNamespace(token=request.filters["main"].filter["name"]))

    async def PollReservation(self, request: Any) -> Any:  # noqa: ANN401
        self.polled.append(request.token)
        states = self.states[request.token]
        return SimpleNamespace(
            reservation=SimpleNamespace(state=(states.pop(0) if len(states) > 1 else states[0]).value)
        )

    async def GetReservations(self, request: Any) -> Any:  # noqa: ANN401
        return SimpleNamespace(reservations=[])

    async def AcquirePlace(self, request: Any) -> None:  # noqa: ANN401
        self.acquired.append(request.placename)

    async def ReleasePlace(self, request: Any) -> None:  # noqa: ANN401
        self.acquired.remove(request.placename)
        self.released.append(request.placename)

    async def CancelReservation(self, request: Any) -> None:  # noqa: ANN401
        self.cancelled.append(request.token)


def taken(coordinator: Reservations, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all of its places, and release them."""
    monkeypatch.setattr(places, "_POLL_SECONDS", 0)
    there = {name: SimpleNamespace(acquired="", reservation="") for name in coordinator.states}
    lab: Any = SimpleNamespace(stub=coordinator, places=there)

    async def run() -> None:
        held = places.Held(lab)
        try:
            await held.take([*there], wait)
        finally:
            await held.release_all()

    asyncio.run(run())


WAITING, ALLOCATED, EXPIRED = ReservationState.waiting, ReservationState.allocated, ReservationState.expired


def test_every_reservation_is_asked_for_while_one_box_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Reservations(a=[ALLOCATED], b=[WAITING] * 3 + [ALLOCATED], c=[ALLOCATED])
    taken(coordinator, 3600, monkeypatch)
    assert coordinator.polled == ["a", "b", "c"] * 4
    assert coordinator.released == coordinator.cancelled == ["a", "b", "c"]


def test_a_reservation_that_was_lost_while_waiting_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Reservations(a=[ALLOCATED, EXPIRED], b=[WAITING])
    with pytest.raises(HvError, match="the reservation of a is expired: run it again"):
        taken(coordinator, 3600, monkeypatch)
    assert coordinator.released == [] and coordinator.cancelled == ["a", "b"]


def test_a_box_that_stays_busy_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Reservations(a=[ALLOCATED], b=[WAITING])
    with pytest.raises(HvError, match="b is busy, it was reserved: choose another"):
        taken(coordinator, 0, monkeypatch)
    assert coordinator.released == [] and coordinator.cancelled == ["a", "b"]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        return int(endpoint.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--place", "a", "--coordinator", "127.0.0.1:{port}"], 1, "coordinator at 127.0.0.1:{port} does not answer"),
        (["--coordinator", "127.0.0.1:{port}"], 2, "no box is named"),
        (["--place", "a"], 2, "no coordinator is named"),
        (["--place", "a", "--coordinator", "127.0.0.1:x"], 2, "is not the address of a coordinator"),
        (["--tag", "board", "--coordinator", "127.0.0.1:{port}"], 2, "--tag board: KEY=VALUE is wanted"),
        (["--place", "a", "--limit", "0"], 2, "--limit"),
        (["--place", "a", "--limit", "nan"], 2, "--limit"),
        (["--place", "a", "--limit", "inf"], 2, "--limit"),
        (["--place", "a", "--wait", "nan"], 2, "--wait"),
        (["--place", "a", "--wait", "1e12"], 2, "--wait"),
    ],
)
def test_wrong_use_of_lab_run_is_one_line(
    environment: Path,
    closed_port: int,
    arguments: list[str],
    code: int,
    reason: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LG_COORDINATOR", raising=False)
    words = [word.format(port=closed_port) for word in arguments]
    assert cli.run(["lab", "run", "--env", str(environment), *words]) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert reason.format(port=closed_port) in line


@pytest.mark.parametrize("verb", ["run", "demo"])
def test_the_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", verb, "--help"]) == 0
    assert f"\n    hv lab {verb} " in capsys.readouterr().out.partition("Examples:")[2]


def test_wrong_use_of_lab_demo_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["lab", "demo", "--hang", "box9"]) == 2
    assert cli.run(["lab", "demo", "--keep", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_power_command_says_what_is_wrong(tmp_path: Path) -> None:
    def power(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hvtools.lab.power", *words]
        return subprocess.run(command, capture_output=True, text=True)

    with Rack(tmp_path, ["box1"]) as rack:
        for words in (["box2", "on"], ["box1", "sideways"]):
            done = power(str(rack.switchboard), *words)
            assert done.returncode == 1 and done.stderr == f"power: not understood: '{' '.join(words)}'\n"
        assert power(str(rack.switchboard), "box1", "off").returncode == 0
        assert rack.switched == ["box1 off"] and not rack.boxes["box1"].is_on
        numbers = rack.boxes["box1"].numbers()
        assert len(set(numbers.values())) == 2
    assert power(str(rack.switchboard), "box1", "on").returncode == 1
    assert threading.active_count() == 1 or all("_serve" not in thread.name for thread in threading.enumerate())
    for number in numbers.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Plan:
    """Of boxes whose pytest ends at once, without a report, and whose power is cut well."""
    monkeypatch.setattr(runs, "pytest_command", lambda *arguments: [sys.executable, "-c", ""])
    monkeypatch.setattr(runs, "_power_off", lambda plan, name: [sys.executable, "-c", ""])
    (tmp_path / "run").mkdir()
    return runs.Plan(tmp_path / "box.yaml", "", tmp_path / "run", False, (), 3600, 0)


def run_on(names: list[str], plan: runs.Plan, monkeypatch: pytest.MonkeyPatch) -> tuple[Reservations, list[Any]]:
    """Run on boxes that are all free."""
    coordinator = Reservations(**{name: [ALLOCATED] for name in names})
    there = {name: SimpleNamespace(acquired="", reservation="", tags={}) for name in names}

    @contextlib.asynccontextmanager
    async def connected(address: str) -> AsyncIterator[Any]:
        yield SimpleNamespace(stub=coordinator, places=there)

    monkeypatch.setattr(runs, "connected", connected)
    return coordinator, asyncio.run(runs.run(plan, names, {}, lambda line: None))


def test_any_name_of_a_place_has_a_folder(plan: runs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["rack/1", "rack_1", "..", "report.html", "a" * 300, "plain"]
    _, results = run_on(names, plan, monkeypatch)
    assert [result.name for result in results] == names
    assert [result.folder for result in results] == ["rack_1", "rack_1-2", "box", "report.html-2", "a" * 100, "plain"]
    assert all((plan.folder / result.folder / runs.OUTPUT).is_file() for result in results)


def test_a_fault_of_one_box_is_its_own(plan: runs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan.folder / "a").write_text("in the way")
    coordinator, (bad, good) = run_on(["a", "b"], plan, monkeypatch)
    assert "File exists" in bad.fault
    assert good.fault == "pytest ended before its report: see its output"
    assert sorted(coordinator.released) == ["a", "b"]


def test_a_power_switch_that_does_not_answer_is_left(plan: runs.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pause()"
    monkeypatch.setattr(runs, "_power_off", lambda plan, name: [sys.executable, "-c", waits])
    monkeypatch.setattr(runs, "_CUT_SECONDS", 0.5)
    monkeypatch.setattr(runs, "_END_SECONDS", 0.5)
    ended = []
    end = runs._end

    async def noted(process: asyncio.subprocess.Process) -> None:
        await end(process)
        ended.append(process.returncode)

    monkeypatch.setattr(runs, "_end", noted)
    _, (box,) = run_on(["a"], plan, monkeypatch)
    assert box.fault.endswith("; its power could not be cut: labgrid's client took more than 0 s")
    assert len(ended) == 2 and None not in ended


JUNIT = """<testsuites><testsuite name="pytest" errors="0" failures="1" skipped="1" tests="3" time="9.5">
<properties>{property}</properties>
<testcase classname="t" name="test_good" time="4.0"/>
<testcase classname="t" name="test_bad" time="5.0"><failure message="a &lt;b&gt; c">...</failure></testcase>
<testcase classname="t" name="test_other" time="0"><skipped message="not here"/></testcase>
</testsuite></testsuites>"""


def test_one_report_of_all_boxes(tmp_path: Path) -> None:
    good, bad, hung = (tmp_path / name / "junit.xml" for name in ("good", "bad", "hung"))
    for path in (good, bad, hung):
        path.parent.mkdir()
    without = re.sub("<failure.*</failure>", "", JUNIT).replace('failures="1"', 'failures="0"')
    good.write_text(without.format(property=""))
    bad.write_text(JUNIT.format(property=""))
    hung.write_text(JUNIT.format(property='<property name="hang" value="dead silence"/>'))
    results = [report.read(path.parent.name, path, 10.0, "") for path in (good, bad, hung)]
    results.append(report.read("gone", tmp_path / "gone" / "junit.xml", 3.0, "the limit of 3 s is over"))
    results.append(report.read("nothing", tmp_path / "nothing" / "junit.xml", 3.0, ""))
    assert [result.ok for result in results] == [True, False, False, False, False]
    assert results[0].line == "good: ok (2 passed, 0 failed, 1 skipped, 10 s)"
    assert results[2].as_json()["fault"] == "hangs: dead silence"
    assert results[4].state == "no test was run"
    report.write(tmp_path, results, ["console.log"])
    suites = list(ElementTree.parse(tmp_path / report.XML).getroot())
    assert [suite.get("name") for suite in suites] == ["good", "bad", "hung", "gone", "nothing"]
    assert [suite.get("errors", "0") for suite in suites] == ["0", "0", "1", "1", "0"]
    assert [len(suite.findall("testcase")) for suite in suites] == [3, 3, 4, 1, 0]
    page = (tmp_path / report.HTML).read_text()
    assert "1 of 5 boxes passed" in page and "hangs: dead silence" in page and "a &lt;b&gt; c" in page
    assert 'href="bad/console.log"' in page


def test_a_report_that_pytest_did_not_finish_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT[:100])
    result = report.read("box1", tmp_path / "junit.xml", 1.0, "")
    assert not result.ok and result.fault == "pytest ended while it wrote its report"

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv log` of a machine that runs, and of a dump of it."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from hvtools import build
from hvtools.boot.hvlog import parse_log
from hvtools.boot.shell import EfiShell
from hvtools.machines.live import live_memory

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Hv, Session


@pytest.mark.needs("hypervisor", "memory")
def test_the_ring_of_a_machine_that_runs_and_of_its_dump(session: Session, hv: Hv, tmp_path: Path) -> None:
    def shown(*arguments: str) -> list[dict[str, Any]]:
        out = tmp_path / "log.json"
        result = hv("log", *arguments, "--json", str(out))
        assert result.returncode == 0, result.stderr
        lines: list[dict[str, Any]] = json.loads(out.read_text())["lines"]
        return lines

    status = {PurePosixPath("HvStatus.efi"): build.ensure_built().folder / "HvStatus.efi"}
    with session(cpus=2, settings={"log": "debug"}, added=status) as strategy:
        strategy.transition("shell")
        folder = strategy.machine.spec.folder
        follower = hv.start("log", "--follow", str(folder))
        strategy.transition("hypervisor")
        # It asks every processor, for which the firmware sends INIT and SIPI.
        EfiShell(strategy).must("fs0:\\add\\HvStatus.efi")
        dump = tmp_path / "memory.elf"
        live = shown(str(folder), "--save", str(dump))
        ports = [line.text() for line in parse_log(strategy.machine.hypervisor_log())]
        raw = tmp_path / "memory.raw"
        memory = live_memory(folder)
        assert memory is not None
        raw.write_bytes(memory.read(0, 512 << 20))
        strategy.machine.power.off()
        followed, said = follower.communicate(timeout=60)
    events = [line["event"] for line in live]
    assert {"start", "memory", "image", "nested"} <= set(events), "what came before the ring is in it, too"
    # INIT and SIPI are too frequent for the ports: the ring alone has them.
    assert {"init", "sipi", "init-taken", "sipi-taken"} <= set(events)
    assert not {"init", "sipi"} & {line.split()[0] for line in ports}
    assert shown(str(dump)) == live and shown(str(raw))[: len(live)] == live
    assert [line["event"] for line in shown(str(dump), "--level", "info")] == [
        line["event"] for line in live if line["level"] != "debug"
    ]
    assert followed.count(" memory ") == 1 and "sipi-taken" in followed
    assert "the machine has ended" in said
    # Now there are its ports only.
    assert {line["event"] for line in shown(str(folder))} >= {"memory", "launch-done"}


def test_what_is_no_run_is_refused(hv: Hv, tmp_path: Path) -> None:
    for arguments, expected in (
        ([str(tmp_path)], "is not the folder of a boot"),
        ([str(tmp_path / "none")], "does not exist"),
        (["--follow", "/etc/passwd"], "--follow is for a machine that runs"),
    ):
        result = hv("log", *arguments)
        assert result.returncode == 2 and expected in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.needs("hypervisor")
@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_firmwares_console_gets_what_matters_or_all(boot: Boot, level: str) -> None:
    program = build.ensure_built().folder / "HvReturn.efi"
    record = boot(cpus=1, application=program, settings={"log": level}).must_be_ok().record
    printed = [line.event for line in parse_log(re.sub(r"^HvDxe: ", "hv: ", record.console, flags=re.MULTILINE))]
    # The options themselves are read before it is known.
    launch = [line.event for line in parse_log(record.log) if line.event != "option"]
    launch = launch[: launch.index("launch-done") + 1]
    assert printed == (["start", "launch-done"] if level == "info" else launch)

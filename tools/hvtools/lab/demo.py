# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A lab on this machine: emulated boxes behind labgrid's own coordinator and exporter, on the loopback interface."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from hvtools.errors import HvError
from hvtools.lab.places import connected
from hvtools.lab.rack import CPUS, MEMORY_MIB, Rack
from hvtools.machines.process import die_with

ENVIRONMENT = "box.yaml"
_EXPORTER = "rack"
_TAGS = {"board": "qemu"}
_READY_SECONDS = 120.0
_LISTENING = re.compile(rb"listening on 127\.0\.0\.1:(\d+)")

_TEMPLATE = """\
# SPDX-License-Identifier: BSD-2-Clause-Patent
# The emulated boxes of `hv lab demo`: one file for all, LG_PLACE says which.
imports: [hvtools.lab.strategy]
options:
  coordinator_address: {address}
targets:
  main:
    features: [svm, hypervisor, smp, xapic, linux, fast, usb]
    resources:
    - RemotePlace: {{name: !template "$LG_PLACE"}}
    - HTTPProvider: {{internal: !template "{folder}/$LG_PLACE/medium/", external: "http://boot.invalid/"}}
    drivers:
    - ExternalPowerDriver:
        cmd_on: !template "{python} -m hvtools.lab.power {switchboard} $LG_PLACE on"
        cmd_off: !template "{python} -m hvtools.lab.power {switchboard} $LG_PLACE off"
    - SerialDriver: {{name: console, bindings: {{port: console}}}}
    - SerialDriver: {{name: log, bindings: {{port: log}}}}
    - HTTPProviderDriver: {{}}
    - HvStrategy:
        bindings: {{console: console}}
        log: log
        vendor: svm
        cpus: {cpus}
        memory_mib: {memory}
        silence: {silence}
"""


class Demo:
    """The lab; nothing of it outlives the `with` statement, or this process."""

    def __init__(
        self, folder: Path, names: list[str], hanging: frozenset[str] = frozenset(), silence: float = 60.0
    ) -> None:
        """Describe it.

        Args:
            folder: an empty one for all that it needs.
            names: of the boxes.
            hanging: those that hang.
            silence: seconds after which a box that says nothing hangs.
        """
        self.environment = folder / ENVIRONMENT
        self.address = ""
        self.rack = Rack(folder, names, hanging)
        self._folder = folder
        self._silence = silence
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Demo:
        """Start it, and wait until the coordinator knows every box.

        Raises:
            HvError: coordinator or exporter did not come up.
        """
        self.rack.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self.rack.__exit__(kind, error, trace)

    def _start(self) -> None:
        boxes = self.rack.boxes.values()
        # The coordinator keeps its places in this file; JSON is YAML.
        match = {"exporter": _EXPORTER, "cls": "*"}
        places = {box.name: {"tags": _TAGS, "matches": [{**match, "group": box.name}]} for box in boxes}
        (self._folder / "places.yaml").write_text(json.dumps(places))
        self.address = f"127.0.0.1:{self._listens(self._run('coordinator', '-l', '127.0.0.1:0'))}"
        ports = {box.name: {name: _serial(port) for name, port in box.numbers().items()} for box in boxes}
        (self._folder / "exporter.yaml").write_text(json.dumps(ports))
        self._run("exporter", "-c", self.address, "-n", _EXPORTER, "--hostname", "127.0.0.1", "exporter.yaml")
        self.environment.write_text(
            _TEMPLATE.format(
                address=self.address,
                folder=self._folder,
                python=shlex.quote(sys.executable),
                switchboard=shlex.quote(str(self.rack.switchboard)),
                cpus=CPUS,
                memory=MEMORY_MIB,
                silence=self._silence,
            )
        )
        asyncio.run(self._ready())

    def _listens(self, coordinator: subprocess.Popen[bytes]) -> int:
        """Wait for the port that the coordinator took."""
        log = self._folder / "coordinator.log"
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and coordinator.poll() is None:
            if found := _LISTENING.search(log.read_bytes()):
                return int(found[1])
            time.sleep(0.05)
        said = log.read_text("utf-8", "replace").split("\n")
        raise HvError(f"labgrid's coordinator did not start: {' '.join(said[-2:]).strip() or 'it says nothing'}")

    def _run(self, part: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{part}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", f"labgrid.remote.{part}", *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )
        self._processes.append(process)
        return process

    async def _ready(self) -> None:
        async with connected(self.address) as session:
            try:
                async with asyncio.timeout(_READY_SECONDS):
                    while session.resources.get(_EXPORTER, {}).keys() != self.rack.boxes.keys():
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise HvError("labgrid's exporter did not register the boxes in time") from None


def _serial(port: int) -> dict[str, Any]:
    return {"cls": "NetworkSerialPort", "host": "127.0.0.1", "port": port, "protocol": "raw"}

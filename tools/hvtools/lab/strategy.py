# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The way of a box from off to Linux under HvDxe, as a strategy of labgrid.

An environment file imports this module by its name and has an `HvStrategy` among the drivers of its target.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import attr
from labgrid import step, target_factory
from labgrid.resource.remote import RemotePlace
from labgrid.strategy import Strategy, StrategyError
from labgrid.strategy.common import never_retry

from hvtools.boot.request import BootRequest
from hvtools.boot.runner import booting, logs_folder
from hvtools.boot.startup import Linux, Prompt
from hvtools.boot.strategy import State
from hvtools.lab import box
from hvtools.lab.machine import MEDIUM, LabMachine

LINUX = "linux"
"""The state behind those of a boot: a root shell is on the console."""

_SHELL = "rdinit=/hvtools/bin/sh"
_PROMPT = re.compile(r"/ # ")
STATES = (*(state.value for state in State if state is not State.ROOT), LINUX)


def _optional(kind: type) -> Any:  # noqa: ANN401 - attrs has its own types
    return attr.validators.optional(attr.validators.instance_of(kind))


@target_factory.reg_driver
@attr.s(eq=False)
class HvStrategy(Strategy):
    """A box: what it is, and how it gets from one state to the next.

    Bindings: its switch and its first serial port; where they exist, what its boot medium is written with, the
    multiplexer of that medium, and what its flash chip is written with.

    Attributes:
        vendor: whose virtualization its processors have, svm or vmx.
        cpus: its processors.
        memory_mib: its RAM in MiB.
        log: name of the driver of its second serial port, which has the hypervisor's log.
        silence: seconds without a character on the console after which it hangs.
        patience: how much longer than on an emulator a boot may take.
        build: which build of HvDxe `transition` boots.
        shell: a UEFI shell for the medium, where the firmware has none.
        firmware: image of its own firmware, which is in the chip whenever no other was asked for.
    """

    bindings = {
        "power": "PowerProtocol",
        "console": "ConsoleProtocol",
        "storage": {"USBStorageDriver", "HTTPProviderDriver", "TFTPProviderDriver", None},
        "mux": {"USBSDMuxDriver", "USBSDWireDriver", None},
        "flash": {"FlashromDriver", None},
    }
    vendor: str = attr.ib(validator=attr.validators.in_(("svm", "vmx")))
    cpus: int = attr.ib(validator=attr.validators.instance_of(int))
    memory_mib: int = attr.ib(validator=attr.validators.instance_of(int))
    log: str | None = attr.ib(default=None, validator=_optional(str))
    silence: float = attr.ib(default=120.0, converter=float)
    patience: float = attr.ib(default=1.0, converter=float)
    build: str = attr.ib(default="DEBUG", validator=attr.validators.in_(("DEBUG", "RELEASE")))
    shell: str | None = attr.ib(default=None, validator=_optional(str))
    firmware: str | None = attr.ib(default=None, validator=_optional(str))

    def __attrs_post_init__(self) -> None:
        """Find what bindings cannot name."""
        super().__attrs_post_init__()
        self.log_port = self.target.get_driver("ConsoleProtocol", name=self.log, activate=False) if self.log else None
        self.hang: str | None = None
        self.status = ""

    @property
    def label(self) -> str:
        """The box's name: that of its place, if it has one."""
        places = [resource.name for resource in self.target.resources if isinstance(resource, RemotePlace)]
        return str((places or [self.target.name])[0])

    def file(self, name: str) -> Path:
        """Find a file that the environment names, relative to it.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = Path(self.target.env.config.resolve_path(name))
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist or is no file")
        return path

    def deploy(self, image: Path, firmware: Path | None) -> None:
        """Bring the boot medium to the box, and the firmware into its chip.

        Args:
            image: the medium.
            firmware: what is to be in the chip, None for its own.
        """
        if self.mux is not None:
            self.target.activate(self.mux)
            self.mux.set_mode("host")
        if self.storage is not None:
            self.target.activate(self.storage)
            if hasattr(self.storage, "stage"):
                self._stage(image)
            else:
                self.storage.write_image(str(image))
        if self.mux is not None:
            self.mux.set_mode("dut")
        wanted = self.file(self.firmware) if firmware is None and self.firmware else firmware
        if self.flash is not None and wanted is not None:
            self.target.activate(self.flash)
            self.flash.load(str(wanted))

    def _stage(self, image: Path) -> None:
        """Give the medium to a server, under the same name each time."""
        with tempfile.TemporaryDirectory(prefix="hv-stage-") as folder:
            named = Path(folder) / MEDIUM
            named.symlink_to(image.absolute())
            self.storage.stage(str(named))

    @never_retry  # type: ignore[untyped-decorator]
    @step(args=["status"])  # type: ignore[untyped-decorator]
    def transition(self, status: str) -> None:
        """Go to a state, each time from power-on: off, firmware, shell, hypervisor (its prompt again), linux.

        Raises:
            StrategyError: there is no such state, or the box did not get there.
        """
        if status not in STATES:
            raise StrategyError(f"no state {status!r}: there is {', '.join(STATES)}")
        if status == self.status:
            return
        if status == State.OFF.value:
            self.target.activate(self.power)
            self.power.off()
        else:
            self._go(status)
        self.status = status

    def _go(self, status: str) -> None:
        """Boot to a state, and leave the box on and its ports to others."""
        request = BootRequest(
            platform=box.adopt(self),
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            hypervisor=status in (LINUX, State.HYPERVISOR.value),
            target=self.build,
        )
        payload = Linux(_SHELL) if status == LINUX else Prompt()
        with booting(request, logs_folder(None), payload) as boot:
            boot.transition(State.HYPERVISOR if status == LINUX else status)
            if status == LINUX:
                boot.expect([_PROMPT])
            assert isinstance(boot.machine, LabMachine)
            boot.machine.let_go()

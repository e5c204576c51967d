# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Brings a machine from a fresh clone to one where every verb works; does only what is missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvtools import bochs, build, edk2, linux, toolchain


@dataclass(frozen=True)
class Setup:
    """What is there after set-up."""

    installed: list[str]
    edk2: edk2.Edk2
    kernel: linux.KernelFiles
    busybox: Path
    bochs: bochs.Bochs

    def as_json(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "installed": self.installed,
            "edk2": {"path": str(self.edk2.path), "origin": self.edk2.origin},
            "kernel": {
                "path": str(self.kernel.path),
                "version": self.kernel.version,
                "package": self.kernel.package.version,
                "sha256": self.kernel.package.sha256,
            },
            "busybox": str(self.busybox),
            "bochs": {
                "path": str(self.bochs.program),
                "origin": self.bochs.origin,
                "version": self.bochs.version,
            },
        }


def setup_all(workspace: Path = build.ROOT) -> Setup:
    """Installs every package, brings EDK2, the kernel and busybox, and builds Bochs.

    Raises:
        HvError: something is not to be had; the message says whether it is not there or the network is.
    """
    installed = toolchain.require("setup")
    return Setup(installed, edk2.ready(workspace), linux.kernel(), linux.busybox(), bochs.provide())

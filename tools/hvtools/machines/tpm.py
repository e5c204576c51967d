# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A TPM 2.0 in software: one process of swtpm for one machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile

from hvtools.errors import HvError
from hvtools.machines.process import die_with

PROGRAM = "swtpm"


class SoftwareTpm:
    """A new TPM, whose state goes with it."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._state = tempfile.TemporaryDirectory(prefix="hv-tpm-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> socket.socket:
        """Start it.

        Returns:
            its control channel, for the emulator; when that is closed, the process ends.

        Raises:
            HvError: it is not installed.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise HvError(f"{PROGRAM} is not installed: run `hv setup`")
        near, far = socket.socketpair()
        with near:
            self._process = subprocess.Popen(
                [
                    *(program, "socket", "--tpm2", "--terminate"),
                    *("--tpmstate", f"dir={self._state.name}"),
                    *("--ctrl", f"type=unixio,clientfd={near.fileno()}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(near.fileno(),),
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),
            )
        return far

    def close(self) -> None:
        """End it, if it runs, and remove its state."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._state.cleanup()

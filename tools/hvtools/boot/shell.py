# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Commands typed at the UEFI shell's prompt, with their status and output."""

from __future__ import annotations

import re

from hvtools.boot.strategy import BootStrategy
from hvtools.errors import HvError
from hvtools.machines.console import clean


class EfiShell:
    """The shell of a machine whose startup script stops at the prompt.

    The shell echoes what is typed. The mark that ends a command contains the name of a variable as it is typed, and
    its value as it is printed: the echo cannot be taken for the answer.
    """

    def __init__(self, strategy: BootStrategy) -> None:
        """Use the console of a machine that is at the shell, with or without a hypervisor."""
        self._strategy = strategy
        self._count = 0

    def type(self, command: str) -> None:
        """Type a command that gives the console away, such as reset or a kernel."""
        self._strategy.machine.console.send(f"{command}\r")

    def run(self, command: str) -> tuple[int, str]:
        """Run a command.

        Returns:
            its status as the shell has it, and what it printed.

        Raises:
            StrategyError: it did not come back.
        """
        self._count += 1
        mark = f"hvshell-{self._count}"
        before = len(self._strategy.machine.console.text())
        self.type(command)
        self.type(f"echo {mark} %lasterror%")
        _, match = self._strategy.expect([re.compile(rf"{mark} (0x[0-9A-Fa-f]+)")])
        printed = clean(self._strategy.machine.console.text()[before:])
        output, found, _ = printed.partition(f"{mark} {match[1]}")
        return int(match[1], 16), output if found else printed

    def must(self, command: str) -> str:
        """Run a command that has to succeed, and give what it printed.

        Raises:
            HvError: its status is not 0.
        """
        status, output = self.run(command)
        if status != 0:
            raise HvError(f"{command}: status {status:#x}: {' '.join(output.split())}")
        return output

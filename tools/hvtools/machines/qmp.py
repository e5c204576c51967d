# SPDX-License-Identifier: BSD-2-Clause-Patent
"""QEMU's machine protocol as plain calls, for one machine and one thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError

from hvtools.machines.protocols import MachineError

T = TypeVar("T")

_ANSWER_SECONDS = 30.0  # an emulator that starves on a loaded host still answers within this

# A machine that ends closes the connection: its normal end, not something to print.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


@contextlib.contextmanager
def _short_name(path: Path) -> Iterator[str]:
    """Give a name of a socket that fits into its address, which holds 107 characters (unix(7)), however deep it is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listening(path: Path) -> socket.socket:
    """Make a socket at `path` that others of this user can connect to."""
    path.unlink(missing_ok=True)
    endpoint = socket.socket(socket.AF_UNIX)
    with _short_name(path) as name:
        endpoint.bind(name)
    path.chmod(0o600)
    endpoint.listen(1)
    return endpoint


class QmpMonitor:
    """One connection, with a loop of its own that runs only inside the calls."""

    def __init__(self, endpoint: socket.socket) -> None:
        """Take a connected stream socket; it is owned by the monitor from here on."""
        self._endpoint = endpoint
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("hv")
        self._events = EventListener()
        self._client.register_listener(self._events)
        self._seen: list[dict[str, Any]] = []

    def _run(self, action: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(action, _ANSWER_SECONDS))

    def connect(self) -> None:
        """Greet the emulator.

        Raises:
            MachineError: it does not answer.
        """
        try:
            self._run(self._client.connect(self._endpoint))
        except (ConnectError, QMPError, OSError, EOFError, TimeoutError) as error:
            raise MachineError("the emulator does not answer on its monitor") from error

    def resume(self) -> None:
        """Let the processors run.

        Raises:
            MachineError: the emulator is gone or refuses.
        """
        self.execute("cont")

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """Run a QMP command and give what it returns.

        Raises:
            MachineError: the emulator is gone or refuses.
        """
        try:
            return self._run(self._client.execute(command, arguments))
        except (ExecuteError, QMPError, OSError, EOFError, TimeoutError) as error:
            raise MachineError(f"the emulator refused {command}: {error}") from error

    async def _finish(self) -> None:
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError):
            pass  # the emulator closed first
        while not self._events.empty():
            self._seen.append(dict(await self._events.get()))

    def close(self) -> list[dict[str, Any]]:
        """Read what the emulator still had to say, and let go of it.

        Returns:
            every event of the machine's life, in order.
        """
        if not self._loop.is_closed():
            try:
                self._run(self._finish())
            except TimeoutError:
                pass
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.close()
            self._endpoint.close()
        return self._seen


@contextlib.contextmanager
def attached(path: Path) -> Iterator[QmpMonitor]:
    """Connect to the monitor of a machine that somebody else runs. One at a time can: be short.

    Args:
        path: its socket.

    Raises:
        MachineError: no machine runs there.
    """
    endpoint = socket.socket(socket.AF_UNIX)
    try:
        with _short_name(path) as name:
            endpoint.connect(name)
    except OSError as error:
        endpoint.close()
        raise MachineError(f"no machine runs in {path.parent}") from error
    monitor = QmpMonitor(endpoint)
    try:
        monitor.connect()
        yield monitor
    finally:
        monitor.close()

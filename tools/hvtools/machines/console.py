# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A serial console on two descriptors, as a pexpect session."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pexpect
from pexpect.fdpexpect import fdspawn

from hvtools.machines.protocols import ConsoleClosedError, ConsoleTimeoutError

# ECMA-48 5.4: CSI, parameter bytes, intermediate bytes, final byte; and two-byte escapes.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00\x07\x08\x0e\x0f\x7f]")
_WINDOW = 8192  # characters searched again when more arrive; longer than any awaited text


def clean(text: str) -> str:
    """Take terminal control sequences and carriage returns out of console output."""
    return _CONTROL.sub("", text).replace("\r", "")


def last_lines(text: str, count: int) -> list[str]:
    """Give the last `count` lines of console output that are not blank."""
    return [line.rstrip() for line in clean(text).splitlines() if line.strip()][-count:]


class _Record:
    """Writes console output to the log and passes it on to a listener, in the shape of the file that pexpect wants.

    QEMU's own `logfile` does not serve: what it has to send again, because the reader is slow, stands there twice.
    """

    def __init__(self, log: Path, listener: Callable[[str], None] | None) -> None:
        self._file = log.open("w", encoding="utf-8", newline="")
        self._listener = listener

    def write(self, text: str) -> None:
        self._file.write(text)
        if self._listener is not None:
            self._listener(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class SerialConsole:
    """The console of a machine, attached before its first instruction."""

    def __init__(self, heard: int, typed: int, log: Path, listener: Callable[[str], None] | None = None) -> None:
        """Attach to two descriptors, which the console owns from here on.

        Args:
            heard: what the machine writes is read here.
            typed: what is typed is written here.
            log: file into which everything that is read is recorded.
            listener: called with each piece of output.
        """
        self._log = log
        self._heard: int | None = heard
        self._typed = typed
        self._session = fdspawn(
            heard,
            maxread=65536,
            searchwindowsize=_WINDOW,
            encoding="utf-8",
            codec_errors="replace",
            use_poll=True,
        )
        self._record = _Record(log, listener)
        self._session.logfile_read = self._record

    def expect(self, patterns: Sequence[re.Pattern[str]], timeout: float) -> tuple[int, re.Match[str]]:
        """Wait for one of `patterns`.

        Args:
            patterns: compiled expressions; of those that are there the leftmost in the output wins.
            timeout: seconds.

        Raises:
            ConsoleTimeoutError: none came in time.
            ConsoleClosedError: the machine ended first.
        """
        wanted = " or ".join(repr(pattern.pattern) for pattern in patterns)
        try:
            index = self._session.expect_list(list(patterns), timeout=max(timeout, 0))
        except pexpect.TIMEOUT:
            raise ConsoleTimeoutError(f"nothing like {wanted} on the console within {timeout:.0f} s") from None
        except (pexpect.EOF, ConnectionError):
            raise ConsoleClosedError(f"the machine ended while {wanted} was awaited") from None
        match = self._session.match
        assert isinstance(match, re.Match)
        return index, match

    def drain(self, timeout: float) -> bool:
        """Read until the other side closes; False when it did not within `timeout` seconds."""
        end = time.monotonic() + timeout
        try:
            self._session.expect_exact([pexpect.EOF], timeout=max(end - time.monotonic(), 0))
        except pexpect.TIMEOUT:
            return False
        except ConnectionError:
            pass
        return True

    def send(self, text: str) -> None:
        """Type `text`.

        Raises:
            ConsoleClosedError: nobody listens any more.
        """
        try:
            rest = text.encode()
            while rest:
                rest = rest[os.write(self._typed, rest) :]
        except OSError as error:
            raise ConsoleClosedError(f"the machine ended while {text!r} was typed") from error

    def text(self) -> str:
        """Give everything since power-on, without terminal control sequences."""
        if not self._log.exists():
            return ""
        return clean(self._log.read_text("utf-8", "replace"))

    def tail(self, lines: int) -> list[str]:
        """Give the last `lines` lines that are not blank."""
        return last_lines(self.text(), lines)

    def close(self) -> None:
        """Let go of the descriptors and of the log."""
        if self._heard is not None:
            os.close(self._heard)
            os.close(self._typed)
            self._heard = None
            self._record.close()

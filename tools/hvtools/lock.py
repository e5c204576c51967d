# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Locks between processes: held by the kernel, so that they vanish with their holder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file alone; the file itself stays behind.

    Args:
        path: the lock file; it and its folders are made when missing.
        on_wait: called once when somebody else holds the lock, before waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class SharedLock:
    """A lock with many users and one owner: users share it for as long as they live, the owner excludes them all."""

    def __init__(self, path: Path) -> None:
        """Takes the lock as one of its users; waits while an owner has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def try_own(self) -> bool:
        """Becomes the owner; False, and still a user, when there are other users."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A failed conversion may have dropped the shared lock (flock(2)).
            fcntl.flock(self._handle, fcntl.LOCK_SH)
            return False
        return True

    def close(self) -> None:
        """Gives the lock back."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

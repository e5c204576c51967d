# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Emulators as processes that do not outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with(parent: int) -> Callable[[], None]:
    """Give a function for the child that ties its life to the life of `parent`."""
    libc = ctypes.CDLL(None, use_errno=True)

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie

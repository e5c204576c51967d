# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The errors that a person may see: one line each, which the command line prints with an exit code."""

import errno

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class HvError(Exception):
    """It ran and failed: exit code 1."""

    exit_code = EXIT_FAILED

    @property
    def line(self) -> str:
        """The message on one line."""
        return " ".join(str(self).split())


class UsageError(HvError):
    """It was asked or fed wrongly, and nothing was done: exit code 2."""

    exit_code = EXIT_USAGE


class CorruptError(UsageError):
    """A file is not what its checksum says."""


class NoSpaceError(UsageError):
    """A file system is full."""


class NotThereError(HvError):
    """The other side answered: it does not have this package, version or file."""


class NetworkError(HvError):
    """The other side did not answer."""


class InterruptedByUser(HvError):
    """Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


def is_no_space(error: OSError) -> bool:
    """Tells whether an operating system error means that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)

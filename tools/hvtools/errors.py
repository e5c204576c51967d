# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The errors that a person may see: one line each with the next step; the command line prints it."""

import errno
import re

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


_STEPS = re.compile(
    r"`"  # a command
    r"|(?:^|[:;,] |\()(?:boot|check|choose|correct|give|make|name|run|say|see|set|take|try|use)\b"
    r"|\bmust be\b|\bthere is (?!no\b)|\bthey are\b|\bas in\b|\bis wanted\b|--help\b|--yes\b"
)


def names_step(message: str) -> bool:
    """Tell whether a message says already what to do: a command, or what would be right instead."""
    return _STEPS.search(message) is not None


class HvError(Exception):
    """It ran and failed: exit code 1.

    Attributes:
        step: what a person does next, where the message itself does not say it; VERB stands for the verb.
    """

    exit_code = EXIT_FAILED
    step = "the manual's page Troubleshooting may help: `hv docs`"

    @property
    def line(self) -> str:
        """The message on one line."""
        return " ".join(str(self).split())


class UsageError(HvError):
    """It was asked or fed wrongly, and nothing was done: exit code 2."""

    exit_code = EXIT_USAGE
    step = "see `hv VERB --help`"


class CorruptError(UsageError):
    """A file is not what its checksum says."""

    step = "run it again; if it stays so, `hv clean --cache` and again"


class NoSpaceError(UsageError):
    """A file system is full."""

    step = "make room there, as with `hv clean`"


class NotThereError(HvError):
    """The other side answered: it does not have this package, version or file."""

    step = "see that this machine's apt sources are right: `apt-get update`"


class NetworkError(HvError):
    """The other side did not answer."""

    step = "see that the network and its proxy are there, and run it again"


class InterruptedByUser(HvError):
    """Ctrl-C."""

    exit_code = EXIT_INTERRUPTED
    step = ""


def is_no_space(error: OSError) -> bool:
    """Tells whether an operating system error means that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def with_step(message: str, step: str, verb: str) -> str:
    """Give a message with the next step behind it, unless it has one.

    Args:
        message: for people.
        step: of its error.
        verb: that was run.
    """
    if not step or names_step(message):
        return message
    return f"{message} ({step.replace('VERB', verb)})"

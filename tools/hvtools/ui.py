# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a person sees while work goes on: steps with a time on a terminal, plain lines everywhere else.

Results go to standard output (`out`), progress and warnings to standard error (`err`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_shown: list[Status] = []
"""The steps that are going on, the innermost last; only on a terminal."""


def info(message: str) -> None:
    """Prints one line of progress."""
    err.print(message, markup=False)


def warn(message: str) -> None:
    """Prints one warning line."""
    err.print(f"hv: warning: {message}", style="yellow", markup=False)


class Step:
    """One step that is going on."""

    def __init__(self, title: str, status: Status | None) -> None:
        """Starts the clock; `step` makes these."""
        self._title = title
        self._status = status
        self._result = ""

    def update(self, detail: str) -> None:
        """Shows what the step is at; only on a terminal, where the line is overwritten."""
        if self._status is not None:
            self._status.update(f"{escape(self._title)} [dim]{escape(detail[:90])}[/dim]")

    def result(self, text: str) -> None:
        """Says what came out; printed behind the title at the end."""
        self._result = text

    @property
    def summary(self) -> str:
        """The title with the result, if there is one."""
        return f"{self._title}: {self._result}" if self._result else self._title


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Shows a step while its body runs, then how long it took; a failed one is marked, and the error goes on."""
    start = time.monotonic()
    outer = _shown[-1] if _shown else None
    status = None
    if err.is_terminal:
        # A terminal has one line for this: the outer step's waits.
        if outer is not None:
            outer.stop()
        status = err.status(escape(title))
        status.start()
        _shown.append(status)
    else:
        err.print(f"{title} ...", markup=False)
    current = Step(title, status)
    mark, style = "failed", "red"
    try:
        yield current
        mark, style = "ok", "green"
    finally:
        if status is not None:
            status.stop()
            _shown.remove(status)
        seconds = time.monotonic() - start
        err.print(f"[{style}]{mark:>6}[/{style}]", end=" ")
        err.print(f"{current.summary} ({seconds:.1f} s)", markup=False)
        if outer is not None:
            outer.start()

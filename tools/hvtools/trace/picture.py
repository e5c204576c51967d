# SPDX-License-Identifier: BSD-2-Clause-Patent
"""A picture of a trace: exits over time, by reason and by processor."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, whatever the environment says

import matplotlib.pyplot as plt

from hvtools import report
from hvtools.errors import UsageError
from hvtools.trace.records import Trace

FORMATS = (".svg", ".png")
_BINS = 120
_KINDS = 8  # the most frequent ones have colours, the rest is one


def check(path: Path) -> None:
    """Refuse a file that no picture can be written to.

    Raises:
        UsageError: its name ends otherwise than in .svg or .png, or no file can be made there.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a picture's name ends in {' or '.join(FORMATS)}")
    report.check_writable(path)


def draw(trace: Trace, path: Path, title: str) -> None:
    """Draw a trace: above how many exits of each kind in each span of time, below those of each processor.

    Args:
        trace: at least one exit.
        path: .svg or .png.
        title: above it.
    """
    start = trace.exits[0].tsc
    times: dict[str, list[float]] = {}
    processors: list[list[float]] = [[] for _ in range(trace.cpus)]
    for item in trace.exits:
        at = (item.tsc - start) / 1e6
        times.setdefault(item.kind, []).append(at)
        processors[item.cpu].append(at)
    ordered = sorted(times, key=lambda kind: -len(times[kind]))
    shown = {f"{kind} ({len(times[kind])})": times[kind] for kind in ordered[:_KINDS]}
    rest = [at for kind in ordered[_KINDS:] for at in times[kind]]
    if rest:
        shown[f"others ({len(rest)})"] = rest
    with plt.rc_context({"svg.hashsalt": "hv", "svg.fonttype": "none"}):
        figure, (above, below) = plt.subplots(
            2, 1, sharex=True, figsize=(11, 4 + 0.25 * trace.cpus), height_ratios=[3, 0.5 + 0.25 * trace.cpus]
        )
        above.hist(list(shown.values()), bins=_BINS, stacked=True, label=list(shown))
        above.set_ylabel("exits")
        above.set_yscale("symlog")
        above.legend(fontsize="small")
        above.set_title(title)
        below.eventplot(processors, lineoffsets=list(range(trace.cpus)), linelengths=0.8, linewidths=0.3)
        below.set_yticks(range(trace.cpus))
        below.set_ylabel("processor")
        below.set_xlabel("million ticks of the time-stamp counter")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        plt.close(figure)

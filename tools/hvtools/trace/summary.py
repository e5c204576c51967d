# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What a trace comes to: exits by reason and processor, and the places of the guest that they come from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hvtools.decode.words import exit_name
from hvtools.trace.records import Exit, Trace
from hvtools.trace.symbols import Symbols


@dataclass(frozen=True)
class Place:
    """Where exits come from.

    Attributes:
        name: function, or address.
        kind: what the exits are.
        count: how many.
        address: the most frequent one in it.
    """

    name: str
    kind: str
    count: int
    address: int


@dataclass(frozen=True)
class Summary:
    """The numbers.

    Attributes:
        by_kind: by kind, exits of each processor.
        by_reason: by kind and the manual's name.
        places: hottest first.
        ticks: of the time-stamp counter, from the first exit to the last.
        lost: exits that were overwritten.
    """

    by_kind: dict[str, list[int]]
    by_reason: Counter[tuple[str, str]]
    places: list[Place]
    ticks: int
    lost: int

    def as_json(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "exits": sum(sum(counts) for counts in self.by_kind.values()),
            "lost": self.lost,
            "ticks": self.ticks,
            "by_kind": self.by_kind,
            "by_reason": {f"{kind} {reason}": count for (kind, reason), count in self.by_reason.most_common()},
            "places": [vars(place) for place in self.places],
        }


def summarise(trace: Trace, vendor: str, symbols: Symbols | None, places: int) -> Summary:
    """Count a trace.

    Args:
        trace: its exits.
        vendor: "svm" or "vmx", for the names of exits.
        symbols: of the root's kernel, None to show addresses.
        places: how many of the hottest.
    """
    by_kind: dict[str, list[int]] = {}
    by_reason: Counter[tuple[str, str]] = Counter()
    hot: dict[tuple[str, str], Counter[int]] = {}
    for item in trace.exits:
        by_kind.setdefault(item.kind, [0] * trace.cpus)[item.cpu] += 1
        by_reason[item.kind, exit_name(vendor, item.code)] += 1
        hot.setdefault((_name(item, symbols), item.kind), Counter())[item.rip] += 1
    ordered = sorted(hot.items(), key=lambda pair: (-pair[1].total(), pair[0]))[:places]
    return Summary(
        dict(sorted(by_kind.items(), key=lambda pair: -sum(pair[1]))),
        by_reason,
        [Place(name, kind, found.total(), found.most_common(1)[0][0]) for (name, kind), found in ordered],
        trace.exits[-1].tsc - trace.exits[0].tsc if trace.exits else 0,
        trace.lost,
    )


def _name(item: Exit, symbols: Symbols | None) -> str:
    found = symbols.name(item.rip) if symbols is not None else None
    return found or f"{item.rip:#x}"

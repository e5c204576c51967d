# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The hypervisor's options, checked against the generated table before they reach it."""

from __future__ import annotations

from collections.abc import Mapping

from hvtools.errors import UsageError
from hvtools.generated.options import MAX_BYTES, OPTIONS, Option


def _allowed(option: Option, value: str) -> bool:
    if option.kind == "choice":
        return value in option.choices
    if option.none and value == "none":
        return True
    return value.isascii() and value.isdigit() and option.minimum <= int(value) <= option.maximum


def check(settings: Mapping[str, str], target: str = "DEBUG") -> None:
    """Refuse options that the hypervisor does not have.

    Args:
        settings: values by name.
        target: the build that gets them.

    Raises:
        UsageError: a name, value, or all of it together is wrong.
    """
    # Before the values: Python converts no number of thousands of digits.
    if len(" ".join(f"{name}={value}" for name, value in settings.items())) > MAX_BYTES:
        raise UsageError(f"all options together are longer than {MAX_BYTES} characters")
    for name, value in settings.items():
        option = OPTIONS.get(name)
        if option is None:
            raise UsageError(f"option {name}: no such option; there is {', '.join(OPTIONS)}")
        if not _allowed(option, value):
            raise UsageError(f"option {name}={value}: must be {option.shown}")
        if option.debug_only and target != "DEBUG":
            raise UsageError(f"option {name}: only DEBUG builds have this option")

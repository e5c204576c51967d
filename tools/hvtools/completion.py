# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Values that a shell completes."""

import click
from click.shell_completion import CompletionItem

from hvtools.generated.options import OPTIONS
from hvtools.machines.registry import PLATFORM_NAMES


def platforms(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Platforms, for `--on`."""
    return [CompletionItem(name) for name in PLATFORM_NAMES if name.startswith(typed)]


def settings(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Options of the hypervisor for `--set`, and their values once there is a `=`."""
    name, equals, _ = typed.partition("=")
    if not equals:
        return [
            CompletionItem(f"{name}=", help=option.text) for name, option in OPTIONS.items() if name.startswith(typed)
        ]
    choices = OPTIONS[name].choices if name in OPTIONS else ()
    return [CompletionItem(f"{name}={choice}") for choice in choices if f"{name}={choice}".startswith(typed)]

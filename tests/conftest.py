# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Order of the tests, and the signals that what they start begins with."""

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts in order to interrupt it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take milliseconds before those that boot a machine."""
    items.sort(key=lambda item: "unit" not in item.path.parts)

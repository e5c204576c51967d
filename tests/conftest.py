# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Order of the tests, and the signals that what they start begins with."""

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lab", metavar="FILE", help="run the boot tests on the box of this labgrid environment file")
    parser.addoption("--logs", metavar="DIR", help="folder for the logs of the boots, which are all kept")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts in order to interrupt it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that take milliseconds before those that boot a machine; for a box only those that boot one."""
    if config.getoption("--lab"):
        items[:] = [item for item in items if "platform" in getattr(item, "fixturenames", ())]
    items.sort(key=lambda item: "unit" not in item.path.parts)

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Order of the tests: those that take milliseconds before those that boot a machine."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "unit" not in item.path.parts)

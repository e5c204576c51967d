# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The pure libraries, compiled once for a test session."""

import pytest

from tests.unit.c.host import HostLibrary


@pytest.fixture(scope="session")
def hv(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    """The compiled libraries."""
    return HostLibrary(tmp_path_factory.mktemp("c"))

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The pure libraries and the core, compiled once for a test session."""

import pytest

from tests.unit.c.core_host import Core
from tests.unit.c.host import HostLibrary


@pytest.fixture(scope="session")
def hv(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    """The compiled libraries."""
    return HostLibrary(tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """The core on a machine without hardware."""
    return Core(tmp_path_factory.mktemp("core"))

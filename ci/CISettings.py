# SPDX-License-Identifier: BSD-2-Clause-Patent
"""stuart entry point for EDK2's checks of both packages: `stuart_ci_build -c ci/CISettings.py TOOL_CHAIN_TAG=GCC5`.

Those checks that run without the network: a spelling checker and Uncrustify would be fetched.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edk2toolext.invocables.edk2_ci_build import CiBuildSettingsManager

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stuart_settings import HvSettings  # noqa: E402

_FETCHED = (
    "edk2/.pytool/Plugin/SpellCheck",
    "edk2/.pytool/Plugin/UncrustifyCheck",
    "edk2/BaseTools/Bin",  # iasl and nasm, which the machine has
    "edk2/OvmfPkg/PlatformCI",
    "edk2/ArmVirtPkg/PlatformCI",
)


class HvCiSettings(HvSettings, CiBuildSettingsManager):
    """As for the build, with the scope of EDK2's checks. The names of the methods are stuart's."""

    def GetActiveScopes(self) -> tuple[str, ...]:
        """Ours, and that of the checks."""
        return (*super().GetActiveScopes(), "cibuild")

    def GetPackagesSupported(self) -> Iterable[str]:
        """Both packages of this repository."""
        return ["HvPkg", "ovmf"]

    def GetTargetsSupported(self) -> Iterable[str]:
        """What is built, and what is looked at without."""
        return [*super().GetTargetsSupported(), "NO-TARGET"]

    def GetPluginSettings(self) -> dict[str, Any]:
        """Nothing beside what the packages' own .ci.yaml files say."""
        return {}

    def GetSkippedDirectories(self) -> tuple[str, ...]:
        """What would be fetched is not looked at."""
        return (*super().GetSkippedDirectories(), *_FETCHED)

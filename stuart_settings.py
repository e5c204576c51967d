# SPDX-License-Identifier: BSD-2-Clause-Patent
"""stuart entry point for HvPkg: stuart_setup, stuart_update and stuart_build, with `-c stuart_settings.py`."""

import sys
from collections.abc import Iterable
from pathlib import Path

from edk2toolext.environment.uefi_build import UefiBuilder
from edk2toolext.invocables.edk2_platform_build import BuildSettingsManager
from edk2toolext.invocables.edk2_setup import RequiredSubmodule, SetupSettingsManager
from edk2toolext.invocables.edk2_update import UpdateSettingsManager

ROOT = Path(__file__).resolve().parent


class HvSettings(SetupSettingsManager, UpdateSettingsManager, BuildSettingsManager):
    """Where things are, and what can be built.

    The names of the methods are stuart's.
    """

    def GetName(self) -> str:
        """Names the build; it is in the names of the log files."""
        return "HvPkg"

    def GetWorkspaceRoot(self) -> str:
        """The clone."""
        return str(ROOT)

    def GetPackagesPath(self) -> Iterable[str]:
        """EDK2 is in the workspace, because stuart finds its BaseTools nowhere else."""
        return [str(ROOT / "edk2")]

    def GetActiveScopes(self) -> tuple[str, ...]:
        """Our own only: EDK2's scope `edk2-build` would fetch an assembler and iasl, which the machine has."""
        return ("hvpkg",)

    def GetSkippedDirectories(self) -> tuple[str, ...]:
        """Where stuart need not look for plugins."""
        return (".venv", ".hv", "Build", "Conf")

    def GetRequiredSubmodules(self) -> Iterable[RequiredSubmodule]:
        """None; but this is what `stuart_setup` asks for, so here EDK2 is brought into the workspace."""
        sys.path.insert(0, str(ROOT / "tools"))
        from hvtools import edk2

        edk2.ready(ROOT)
        return []

    def GetPackagesSupported(self) -> Iterable[str]:
        """The one package of this repository."""
        return ["HvPkg"]

    def GetArchitecturesSupported(self) -> Iterable[str]:
        """VMX and SVM in 64-bit mode."""
        return ["X64"]

    def GetTargetsSupported(self) -> Iterable[str]:
        """With and without ASSERT and DEBUG."""
        return ["DEBUG", "RELEASE"]


class HvBuilder(UefiBuilder):
    """The platform that is built; TARGET and TOOL_CHAIN_TAG can be given on the command line."""

    def SetPlatformEnv(self) -> int:
        """Sets what the command line did not."""
        self.env.SetValue("PRODUCT_NAME", "HvPkg", "The name of the platform")
        self.env.SetValue("ACTIVE_PLATFORM", "HvPkg/HvPkg.dsc", "The platform of this repository")
        self.env.SetValue("TARGET_ARCH", "X64", "The only architecture")
        self.env.SetValue("TARGET", "DEBUG", "The default; RELEASE is the other one")
        self.env.SetValue("TOOL_CHAIN_TAG", "GCC5", "The default")
        self.env.SetValue("BLD_*_HV_OVMF", "TRUE", "What is under ovmf too; HvPkg alone does not need it")
        return 0

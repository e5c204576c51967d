# SPDX-License-Identifier: BSD-2-Clause-Patent
"""stuart entry point for HvPkg: setup, update and build."""

import os
from collections.abc import Iterable
from pathlib import Path

from edk2toolext.environment.uefi_build import UefiBuilder
from edk2toolext.invocables.edk2_platform_build import BuildSettingsManager
from edk2toolext.invocables.edk2_setup import RequiredSubmodule, SetupSettingsManager
from edk2toolext.invocables.edk2_update import UpdateSettingsManager

ROOT = Path(__file__).resolve().parent


class HvSettings(SetupSettingsManager, UpdateSettingsManager, BuildSettingsManager):
    def GetName(self) -> str:
        return "HvPkg"

    def GetWorkspaceRoot(self) -> str:
        return str(ROOT)

    def GetPackagesPath(self) -> Iterable[str]:
        return [str(ROOT / "edk2")]

    def GetActiveScopes(self) -> tuple[str, ...]:
        return ("hvpkg",)

    def GetRequiredSubmodules(self) -> Iterable[RequiredSubmodule]:
        return []

    def GetPackagesSupported(self) -> Iterable[str]:
        return ["HvPkg"]

    def GetArchitecturesSupported(self) -> Iterable[str]:
        return ["X64"]

    def GetTargetsSupported(self) -> Iterable[str]:
        return ["DEBUG", "RELEASE"]

    def GetSkippedDirectories(self) -> tuple[str, ...]:
        return (".venv", "Build", "Conf")


class HvBuilder(UefiBuilder):
    def SetPlatformEnv(self) -> int:
        self.env.SetValue("ACTIVE_PLATFORM", "HvPkg/HvPkg.dsc", "the platform of this repository")
        self.env.SetValue("PRODUCT_NAME", "HvPkg", "name")
        self.env.SetValue("TARGET_ARCH", "X64", "the only architecture")
        self.env.SetValue("TOOL_CHAIN_TAG", "GCC5", "default")
        self.env.SetValue("TARGET", "DEBUG", "default")
        return 0

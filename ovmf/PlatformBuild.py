# SPDX-License-Identifier: BSD-2-Clause-Patent
"""stuart entry point for OVMF with HvDxe inside: `stuart_build -c ovmf/PlatformBuild.py`, `--FlashRom` boots it.

What OvmfPkg understands can be given as BLD_*_NAME=VALUE, such as BLD_*_FD_SIZE_2MB=1 or BLD_*_SECURE_BOOT_ENABLE=1.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stuart_settings import HvBuilder, HvSettings  # noqa: E402


class OvmfSettings(HvSettings):
    """As for HvPkg. The names of the methods are stuart's."""

    def GetName(self) -> str:
        """Names the build; it is in the names of the log files."""
        return "HvOvmf"


class OvmfBuilder(HvBuilder):
    """The platform that is built; TARGET and TOOL_CHAIN_TAG can be given on the command line."""

    def SetPlatformEnv(self) -> int:
        """Sets what the command line did not."""
        self.env.SetValue("PRODUCT_NAME", "HvOvmf", "The name of the platform")
        self.env.SetValue("ACTIVE_PLATFORM", "ovmf/HvOvmf.dsc", "OVMF and HvDxe")
        self.env.SetValue("BLD_*_TPM2_ENABLE", "TRUE", "It measures what it starts, where there is a TPM")
        return super().SetPlatformEnv()

    def FlashRomImage(self) -> int:
        """Boots Linux in QEMU from the image that was built."""
        image = Path(self.env.GetValue("BUILD_OUTPUT_BASE")) / "FV" / "OVMF.fd"
        command = [str(ROOT / "hv"), "boot", "--firmware", str(image), "--built-in"]
        command += ["--target", self.env.GetValue("TARGET")]
        if self.env.GetBuildValue("SECURE_BOOT_ENABLE") in ("TRUE", "1"):
            command.append("--secure-boot")  # there is no shell then
        return subprocess.run(command, cwd=ROOT).returncode

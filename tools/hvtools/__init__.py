# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The tools of HvPkg: set-up, build, boot, test, and the generator of its tables."""

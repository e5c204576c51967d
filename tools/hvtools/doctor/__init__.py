# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What this machine can run, and why not: `hv doctor`."""

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Programs that run inside the root guest."""

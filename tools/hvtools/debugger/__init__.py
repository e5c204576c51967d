# SPDX-License-Identifier: BSD-2-Clause-Patent
"""GDB on a machine: how it is started, and what it is taught."""

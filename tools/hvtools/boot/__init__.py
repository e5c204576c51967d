# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Booting: from a request to a result, through a machine's states."""

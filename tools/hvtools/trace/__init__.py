# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The trace of exits: read out of a machine's memory, counted, and drawn."""

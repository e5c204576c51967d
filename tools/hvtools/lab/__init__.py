# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Boxes in a lab, by labgrid: one as a machine, many at once, and emulated ones that stand for them."""

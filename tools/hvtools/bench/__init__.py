# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Measures what the hypervisor costs, in numbers that are the same on every machine where they can be."""

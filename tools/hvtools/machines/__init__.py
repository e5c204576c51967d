# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Machines as data: a typed specification, and platforms that turn it into something that runs."""

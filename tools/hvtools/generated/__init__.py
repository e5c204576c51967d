# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Python modules made from the tables under ``spec`` by `hv gen`; only this file is written by hand."""

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Disk images and initial RAM disks that the machines boot from."""

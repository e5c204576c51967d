# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Explains what a hypervisor, an emulator or KVM left behind: logs, register dumps, traces."""

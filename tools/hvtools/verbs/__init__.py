# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The verbs of `hv`: each module here offers its click command as `command`."""

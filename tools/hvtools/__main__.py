# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Lets `python -m hvtools` do what `hv` does."""

from hvtools.cli import main

if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Symbols of the pinned kernel, which Debian does not ship with it: the kernel itself has them in /proc/kallsyms."""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import tempfile
import zlib
from pathlib import Path

from hvtools import cache, linux, ui
from hvtools.boot.request import BootRequest
from hvtools.boot.runner import run
from hvtools.errors import HvError

APPEND = "nokaslr"
"""With it the kernel runs where it was linked, and its symbols are the same in each boot."""

# Functions only, and none of modules: a serial port is slow. The kernel is silent meanwhile.
_SCRIPT = """\
dmesg -n 1
echo symbols: begin
grep ' [tTwW] ' /proc/kallsyms | grep -v '\\[' | gzip -9 | base64
echo symbols: end
"""
_PRINTED = re.compile(r"hvcheck\| symbols: begin\n(.*)hvcheck\| symbols: end\n", re.DOTALL)
_FILE = "kallsyms"


def symbols_in(console: str) -> bytes:
    """Take the symbols out of what the script printed.

    Raises:
        HvError: they are not there, or not whole.
    """
    found = _PRINTED.search(console)
    if found is None:
        raise HvError("the kernel did not print its symbols: give a System.map by --symbols FILE")
    try:
        return gzip.decompress(base64.b64decode(re.sub(r"hvcheck\| |\n", "", found[1]), validate=True))
    except (OSError, EOFError, zlib.error, binascii.Error) as error:
        raise HvError(f"the kernel's symbols came damaged ({error}): run it again") from error


def kernel_symbols() -> Path:
    """Give a file with the symbols of the pinned kernel; the first time, a boot without the hypervisor brings it.

    Raises:
        HvError: it cannot be had.
    """
    kernel = linux.kernel()

    def fetch(tree: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="hv-symbols-") as folder, ui.step("booting once for the symbols"):
            script = Path(folder) / "script.sh"
            script.write_text(_SCRIPT)
            result = run(BootRequest(cpus=1, hypervisor=False, append=APPEND, script=script), Path(folder) / "logs")
            if result.failures:
                raise HvError(f"no boot for the kernel's symbols: {'; '.join(result.failures)}")
            (tree / _FILE).write_bytes(symbols_in(result.record.console))

    key = cache.key_of("kallsyms", kernel.package.sha256, _SCRIPT)
    return cache.default().tree(key, f"symbols of Linux {kernel.version}", fetch, check=(_FILE,)) / _FILE

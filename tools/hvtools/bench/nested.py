# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Nested tables: their size and how long they take to build, with HvPagingLib on this machine."""

from __future__ import annotations

import mmap
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hvtools.bench.figures import HOST, Figure, figure
from hvtools.errors import HvError
from hvtools.images.files import human_size
from hvtools.purelib import PureLibrary

_GIB = 1 << 30
_LEVELS = {"4k": 1, "2m": 2, "1g": 3}
_TABLE_ENTRIES = 512
_IMPORTS = """\
#include <Base.h>
#include <Library/BaseMemoryLib.h>
#include <Library/SynchronizationLib.h>

VOID *
EFIAPI
ZeroMem (
  OUT VOID   *Buffer,
  IN  UINTN  Length
  )
{
  return __builtin_memset (Buffer, 0, Length);
}

UINT32
EFIAPI
InterlockedCompareExchange32 (
  IN OUT volatile UINT32  *Value,
  IN     UINT32           CompareValue,
  IN     UINT32           ExchangeValue
  )
{
  return __sync_val_compare_and_swap (Value, CompareValue, ExchangeValue);
}

UINT64
EFIAPI
InterlockedCompareExchange64 (
  IN OUT volatile UINT64  *Value,
  IN     UINT64           CompareValue,
  IN     UINT64           ExchangeValue
  )
{
  return __sync_val_compare_and_swap (Value, CompareValue, ExchangeValue);
}
"""
"""What the library takes from MdePkg."""
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE  # faults are not what is measured
SIZES = tuple(_GIB << shift for shift in range(13))  # 1 GiB to 4 TiB


def _pages(size: int, level: int) -> int:
    """Tables of 4 levels for a range from 0: those of the leaves' level and above."""
    tables = 0
    entries = size >> (12 + 9 * (level - 1))
    for _ in range(level, 5):
        entries = -(-entries // _TABLE_ENTRIES)
        tables += entries
    return tables


def name_of(size: int) -> str:
    """The size as it stands in a figure's name."""
    return f"{size // _GIB}g" if size < 1024 * _GIB else f"{size // _GIB // 1024}t"


def room() -> int:
    """Bytes that tables may take: half of what the kernel says is there for the asking (proc(5), MemAvailable)."""
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024 // 2


def measure(most: int, missed: Callable[[str], None]) -> list[Figure]:
    """Map address spaces of 1 GiB to 4 TiB with leaves of each size.

    Args:
        most: bytes of tables; 4 TiB in pages of 4 KiB take 8 GiB.
        missed: is told what would take more.

    Raises:
        HvError: the library refuses.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="hv-bench-") as temporary:
        imports = Path(temporary) / "imports.c"
        imports.write_text(_IMPORTS)
        pure = PureLibrary(Path(temporary), ("Paging",), [imports])
        ffi, lib = pure.ffi, pure.lib
        attributes = pure.constants["HV_PAGE_RWX"] | pure.constants["HV_PAGE_TYPE_WB"]
        for text, level in _LEVELS.items():
            for size in SIZES:
                pages = _pages(size, level) + 1
                if pages << 12 > most:
                    tables = human_size(pages << 12)
                    missed(f"nested.{text}.{name_of(size)} is left out: its tables of {tables} do not fit")
                    continue
                memory = mmap.mmap(-1, pages << 12, _FLAGS)
                try:
                    view = ffi.from_buffer(memory)
                    pool, paging = ffi.new("HV_PAGE_POOL *"), ffi.new("HV_PAGING *")
                    base = int(ffi.cast("uintptr_t", view))
                    status = lib.HvPagePoolInit(pool, base, pages)
                    status = status or lib.HvPagingInit(paging, lib.HvPagingNpt4, pool, level, 48)
                    begin = time.perf_counter()
                    status = status or lib.HvPagingMap(paging, 0, 0, size, attributes)
                    spent = time.perf_counter() - begin
                    if status:
                        raise HvError(
                            f"HvPagingLib does not map {name_of(size)} in pages of {text}: status {status:#x}"
                        )
                    used = int(pool.Used) << 12
                finally:
                    del view
                    memory.close()
                found.append(figure(f"nested.{text}.{name_of(size)}.bytes", HOST, 0, "bytes", [used]))
                found.append(figure(f"nested.{text}.{name_of(size)}.build", HOST, 0, "seconds", [round(spent, 9)]))
    return found

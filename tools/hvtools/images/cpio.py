# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Archives for the kernel's initial RAM disk, the same bytes for the same contents.

The format is "newc" (Linux Documentation/driver-api/early-userspace/buffer-format.rst). Written here and not by cpio(1)
because device nodes need no privilege this way, and times and inode numbers do not leak into the archive.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

_ALIGN = 4
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One member.

    Attributes:
        path: without a leading slash.
        mode: type and permission bits.
        data: contents of a file or target of a symbolic link.
        device: (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    """Make a directory."""
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Make a file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    """Make a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Make a node of a character device."""
    return Entry(path, stat.S_IFCHR | permissions, b"", (major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def archive(entries: list[Entry]) -> bytes:
    """Join members in their order; directories that nobody listed are put in before their first member.

    Raises:
        ValueError: a path is absolute, leaves the archive or is there twice.
    """
    seen: set[str] = set()
    parts: list[bytes] = []

    def add(entry: Entry) -> None:
        seen.add(entry.path)
        parts.append(_member(entry, len(seen)))

    for entry in entries:
        steps = entry.path.split("/")
        if not all(steps) or "." in steps or ".." in steps:
            raise ValueError(f"{entry.path!r} is no path inside an archive")
        for depth in range(1, len(steps)):
            parent = "/".join(steps[:depth])
            if parent not in seen:
                add(directory(parent))
        if entry.path in seen:
            if stat.S_ISDIR(entry.mode):
                continue
            raise ValueError(f"{entry.path!r} is in the archive twice")
        add(entry)
    parts.append(_member(Entry(_TRAILER, 0), 0))
    return b"".join(parts)

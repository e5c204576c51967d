# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The startup script of the EFI system partition, and the marks by which its progress is followed.

The image boots the same without this tool, by hand or on a board: the script does everything, the marks only tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hvtools.errors import UsageError
from hvtools.generated.options import GUID, VARIABLE
from hvtools.images.initramfs import INIT

STARTUP = PurePosixPath("startup.nsh")
HYPERVISOR = PurePosixPath("HvDxe.efi")
STATUS = PurePosixPath("HvStatus.efi")
STARTER = PurePosixPath("HvStart.efi")
KERNEL = PurePosixPath("vmlinuz.efi")
INITRD = PurePosixPath("initrd.img")
APPLICATION_FOLDER = PurePosixPath("run")
ADD_FOLDER = PurePosixPath("add")

# Without no_timer_check the kernel's test of the timer fails now and then where emulated processors starve.
KERNEL_COMMAND = ("console=ttyS0,115200", "panic=-1", "no_timer_check", f"rdinit={INIT}")

_MARK = "hvboot:"
_STATUS_CODE = r"(0x[0-9A-Fa-f]+)"
AT_SHELL = re.compile(rf"{_MARK} shell\s")
LOADED = re.compile(rf"{_MARK} load {_STATUS_CODE}")
KERNEL_RETURNED = re.compile(rf"{_MARK} kernel {_STATUS_CODE}")
ENDED = re.compile(rf"{_MARK} end\s")
APPLICATION_BEGUN = re.compile(rf"{_MARK} run-begin\s")
# HvStart.c
STARTED = re.compile(r"HvStart: HvDxe ([^\n]*)")
REFUSED = "Secure Boot refuses its signature"
APPLICATION_ENDED = re.compile(rf"{_MARK} run-end {_STATUS_CODE}")

# UEFI Shell 2.2, 3.6.4: the caret takes its meaning from the character behind it. It is gone from what a program gets
# as its command line only before these two, so the others of the shell's own characters cannot be passed on.
_ESCAPED = re.compile(r"([#%])")
_NOT_PASSED = re.compile(r"[\^<>|]")


def quoted(text: str) -> str:
    """Write `text` so that the shell passes it on as it is.

    Raises:
        UsageError: it has characters that cannot be passed on.
    """
    if not text.isascii() or not text.isprintable():
        raise UsageError(f"{text!r}: only printable ASCII characters can be passed on by the UEFI shell")
    if match := _NOT_PASSED.search(text):
        raise UsageError(f"{text!r}: the UEFI shell does not pass on {match[0]}")
    if text.count('"') % 2:
        raise UsageError(f"{text!r}: a quotation mark is left open")
    return _ESCAPED.sub(r"^\1", text)


def _path(path: PurePosixPath) -> str:
    return "fs0:\\" + str(path).replace("/", "\\")


@dataclass(frozen=True)
class Linux:
    """Boot Linux; `append` are further words of its command line."""

    append: str = ""


@dataclass(frozen=True)
class Application:
    """Run one EFI program, and power off.

    Attributes:
        path: of the program.
        append: its command line.
        counters: print the hypervisor's behind it, whoever loaded that.
    """

    path: PurePosixPath
    append: str = ""
    counters: bool = True


@dataclass(frozen=True)
class Prompt:
    """Stop at the shell's prompt."""


Payload = Linux | Application | Prompt


def options_command(settings: Mapping[str, str]) -> str:
    """Give the shell command that leaves the hypervisor's options for it."""
    text = " ".join(f"{name}={value}" for name, value in settings.items())
    return f'setvar {VARIABLE} -guid {GUID} -nv -bs =S"{text}"'


def load_command() -> str:
    """Give the shell command that loads the hypervisor.

    HvDxe binds to no device: without -nc the shell connects every controller again, 110 million instructions on Bochs.
    """
    return f"load -nc {_path(HYPERVISOR)}"


def linux_command(append: str = "") -> str:
    """Give the shell command that starts the kernel."""
    words = [_path(KERNEL), f"initrd=\\{INITRD}", *KERNEL_COMMAND]
    if append.strip():
        words.append(quoted(append.strip()))
    return " ".join(words)


# The disk that the shell is from becomes fs0:. A mapping onto itself would be lost: the old one is deleted first.
_OWN_FS0 = ("if /i not %homefilesystem% == fs0: then", "map fs0 %homefilesystem%", "endif")


def startup_script(
    hypervisor: bool,
    settings: Mapping[str, str],
    payload: Payload,
    drivers: Sequence[PurePosixPath] = (),
    own_shell: bool = False,
) -> str:
    """Write the script.

    Args:
        hypervisor: load HvDxe first.
        settings: its options.
        payload: what follows.
        drivers: what the firmware lacks on this platform, loaded before everything else.
        own_shell: the shell is beside the script, on a disk that need not be the first one.
    """
    lines = ["@echo -off", *(_OWN_FS0 if own_shell else ()), "fs0:", f"echo {_MARK} shell"]
    lines += [f"load {_path(driver)}" for driver in drivers]
    if hypervisor:
        if settings:
            lines.append(options_command(settings))
        lines += [load_command(), f"echo {_MARK} load %lasterror%"]
    lines += _payload_lines(payload)
    return "".join(line + "\r\n" for line in lines)


def _payload_lines(payload: Payload) -> Sequence[str]:
    if isinstance(payload, Linux):
        return [linux_command(payload.append), f"echo {_MARK} kernel %lasterror%"]
    if isinstance(payload, Application):
        command = f"{_path(payload.path)} {quoted(payload.append.strip())}".strip()
        lines = [f"echo {_MARK} run-begin", command, f"echo {_MARK} run-end %lasterror%"]
        if payload.counters:
            lines.append(_path(STATUS))
        return [*lines, f"echo {_MARK} end", "reset -s"]
    return []

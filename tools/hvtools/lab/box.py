# SPDX-License-Identifier: BSD-2-Clause-Patent
"""One box of a lab as a platform: `lab:FILE`, the environment file of labgrid that describes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from labgrid import Environment

from hvtools.errors import HvError, UsageError
from hvtools.lab.machine import LabMachine
from hvtools.machines.registry import CAPABILITIES, HARDWARE, LAB, Box, Platform

if TYPE_CHECKING:
    from hvtools.lab.strategy import HvStrategy

_boxes: dict[str, HvStrategy] = {}
"""Those that this process has opened; labgrid would connect to the same place twice."""


def adopt(box: HvStrategy) -> str:
    """Make a box that labgrid has opened known as a platform, and give its name."""
    name = f"{LAB}{box.target.env.config_file}"
    _boxes[name] = box
    return name


def hang_of(name: str) -> str | None:
    """Say how it was seen that a box hangs; None if it was not."""
    return _boxes[name].hang if name in _boxes else None


def _open(name: str) -> HvStrategy:
    """Open the box of an environment file.

    Raises:
        UsageError: there is no such file, or it does not describe a box.
        HvError: its place cannot be had.
    """
    from hvtools.lab.strategy import HvStrategy

    path = Path(name.removeprefix(LAB))
    if not path.is_file():
        raise UsageError(f"the environment file {path} does not exist or is no file")
    try:
        target = Environment(str(path)).get_target()
    except Exception as error:  # of labgrid's many: the place is not there or not ours, a driver refuses its options
        kind = HvError if isinstance(error, ConnectionError) else UsageError
        raise kind(f"{path}: {_said(error)}") from error
    if target is None:
        raise UsageError(f"{path}: it has no target 'main'")
    found = [driver for driver in target.drivers if isinstance(driver, HvStrategy)]
    if not found:
        raise UsageError(f"{path}: its target 'main' has no HvStrategy among its drivers")
    return found[0]


def _said(error: BaseException) -> str:
    """Give what an error of labgrid has to say: where a driver refused its options, that is in its cause."""
    error = error.__cause__ or error
    said = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(said.split()).replace("HvStrategy.__init__()", "HvStrategy")


def lab_platform(name: str) -> Platform:
    """Make a platform of an environment file; the target's features are the box's capabilities.

    Args:
        name: `lab:` and the file.

    Raises:
        UsageError: the file does not describe a box.
        HvError: its place cannot be had.
    """
    if name not in _boxes:
        _boxes[name] = _open(name)
    box = _boxes[name]
    try:
        shell, _ = (None if file is None else box.file(file) for file in (box.shell, box.firmware))
    except FileNotFoundError as error:
        raise UsageError(f"{name.removeprefix(LAB)}: {error}") from error
    features = set(box.target.env.config.get_targets()[box.target.name].get("features", ()))
    if unknown := features - CAPABILITIES.keys():
        raise UsageError(f"{name.removeprefix(LAB)}: no capability {min(unknown)!r}: see {', '.join(CAPABILITIES)}")
    return Platform(
        name=name,
        vendor=box.vendor,
        capabilities=frozenset(features | {box.vendor}),
        cpu_model="its own",
        accelerator=HARDWARE,
        concurrent_accelerator=None,
        create=partial(LabMachine, box),
        plain_cpu="",
        patience=box.patience,
        box=Box(box.cpus, box.memory_mib, flash=box.flash is not None, shell=shell),
    )

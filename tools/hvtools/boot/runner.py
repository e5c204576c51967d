# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Runs a boot: collects the parts, builds the image, drives the machine, reads the result."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hvtools import build, linux, toolchain
from hvtools.boot import startup
from hvtools.boot.request import BootRequest
from hvtools.boot.result import BootRecord, BootResult, evaluate
from hvtools.boot.runs import in_use, runs_folder
from hvtools.boot.startup import Application, Linux, Payload
from hvtools.boot.strategy import BootStrategy, State, StrategyError
from hvtools.errors import HvError, UsageError
from hvtools.guest.build import self_check
from hvtools.images import disk, signing, variables
from hvtools.images.fat import build_volume
from hvtools.images.files import check_room
from hvtools.images.initramfs import build_initramfs
from hvtools.images.signing import Keys
from hvtools.machines.protocols import Ending, MachineError
from hvtools.machines.registry import Box, Listener, platform_named
from hvtools.machines.spec import MachineSpec

Observer = Callable[[State, float], None]

IMAGE = "esp.img"
FIRMWARE = "firmware.fd"
_INITRD_ROOM = 16 << 20  # bytes for the initial RAM disk without what the user adds
_RUNS_KEPT = 20


@dataclass(frozen=True)
class Parts:
    """The files that go onto the system partition; None for those that the request does without."""

    drivers: Mapping[PurePosixPath, Path]
    hypervisor: Path | None
    status: Path | None
    starter: Path | None
    kernel: Path | None
    busybox: Path | None
    check: Path | None


@functools.cache
def _images(target: str) -> Path:
    """Build once in a process, so that all the boots of a test run are of the same sources."""
    return build.ensure_built(target).folder


def symbols(target: str) -> Path:
    """Give the file with the hypervisor's symbols and line numbers.

    Raises:
        HvError: the build has none.
    """
    return _built(_images(target), startup.HYPERVISOR.with_suffix(".debug"))


def collect(request: BootRequest, debugger: bool = False) -> Parts:
    """Build and fetch what a request needs.

    Args:
        request: what is booted.
        debugger: GDB is going to be attached.

    Raises:
        HvError: something cannot be built or fetched.
    """
    toolchain.require("boot")
    platform = platform_named(request.platform)
    platform.prepare(debugger)
    for option, wanted in (("secure-boot", request.secure_boot), ("tpm", request.tpm)):
        if wanted:
            toolchain.require(option)
    hypervisor = status = starter = kernel = busybox = check = None
    drivers: dict[PurePosixPath, Path] = {}
    if (request.hypervisor or platform.drivers or request.starter) and request.disk is None:
        folder = _images(request.target)
        drivers = {name: _built(folder, name) for name in platform.drivers}
        if request.starter:
            starter = _built(folder, startup.STARTER)
    if request.hypervisor:
        if not request.built_in and request.disk is None:
            hypervisor = _built(folder, startup.HYPERVISOR)
        if request.application is not None:
            status = _built(folder, startup.STATUS)
    if request.application is None and request.disk is None:
        kernel = request.kernel or linux.kernel().path
        busybox = linux.busybox()
        check = self_check()
    return Parts(drivers, hypervisor, status, starter, kernel, busybox, check)


def _built(folder: Path, name: PurePosixPath) -> Path:
    path = folder / name
    if not path.is_file():
        raise HvError(f"the build left no {name} in {folder}")
    return path


def build_image(folder: Path, request: BootRequest, parts: Parts, payload: Payload, box: Box | None = None) -> Path:
    """Make the system partition of a boot.

    Args:
        folder: where the image goes.
        request: what is booted.
        parts: its files.
        payload: what the startup script does last.
        box: the real machine that it is for, which wants a whole disk, and may want a shell on it.

    Raises:
        UsageError: no room, or a name that FAT cannot hold.
    """
    shell = None if box is None else box.shell
    hypervisor, drivers = parts.hypervisor is not None, list(parts.drivers)
    script = startup.startup_script(hypervisor, request.settings, payload, drivers, own_shell=shell is not None)
    files: dict[PurePosixPath, Path | bytes] = {startup.STARTUP: script.encode("ascii"), **parts.drivers}
    if shell is not None:
        # It looks for the script where it was itself first.
        files |= {disk.START: shell, disk.START.with_name(startup.STARTUP.name): files.pop(startup.STARTUP)}
    if parts.hypervisor is not None:
        files[startup.HYPERVISOR] = parts.hypervisor
    if parts.status is not None:
        files[startup.STATUS] = parts.status
    if isinstance(payload, Application) and request.application is not None:
        files[payload.path] = request.application
    for path, source in request.added.items():
        files[startup.ADD_FOLDER / path] = source
    if parts.kernel is not None:
        files[startup.KERNEL] = parts.kernel
        files[startup.INITRD] = _initrd(folder, request, parts)
    image = folder / IMAGE
    (build_volume if box is None else disk.build_disk)(image, files)
    return image


def _initrd(folder: Path, request: BootRequest, parts: Parts) -> Path:
    assert parts.busybox is not None and parts.check is not None
    own = [request.initrd, request.script, *request.added.values()]
    check_room(folder, _INITRD_ROOM + sum(path.stat().st_size for path in own if path is not None))
    initrd = folder / startup.INITRD
    build_initramfs(initrd, parts.check, parts.busybox, request.script, request.added, request.initrd)
    return initrd


def build_signed_disk(folder: Path, request: BootRequest, parts: Parts, keys: Keys) -> Path:
    """Make the disk of a boot with Secure Boot: HvStart starts HvDxe and the kernel, all three signed.

    Args:
        folder: where the image goes.
        request: what is booted.
        parts: its files.
        keys: what they are signed with.

    Raises:
        UsageError: no room, or a name that FAT cannot hold.
    """
    assert parts.starter is not None
    command = " ".join([*startup.KERNEL_COMMAND, request.append])
    initrd = _initrd(folder, request, parts)
    files = disk.starter(parts.starter, parts.hypervisor, parts.kernel, initrd, command)
    for path, source in request.added.items():
        files[startup.ADD_FOLDER / path] = source
    image = folder / IMAGE
    disk.build_disk(image, signing.signed(keys, files, folder))
    return image


def _secure_flash(request: BootRequest, folder: Path, keys: Keys) -> Path:
    """Make the flash image, or the platform's variable store, with keys in it."""
    template = request.firmware or platform_named(request.platform).variables
    assert template is not None
    flash = Path(shutil.copyfile(template, folder / FIRMWARE))
    keys.enrol(flash)
    if request.settings:
        variables.write_options(flash, request.settings)
    return flash


def payload_of(request: BootRequest) -> Payload:
    """Say what the startup script does last."""
    if request.application is not None:
        program = startup.APPLICATION_FOLDER / request.application.name
        return Application(program, request.append, counters=request.hypervisor)
    return Linux(request.append)


@contextlib.contextmanager
def booting(
    request: BootRequest,
    folder: Path,
    payload: Payload | None = None,
    keep_image: bool = False,
    restart: bool = False,
    hold: bool = False,
    debugger: bool = False,
    observer: Observer | None = None,
    listener: Listener | None = None,
) -> Iterator[BootStrategy]:
    """Prepare a boot, and take the machine and the image away at the end, however it comes.

    Args:
        request: what is booted.
        folder: for the logs.
        payload: what the startup script does last, if not what the request says.
        keep_image: leave the image in `folder`.
        restart: a reset of the guest restarts the machine and does not end it.
        hold: the machine stands still with its memory when it has powered off.
        debugger: GDB is going to be attached.
        observer: called with each state that is reached.
        listener: called with each piece of console output.

    Yields:
        the strategy, at state off.
    """
    platform = request.checked()
    payload = payload or payload_of(request)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(in_use(build.ROOT)))
        parts = collect(request, debugger)
        for image in (request.disk, request.installed):
            if image is not None:
                disk.check_bootable(image)
        if keep_image:
            image_folder = folder
        else:
            image_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hv-boot-")))
        firmware, store = request.firmware, None
        if request.secure_boot:
            keys = signing.keys_in(request.keys or image_folder / "keys")
            flash = _secure_flash(request, image_folder, keys)
            firmware, store = (None, flash) if firmware is None else (flash, None)
            image = request.disk or build_signed_disk(image_folder, request, parts, keys)
        else:
            image = request.disk or build_image(image_folder, request, parts, payload, platform.box)
        if not request.secure_boot and firmware is not None and request.built_in and request.settings:
            firmware = Path(shutil.copyfile(firmware, image_folder / FIRMWARE))
            variables.write_options(firmware, request.settings)
        folder.mkdir(parents=True, exist_ok=True)
        machine = platform.create(
            MachineSpec(
                cpus=request.cpus,
                memory_mib=request.memory_mib,
                folder=folder,
                disk=image,
                cpu_model=request.processor,
                accelerator=request.accelerator,
                usb=request.disk is not None,
                installed=request.installed,
                devices=request.devices,
                restart=restart,
                hold=hold,
                debugger=debugger,
                firmware=firmware,
                variables=store,
                tpm=request.tpm,
            ),
            listener,
        )
        yield stack.enter_context(
            BootStrategy(
                machine,
                parts.hypervisor is not None and not request.starter,
                request.seconds,
                observer,
                hurry=not request.exact,
                shell=not request.starter,
            )
        )


def _digest(request: BootRequest) -> str | None:
    """Give what a TPM gets of HvDxe; None where it gets nothing, or of a file that is not ours."""
    if not request.tpm or not request.hypervisor or request.built_in or request.disk is not None:
        return None
    return signing.authenticode(_built(_images(request.target), startup.HYPERVISOR))


def run(
    request: BootRequest,
    folder: Path,
    keep_image: bool = False,
    observer: Observer | None = None,
    listener: Listener | None = None,
) -> BootResult:
    """Boot once, to the end.

    Args:
        request: what is booted.
        folder: for the logs.
        keep_image: leave the image in `folder`, too.
        observer: called with each state that is reached.
        listener: called with each piece of console output.

    Raises:
        UsageError: the request cannot be booted.
        HvError: something cannot be built or fetched. A boot that fails is a result, not an error.
    """
    platform = request.checked()
    result: BootResult | None = None
    try:
        with booting(request, folder, keep_image=keep_image, observer=observer, listener=listener) as strategy:
            error: StrategyError | None = None
            ending: Ending | None = None
            try:
                strategy.transition(State.ROOT)
                ending = strategy.finish()
            except StrategyError as failure:
                error = failure
            machine = strategy.machine
            record = BootRecord(
                vendor=platform.vendor,
                accelerator=request.accelerator or platform.accelerator,
                console=machine.console.text(),
                log=machine.hypervisor_log(),
                seconds=dict(strategy.seconds),
                load_status=strategy.load_status,
                ending=ending,
                error=error,
                console_path=machine.spec.console_log,
                log_path=machine.spec.hypervisor_log,
                digest=_digest(request),
            )
            result = evaluate(request, record)
    except MachineError as still_on:
        if result is None:
            raise
        result.failures.append(str(still_on))
    return result


def logs_folder(keep: Path | None, workspace: Path = build.ROOT) -> Path:
    """Make the folder for the logs of a run; of those that nobody asked to keep, the oldest go.

    Args:
        keep: where the user wants them.
        workspace: the clone.

    Raises:
        UsageError: the folder cannot be made.
    """
    if keep is None:
        parent = runs_folder(workspace)
        runs = sorted(parent.glob("20*-*")) if parent.is_dir() else []
        for old in runs[: -_RUNS_KEPT or None]:
            shutil.rmtree(old, ignore_errors=True)
        keep = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {keep}: {error.strerror}") from error
    return keep.absolute()

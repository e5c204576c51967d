# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv boot`: one machine, from power-on to its end."""

from dataclasses import replace
from pathlib import Path

import click

from hvtools import build, completion, report
from hvtools.boot import progress, runner
from hvtools.boot.request import DEFAULT_CPUS, DEFAULT_MEMORY_MIB, BootRequest, parse_added, parse_settings, size_of
from hvtools.errors import HvError, UsageError
from hvtools.generated.options import OPTIONS
from hvtools.machines.registry import DEFAULT_PLATFORM, LAB, PLATFORM_NAMES, platform_named

_EXAMPLES = """\
Examples:
  hv boot                                     Linux on four emulated processors with SVM
  hv boot --on bochs-vmx --cpus 2             on an emulated Intel processor
  hv boot --script check.sh --add data.bin    with a script and a file for it
  hv boot --set log=debug --keep run/         with more in the log; all logs in run/
  hv boot --secure-boot --tpm                 signed, checked and measured, with keys made for this boot
  hv boot --no-hv                             the same machine without the hypervisor"""
_FILE = click.Path(path_type=Path)
_WITHOUT_HVDXE = ("platform", "debian")  # both name the platform's own: an emulator's is Debian's OVMF
_OPTIONS_TEXT = "\n".join(
    f"  {name}={option.shown} (default {option.default}): {option.text}{'; DEBUG builds' * option.debug_only}"
    for name, option in OPTIONS.items()
)


@click.command(
    "boot",
    epilog=f"\b\n{_EXAMPLES}\n\n\b\nOptions of the hypervisor for --set:\n{_OPTIONS_TEXT}",
)
@click.option(
    "--on",
    "platform",
    shell_complete=completion.platforms,
    metavar="PLATFORM",
    default=DEFAULT_PLATFORM,
    help=f"{', '.join(PLATFORM_NAMES)}, or {LAB}FILE for a box in a lab.",
)
@click.option("--cpus", type=int, metavar="N", help=f"Processors ({DEFAULT_CPUS}).")
@click.option("--memory", type=int, metavar="MIB", help=f"RAM in MiB ({DEFAULT_MEMORY_MIB}).")
@click.option("--no-hv", is_flag=True, help="Boot without HvDxe, for comparison.")
@click.option(
    "--firmware",
    metavar="F",
    default="platform",
    help="platform: its own (the default); debian: the same, where that is Debian's OVMF; ours: OVMF with HvDxe "
    "inside, built if need be; or a flash image.",
)
@click.option("--built-in", is_flag=True, help="The flash image of --firmware has HvDxe inside: do not load it.")
@click.option("--secure-boot", is_flag=True, help="Sign everything, and have the firmware check signatures.")
@click.option(
    "--keys", type=_FILE, metavar="DIR", help="Keys for that, made there if it does not exist; else new ones each time."
)
@click.option("--tpm", is_flag=True, help="With a TPM 2.0: check that HvDxe is measured.")
@click.option("--disk", type=_FILE, metavar="F", help="Disk image to boot as it is, such as one of `hv image`.")
@click.option("--installed", type=_FILE, metavar="F", help="Image of a second disk, with an installed boot loader.")
@click.option("--kernel", type=_FILE, metavar="F", help="EFI-stub kernel instead of the pinned one.")
@click.option("--initrd", type=_FILE, metavar="F", help="Initial RAM disk below the self-check.")
@click.option("--append", default="", metavar="S", help="More of the kernel's command line, or that of --run.")
@click.option("--script", type=_FILE, metavar="F", help="Shell script to run as root in Linux; its exit code counts.")
@click.option("--run", "application", type=_FILE, metavar="F.efi", help="EFI program to run instead of Linux.")
@click.option("--add", "added", multiple=True, metavar="F[:DEST]", help="File for /add, on the ESP and in Linux.")
@click.option("--cpu", "cpu_model", metavar="SPEC", help="The emulator's processor model and flags.")
@click.option("--accel", "accelerator", metavar="SPEC", help="The emulator's accelerator, e.g. tcg,thread=multi.")
@click.option("--device", "devices", multiple=True, metavar="SPEC", help="A further device, e.g. edu or intel-iommu.")
@click.option(
    "--set",
    "settings",
    shell_complete=completion.settings,
    multiple=True,
    metavar="OPTION=VALUE",
    help="Option of the hypervisor, see below.",
)
@click.option(
    "--target", type=click.Choice(build.TARGETS, case_sensitive=False), default="DEBUG", help="Build of HvDxe (DEBUG)."
)
@click.option("--exact", is_flag=True, help="Press no key and avoid what is random: two runs on Bochs are the same.")
@click.option(
    "--timeout",
    type=float,
    metavar="S",
    help="Seconds for all of it (120 and 4 for each processor, on Bochs twice that).",
)
@report.json_option
@click.option("--keep", type=_FILE, metavar="DIR", help="Folder for all logs and the image.")
@click.option("-v", "--verbose", is_flag=True, help="Show the machine's console while it runs.")
def command(
    platform: str,
    cpus: int | None,
    memory: int | None,
    no_hv: bool,
    firmware: str,
    built_in: bool,
    secure_boot: bool,
    keys: Path | None,
    tpm: bool,
    disk: Path | None,
    installed: Path | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    script: Path | None,
    application: Path | None,
    added: tuple[str, ...],
    cpu_model: str | None,
    accelerator: str | None,
    devices: tuple[str, ...],
    settings: tuple[str, ...],
    target: str,
    exact: bool,
    timeout: float | None,
    json_file: Path | None,
    keep: Path | None,
    verbose: bool,
) -> int:
    """Boot Linux under HvDxe, check from inside that every processor is under it, and power off.

    Ends with a summary, and exit code 1 if anything was not as it should be.
    """
    ours = firmware == "ours"
    offered = platform_named(platform)
    if firmware == "debian" and offered.box is not None:
        raise UsageError("--firmware debian: a box in a lab has its own: say --firmware platform")
    if built_in and firmware in _WITHOUT_HVDXE:
        raise UsageError("--built-in: the platform's own firmware has no HvDxe inside")
    own_cpus, own_memory = size_of(offered)
    request = BootRequest(
        platform=platform,
        cpus=own_cpus if cpus is None else cpus,
        memory_mib=own_memory if memory is None else memory,
        hypervisor=not no_hv,
        firmware=None if ours or firmware in _WITHOUT_HVDXE else Path(firmware),
        built_in=ours or built_in,
        secure_boot=secure_boot,
        keys=keys,
        tpm=tpm,
        disk=disk,
        installed=installed,
        kernel=kernel,
        initrd=initrd,
        append=append,
        script=script,
        application=application,
        added=parse_added(added),
        cpu_model=cpu_model,
        accelerator=accelerator,
        devices=devices,
        settings=parse_settings(settings),
        timeout=timeout,
        target=target,
        exact=exact,
    )
    request.checked()
    if ours:
        request = replace(request, firmware=build.ovmf_image(target, secure_boot=secure_boot))
    folder = runner.logs_folder(keep)
    with progress.Progress(request, verbose) as shown:
        result = runner.run(request, folder, keep_image=keep is not None, observer=shown.reached, listener=shown.heard)
    # Before anything is printed: whoever reads that may leave.
    report.write(folder / "result.json", result.as_json())
    report.write(json_file, result.as_json())
    progress.print_result(result)
    if result.failures:
        error = HvError("; ".join(result.failures))
        done = result.checks.script_exit
        error.step = f"its output is in {folder}/console.log" if done else f"`hv decode {folder}` explains the logs"
        raise error
    return 0

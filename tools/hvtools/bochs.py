# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Bochs: built once for all clones from Debian's source package, or somebody's own, and in both cases tried out.

It is the one emulator that has VMX and SVM. No distribution builds it with both, with many processors and without a
graphical interface.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hvtools import apt, cache, ui
from hvtools.errors import CorruptError, HvError, NoSpaceError, NotThereError, UsageError
from hvtools.follow import follow

VERSION = "3.0"
SUITE = "trixie"
TAR = f"bochs_{VERSION}+dfsg.orig.tar.xz"
TAR_SHA256 = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b"
OPTIONS = (
    "--with-nogui",
    "--enable-smp",
    "--enable-cpu-level=6",
    "--enable-x86-64",
    "--enable-all-optimizations",
    "--enable-pci",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-avx",
    "--enable-evex",
    "--enable-memtype",
    "--enable-protection-keys",
    "--enable-monitor-mwait",
    "--enable-usb",
    "--enable-usb-xhci",
    "--enable-e1000",
    "--enable-cdrom",
    "--disable-docbook",
)
# Bochs' own default has debug information too: twice the time to compile.
_FLAGS = ("CFLAGS=-O2", "CXXFLAGS=-O2")
_OLDEST = (3, 0)
_PROGRAM = "bin/bochs"

VMX_MODEL = "corei7_skylake_x"
SVM_MODEL = "ryzen"

_VERSION = re.compile(r"Bochs x86 Emulator (\d+)\.(\d+)")
_MESSAGE = re.compile(r"exiting with the following message:\s*\n(?:\[[^\]]*\] *)?(.*)")
_COMPILED = re.compile(r"^(?:gcc|g\+\+|cc|c\+\+) .*-c .*?([\w/+.-]+\.(?:cc|c))(?: |$)")
_PROBE_SECONDS = 20.0  # it takes 0.03 s

# A ROM that says by CPUID, in two digits on port 0xE9, whether the processor has VMX and SVM, and switches off.
_PROBE_CODE = bytes.fromhex(
    "66b801000000"  # mov  eax, 1
    "0fa2"  #         cpuid
    "66c1e905"  #     shr  ecx, 5                bit 5: VMX
    "e81c00"  #       call digit
    "66b801000080"  # mov  eax, 0x80000001
    "0fa2"  #         cpuid
    "66c1e902"  #     shr  ecx, 2                bit 2: SVM
    "e80d00"  #       call digit
    "ba0089"  #       mov  dx, 0x8900            Bochs' port for switching off
    "be3400"  #       mov  si, word
    "b90800"  #       mov  cx, 8
    "f32e6e"  #       rep outsb cs:
    "f4"  #           hlt
    "88c8"  #   digit: mov  al, cl
    "2401"  #         and  al, 1
    "0430"  #         add  al, '0'
    "e6e9"  #         out  0xe9, al
    "c3"  #           ret
) + (b"Shutdown")
_RESET_VECTOR = 0xFFF0
_NO_VGA_ROM = bytes(512)  # without the signature of an option ROM; Bochs wants a file
_PROBE_ROM = _PROBE_CODE.ljust(_RESET_VECTOR, b"\0") + bytes.fromhex("e90d00").ljust(16, b"\0")  # jmp to the first byte


@dataclass(frozen=True)
class Bochs:
    """A Bochs that has what we need."""

    program: Path
    origin: str
    """Where it comes from, for people."""
    version: str


def _options(debugger: bool) -> tuple[str, ...]:
    """Options of the build: the GDB stub and more than one processor exclude each other."""
    if not debugger:
        return OPTIONS
    return (*(option for option in OPTIONS if option != "--enable-smp"), "--enable-gdb-stub")


def _key(options: tuple[str, ...]) -> str:
    return cache.key_of("bochs", TAR_SHA256, *options, *_FLAGS)


def provide(debugger: bool = False) -> Bochs:
    """Bochs: $HV_BOCHS if set, else the one in the cache, which is built if it is not there.

    Args:
        debugger: the one with a GDB stub, which has one processor only. It is always ours.

    Raises:
        UsageError: $HV_BOCHS is none that we can use; the message says what it lacks.
        HvError: it cannot be had or built.
    """
    own = os.environ.get("HV_BOCHS")
    if own and not debugger:
        return _own(own)
    store = cache.default()
    options = _options(debugger)
    name = f"Bochs {VERSION} with its GDB stub" if debugger else f"Bochs {VERSION}"
    cpus = 1 if debugger else 2
    tree = store.tree(_key(options), name, lambda made: _build(store, made, name, options, cpus), check=(_PROGRAM,))
    return Bochs(tree / _PROGRAM, name, VERSION)


def find() -> Bochs | None:
    """Bochs as `provide` gives it, if nothing has to be built for it.

    Raises:
        UsageError: $HV_BOCHS is none that we can use.
    """
    if own := os.environ.get("HV_BOCHS"):
        return _own(own)
    tree = cache.default().find(_key(OPTIONS))
    return Bochs(tree / _PROGRAM, f"Bochs {VERSION}", VERSION) if tree else None


def _own(value: str) -> Bochs:
    """Somebody's own Bochs: a command, or the path of one."""
    found = shutil.which(value)
    if found is None:
        raise UsageError(f"HV_BOCHS: {value} is no program")
    program = Path(found).absolute()
    try:
        version = check(program)
    except HvError as error:
        raise UsageError(f"HV_BOCHS: {program} cannot be used: {error.line}") from error
    return Bochs(program, f"HV_BOCHS={value}", version)


def _build(store: cache.Cache, into: Path, name: str, options: tuple[str, ...], cpus: int) -> None:
    """Builds Bochs into an empty folder; only the program itself stays."""
    tar = store.fetch(TAR_SHA256, TAR, lambda folder: _download(store, folder))
    with tempfile.TemporaryDirectory(dir=into.parent, prefix="bochs-") as temporary, ui.step(_title(name)) as step:
        source = Path(temporary)
        step.update("unpacking")
        _run(["tar", "-x", "-J", "-f", str(tar), "--strip-components=1"], source, step)
        step.update("configure")
        _run(["./configure", *options, *_FLAGS], source, step)
        _run(["make", f"-j{os.cpu_count() or 1}"], source, step)
        program = into / _PROGRAM
        program.parent.mkdir()
        shutil.copy2(source / "bochs", program)
        check(program, cpus)


def _title(name: str) -> str:
    return f"building {name} (once, 1 to 2 minutes)"


def _download(store: cache.Cache, folder: Path) -> Path:
    """Brings Debian's source: whichever version of the package has the tar file with our checksum."""
    archive = apt.Archive(store, SUITE, "deb-src")
    files = [file for file in archive.source_files("bochs") if file.name == TAR]
    for file in files:
        if file.sha256 == TAR_SHA256:
            with ui.step(f"fetching Bochs {VERSION} (source package {file.version}, 4 MB)"):
                return archive.download_source(file, folder)
    if files:
        raise CorruptError(f"the package archive's {TAR} has another checksum than Bochs {VERSION} is known by")
    raise NotThereError(f"the package archive answers, but {SUITE} does not have {TAR}")


def _run(command: list[str], folder: Path, step: ui.Step) -> None:
    """Runs one command of the build."""
    compiled = 0

    def progress(line: str) -> None:
        nonlocal compiled
        if found := _COMPILED.match(line):
            compiled += 1
            step.update(f"{compiled} files: {found[1]}")

    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "CFLAGS", "CXXFLAGS")}
    code, output = follow(command, folder, environment, progress)
    if code != 0:
        raise build_error(Path(command[0]).name, output)


def build_error(command: str, output: list[str]) -> HvError:
    """The error that stands behind a failed command of the build."""
    if any("No space left on device" in line for line in output):
        return NoSpaceError(f"no space left in the cache for Bochs {VERSION}")
    told = [line for line in output if re.search(r"\berror\b", line, re.IGNORECASE)] or output[-1:] or ["no output"]
    return HvError(f"Bochs {VERSION} does not build: {command}: {told[0]}")


def check(program: Path, cpus: int = 2) -> str:
    """Tries a Bochs out: runs a ROM of a few instructions on both models.

    Args:
        program: the program.
        cpus: how many processors it must be able to have.

    Returns:
        Its version.

    Raises:
        HvError: it is too old, or lacks something; the message says what.
    """
    version = ""
    with tempfile.TemporaryDirectory(prefix="hv-bochs-") as temporary:
        rom = Path(temporary) / "probe.rom"
        rom.write_bytes(_PROBE_ROM)
        rom.with_name("vga.rom").write_bytes(_NO_VGA_ROM)
        for model, wanted in ((VMX_MODEL, "VMX"), (SVM_MODEL, "SVM")):
            said, complaint = _probe(program, rom, model, cpus)
            version = version or read_version(said + complaint)
            judge(model, wanted, said, complaint)
    return version


def _probe(program: Path, rom: Path, model: str, cpus: int) -> tuple[str, str]:
    """What the ROM said on a model, and what Bochs itself said."""
    configuration = rom.with_name("bochsrc")
    configuration.write_text(
        "display_library: nogui\n"
        f"cpu: model={model}, count={cpus}\n"
        "memory: guest=32, host=32\n"
        f'romimage: file="{rom}"\n'
        f'vgaromimage: file="{rom.with_name("vga.rom")}"\n'
        "port_e9_hack: enabled=1\n"
        "clock: sync=none\n"
        "log: -\n"
        "panic: action=fatal\n"
        "info: action=ignore\n"
    )
    try:
        result = subprocess.run(
            [str(program), "-q", "-f", str(configuration)],
            cwd=rom.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise HvError(f"it does not end by itself on the model {model}") from None
    except OSError as error:
        raise HvError(f"it does not run: {error.strerror}") from error
    return result.stdout, result.stderr


def read_version(text: str) -> str:
    """The version in what Bochs prints.

    Raises:
        HvError: it is too old, or not Bochs.
    """
    match = _VERSION.search(text)
    if match is None:
        raise HvError(f"it does not say that it is Bochs: {' '.join(text.split())[:200] or 'it says nothing'}")
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise HvError(f"it is version {match[1]}.{match[2]}, and {_OLDEST[0]}.{_OLDEST[1]} is the oldest that works")
    return f"{match[1]}.{match[2]}"


def judge(model: str, wanted: str, said: str, complaint: str) -> None:
    """Reads the answer of the ROM.

    Args:
        model: the model that it ran on.
        wanted: "VMX" or "SVM".
        said: what it wrote.
        complaint: what Bochs itself wrote.

    Raises:
        HvError: the model, or its virtualization, is not there.
    """
    reason = _MESSAGE.search(complaint)
    digits = re.search(r"([01])([01])$", said.rstrip())  # Bochs puts its banner before it
    if digits is None or "shutdown requested" not in complaint:
        raise HvError(f"the model {model} does not run: {reason[1].strip() if reason else 'it gives no reason'}")
    if digits[1 if wanted == "VMX" else 2] != "1":
        raise HvError(f"the model {model} is without {wanted}: it was built without it")

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Machine specifications, what QEMU is told of them, and how its end is read. No emulator runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvtools import cli
from hvtools.doctor.check import Check, Mark
from hvtools.doctor.kvm import Kvm, examine
from hvtools.errors import UsageError
from hvtools.machines import registry
from hvtools.machines.protocols import Cause
from hvtools.machines.qemu import DEFAULT_ACCELERATOR, DEFAULT_CPU, Firmware, console_pipes, ending_of, qemu_arguments
from hvtools.machines.registry import CAPABILITIES, PLATFORMS, kvm_platform, platform_named, platforms_with
from hvtools.machines.spec import MAX_CPUS, MachineSpec

MONITOR, ATTACH = 9, 10


def spec(**changes: object) -> MachineSpec:
    fields: dict[str, object] = {"cpus": 4, "memory_mib": 512, "folder": Path("logs"), "disk": Path("esp.img")}
    return MachineSpec(**(fields | changes))  # type: ignore[arg-type]


def arguments(**changes: object) -> list[str]:
    return qemu_arguments(spec(**changes), Firmware(Path("code.fd"), Path("vars.fd")), MONITOR, ATTACH)


def values_of(option: str, words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


@pytest.mark.parametrize("cpus", [0, -1, MAX_CPUS + 1])
def test_impossible_processor_counts_are_refused(cpus: int) -> None:
    with pytest.raises(ValueError, match=f"{cpus} CPUs: must be 1 to 255"):
        spec(cpus=cpus)


@pytest.mark.parametrize("memory", [0, 127, (1 << 20) + 1])
def test_impossible_memory_sizes_are_refused(memory: int) -> None:
    with pytest.raises(ValueError, match=f"{memory} MiB of memory"):
        spec(memory_mib=memory)


def test_numbers_come_from_the_spec() -> None:
    words = arguments(cpus=255, memory_mib=6144)
    assert values_of("-smp", words) == ["255"]
    assert values_of("-m", words) == ["6144M"]


def test_defaults_are_a_single_thread_and_a_processor_with_svm() -> None:
    words = arguments()
    assert values_of("-accel", words) == ["tcg,thread=single"]
    assert values_of("-cpu", words) == [DEFAULT_CPU]
    assert "+svm" in DEFAULT_CPU and "-monitor" in DEFAULT_CPU


def test_model_and_accelerator_can_be_chosen() -> None:
    words = arguments(cpu_model="qemu64,-svm", accelerator="tcg,thread=multi")
    assert values_of("-cpu", words) == ["qemu64,-svm"]
    assert values_of("-accel", words) == ["tcg,thread=multi"]


def test_counting_instructions_is_an_option_of_its_own() -> None:
    words = arguments(accelerator="tcg,icount:shift=3,sleep=off")
    assert values_of("-accel", words) == ["tcg"] and values_of("-icount", words) == ["shift=3,sleep=off"]
    assert values_of("-icount", arguments()) == []


def test_processors_are_stopped_until_the_monitor_says_so() -> None:
    assert "-S" in arguments()


def test_secure_boot_is_another_firmware_that_alone_writes_its_variables() -> None:
    words = arguments(variables=Path("keys.fd"))
    code, store = (word for word in values_of("-drive", words) if word.startswith("if=pflash"))
    assert "secboot" in code and "readonly=on" in code
    assert "file=keys.fd" in store and "snapshot=on" in store
    assert values_of("-machine", words) == ["q35,smm=on"]
    assert values_of("-global", words) == ["driver=cfi.pflash01,property=secure,value=on"]


def test_a_tpm_is_on_the_channel_that_is_given() -> None:
    words = qemu_arguments(spec(tpm=True), Firmware(), MONITOR, ATTACH, tpm=11)
    assert "socket,id=tpm,fd=11" in values_of("-chardev", words)
    assert "tpm-crb,tpmdev=tpm0" in values_of("-device", words)
    assert values_of("-tpmdev", arguments()) == []


def test_no_file_is_written_but_the_logs() -> None:
    drives = values_of("-drive", arguments())
    assert len(drives) == 3
    assert all("snapshot=on" in drive or "readonly=on" in drive for drive in drives)


def test_serial_ports_come_in_order_console_first() -> None:
    words = arguments()
    assert values_of("-serial", words) == ["chardev:console", "chardev:second"]
    chardevs = values_of("-chardev", words)
    assert "pipe,id=console,path=logs/console" in chardevs
    assert "socket,id=monitor,fd=9" in chardevs
    assert "socket,id=attach,fd=10,server=on,wait=off" in chardevs
    assert values_of("-mon", words) == ["chardev=monitor,mode=control", "chardev=attach,mode=control"]
    assert "file,id=debug,path=logs/hypervisor.log" in chardevs
    assert "isa-debugcon,iobase=0x402,chardev=debug" in values_of("-device", words)


def test_a_comma_in_a_path_is_doubled() -> None:
    words = arguments(disk=Path("a,b.img"), folder=Path("x,y"))
    assert any(drive.endswith("file=a,,b.img") for drive in values_of("-drive", words))
    assert "file,id=debug,path=x,,y/hypervisor.log" in values_of("-chardev", words)


@pytest.mark.parametrize(("restart", "action"), [(False, "reboot=shutdown"), (True, "reboot=reset")])
def test_a_reset_ends_the_machine_unless_it_may_restart(restart: bool, action: str) -> None:
    assert values_of("-action", arguments(restart=restart)) == [f"{action},shutdown=poweroff"]


def shutdown(reason: str) -> dict[str, object]:
    return {"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}}


@pytest.mark.parametrize(
    ("events", "log", "status", "errors", "cause"),
    [
        ([{"event": "RESUME"}, shutdown("guest-shutdown")], "", 0, "", Cause.POWEROFF),
        ([shutdown("guest-reset")], "CPU Reset (CPU 0)\n", 0, "", Cause.REBOOT),
        ([shutdown("guest-reset")], "CPU Reset (CPU 0)\nTriple fault\nCPU Reset (CPU 0)\n", 0, "", Cause.TRIPLE_FAULT),
        ([], "", -11, "qemu: odd\n", Cause.CRASHED),
        ([{"event": "RESUME"}], "", 1, "", Cause.CRASHED),
    ],
)
def test_endings_are_told_apart(
    events: list[dict[str, object]], log: str, status: int, errors: str, cause: Cause
) -> None:
    assert ending_of(events, log, status, errors).cause is cause


def test_a_crash_names_signal_and_last_words() -> None:
    detail = ending_of([], "", -11, "first\nqemu: last words\n\n").detail
    assert "SIGSEGV" in detail and detail.endswith("qemu: last words")


def test_platforms_are_found_by_capability() -> None:
    assert "qemu-svm" in {platform.name for platform in platforms_with({"svm", "smp", "linux"})}
    for capability in CAPABILITIES:
        assert all(capability in platform.capabilities for platform in platforms_with({capability}))


def test_a_capability_that_does_not_exist_is_no_silent_nothing() -> None:
    with pytest.raises(ValueError, match="unknown capabilities"):
        platforms_with({"smv"})


def test_an_unknown_platform_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=f"no platform 'vax': there is .*{next(iter(PLATFORMS))}"):
        platform_named("vax")


@pytest.mark.parametrize("vendor", ["svm", "vmx"])
def test_kvm_is_the_same_machine_with_another_accelerator(vendor: str) -> None:
    platform = kvm_platform(Kvm([], vendor))
    assert platform.vendor == vendor and {vendor, "hypervisor", "linux"} <= platform.capabilities
    machine = platform.create(spec(), None)
    changed = qemu_arguments(machine.spec, Firmware(Path("code.fd"), Path("vars.fd")), MONITOR, ATTACH)
    assert {pair for pair in zip(arguments(), changed, strict=True) if pair[0] != pair[1]} == {
        (DEFAULT_ACCELERATOR, "kvm"),
        (DEFAULT_CPU, "host,host-phys-bits=on"),
    }
    own = platform.create(spec(cpu_model=platform.plain_cpu, accelerator="kvm,x=y"), None)
    assert own.spec.cpu_model == f"host,host-phys-bits=on,-{vendor}" and own.spec.accelerator == "kvm,x=y"


def test_kvm_is_refused_with_the_doctors_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kvm([Check("nested", Mark.BAD, "off", "nested=1")], None)
    monkeypatch.setattr(registry, "_kvm", lambda: found)
    with pytest.raises(UsageError, match=r"^--on kvm: nested: off \(nested=1\)$"):
        platform_named("kvm")
    assert "kvm" not in {platform.name for platform in platforms_with({"linux"})}
    monkeypatch.setattr(registry, "_kvm", lambda: Kvm([], "vmx"))
    assert "kvm" in {platform.name for platform in platforms_with({"vmx", "linux"})}
    assert "kvm" not in {platform.name for platform in platforms_with({"svm", "linux"})}


def test_the_command_line_refuses_kvm_where_the_doctor_does(capsys: pytest.CaptureFixture[str]) -> None:
    found = examine()
    if found.ready:
        assert platform_named("kvm").vendor == found.vendor
        return
    assert cli.run(["boot", "--on", "kvm"]) == 2
    assert capsys.readouterr().err == f"hv: error: --on kvm: {found.reason}\n"


def test_pipes_carry_both_ways_and_their_names_go_away(tmp_path: Path) -> None:
    with console_pipes(tmp_path / "console") as (heard, typed):
        theirs_out = os.open(tmp_path / "console.out", os.O_RDWR)
        theirs_in = os.open(tmp_path / "console.in", os.O_RDWR)
    assert list(tmp_path.iterdir()) == []
    for _ in range(100_000):
        os.write(theirs_out, b"x")  # one by one, nobody reads yet, and it does not block
    os.write(typed, b"y")
    assert os.read(theirs_in, 10) == b"y"
    os.close(theirs_out)
    received = 0
    while data := os.read(heard, 65536):
        received += len(data)
    assert received == 100_000
    for descriptor in (heard, typed, theirs_in):
        os.close(descriptor)

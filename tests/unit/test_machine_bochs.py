# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What Bochs is told of a machine, and how its end is read. No emulator runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvtools import cache
from hvtools.errors import HvError, UsageError
from hvtools.machines import bochs
from hvtools.machines.bochs import (
    SVM_CPU,
    VMX_CPU,
    BochsMachine,
    Firmware,
    Processor,
    configuration,
    ending_of,
    firmware_image,
    parse_processor,
)
from hvtools.machines.protocols import Cause
from hvtools.machines.registry import PLATFORMS
from hvtools.machines.spec import MachineSpec

POWERED_OFF = "04222414934p[ACPI  ] >>PANIC<< ACPI control: soft power off\n"
TRIPLE_FAULT = "00012345678p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n"
RESET = "{tick:011}i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called\n"


def spec(**changes: object) -> MachineSpec:
    fields: dict[str, object] = {"cpus": 4, "memory_mib": 512, "folder": Path("logs"), "disk": Path("esp.img")}
    return MachineSpec(**(fields | changes))  # type: ignore[arg-type]


def lines(default_cpu: str = SVM_CPU, **changes: object) -> dict[str, str]:
    text = configuration(spec(**changes), default_cpu, Path("OVMF.fd"), 4321)
    found = [line.partition(": ") for line in text.splitlines()]
    assert len({name for name, _, _ in found}) == len(found), "every line says something else"
    return {name: value for name, _, value in found}


def values(line: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in line.split(", "))


def test_numbers_come_from_the_spec() -> None:
    found = lines(cpus=7, memory_mib=6144)
    assert values(found["cpu"])["count"] == "7"
    assert values(found["memory"]) == {"guest": "6144", "host": "2048"}
    assert values(lines()["memory"]) == {"guest": "512", "host": "512"}


def test_the_default_processors_have_virtualization_and_no_mwait() -> None:
    assert values(lines(VMX_CPU)["cpu"])["model"] == "corei7_skylake_x"
    cpu = values(lines(SVM_CPU)["cpu"])
    assert cpu["model"] == "ryzen" and cpu["exclude_features"] == '"mwait mwaitx"'
    assert "add_features" not in cpu


def test_the_processor_can_be_chosen() -> None:
    cpu = values(lines(cpu_model="haswell,-mwait,+smap,-x2apic")["cpu"])
    assert cpu["model"] == "haswell"
    assert cpu["exclude_features"] == '"mwait x2apic"' and cpu["add_features"] == '"smap"'
    assert parse_processor("haswell") == Processor("haswell")


@pytest.mark.parametrize(
    "text", ["", "a b", "ryzen,svm", "ryzen,", "ryzen,-", 'ryzen,-a"b', "ryzen\npanic: x", "ryzen,-$HOME"]
)
def test_a_processor_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--cpu"):
        parse_processor(text)


def test_another_accelerator_is_refused() -> None:
    with pytest.raises(UsageError, match="one way to execute"):
        lines(accelerator="tcg")
    assert lines(accelerator=bochs.ACCELERATOR)


@pytest.mark.parametrize("name", ['a"b', "a$HOME", "a\nb"])
def test_a_path_that_the_configuration_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no path"):
        lines(disk=Path(name))
    with pytest.raises(UsageError, match="no path"):
        lines(folder=Path(name))


def test_the_image_is_not_written_to() -> None:
    disk = values(lines(disk=Path("a folder/esp.img"))["ata0-master"])
    assert disk["mode"] == "volatile" and disk["path"] == '"a folder/esp.img"'


def test_the_console_is_a_socket_and_the_second_port_a_file() -> None:
    found = lines()
    assert values(found["com1"]) == {"enabled": "1", "mode": "socket-client", "dev": "127.0.0.1:4321"}
    assert values(found["com2"])["dev"] == '"logs/serial2.log"'


def test_nothing_depends_on_the_host_s_clock() -> None:
    assert values(lines()["clock"])["sync"] == "none"
    assert values(lines()["clock"])["time0"].isdigit()


def test_resets_are_logged_and_a_triple_fault_restarts_only_if_asked() -> None:
    assert values(lines()["info"])["pc_system"] == "report"
    assert values(lines()["cpu"])["reset_on_triple_fault"] == "0"
    assert values(lines(restart=True)["cpu"])["reset_on_triple_fault"] == "1"


def test_power_off_has_its_tick() -> None:
    ending = ending_of(RESET.format(tick=0) + POWERED_OFF, 1, False)
    assert ending.cause is Cause.POWEROFF and ending.ticks == 4222414934


def test_a_triple_fault_is_no_crash() -> None:
    ending = ending_of(TRIPLE_FAULT, 1, False)
    assert ending.cause is Cause.TRIPLE_FAULT and "triple fault" in ending.detail and ending.ticks == 12345678


def test_a_reset_is_told_from_a_kill() -> None:
    log = RESET.format(tick=0) + RESET.format(tick=77)
    assert ending_of(log, -9, True).cause is Cause.REBOOT
    ending = ending_of(log, -9, False)
    assert ending.cause is Cause.CRASHED and "SIGKILL" in ending.detail


def test_any_other_panic_is_a_crash_with_its_words() -> None:
    panic = "00000000777p[CPU1  ] >>PANIC<< EFER.LMA is set when CR0.PE=0\n"
    ending = ending_of(panic, 1, False)
    assert ending.cause is Cause.CRASHED and "EFER.LMA is set when CR0.PE=0" in ending.detail and ending.ticks == 777
    assert "no message" in ending_of("", 1, False).detail


def test_the_hypervisor_s_log_is_found_among_the_firmware_s_lines(tmp_path: Path) -> None:
    machine = BochsMachine(spec(folder=tmp_path))
    assert machine.hypervisor_log() == ""
    machine.spec.second_serial_log.write_bytes(
        b"\x1b[2J\x1b[01;01HFS0:\\> load HvDxe.efi\r\nFS0:\\> hv: info cpu0 start version=0.1\r\n"
        b"HvDxe: no\r\nhv: info cpu1 x\n"
    )
    assert machine.hypervisor_log() == "hv: info cpu0 start version=0.1\nhv: info cpu1 x\n"


def test_a_machine_that_is_off_can_be_switched_off(tmp_path: Path) -> None:
    machine = BochsMachine(spec(folder=tmp_path))
    machine.power.off()
    with pytest.raises(HvError, match="off"):
        assert machine.console


def test_the_firmware_is_joined_once_variables_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.Cache(tmp_path / "cache")
    monkeypatch.setattr(cache, "default", lambda: store)
    (tmp_path / "vars").write_bytes(b"VARS")
    (tmp_path / "code").write_bytes(b"CODE")
    missing = Firmware(tmp_path / "vars", tmp_path / "none")
    there = Firmware(tmp_path / "vars", tmp_path / "code")
    image = firmware_image((missing, there))
    assert image.read_bytes() == b"VARSCODE" and firmware_image((there,)) == image
    (tmp_path / "code").write_bytes(b"NEWER")
    assert firmware_image((there,)).read_bytes() == b"VARSNEWER"
    with pytest.raises(HvError, match="hv setup"):
        firmware_image((missing,))
    store.close()


@pytest.mark.parametrize("vendor", ["vmx", "svm"])
def test_both_vendors_are_platforms(vendor: str) -> None:
    platform = PLATFORMS[f"bochs-{vendor}"]
    assert platform.vendor == vendor and vendor in platform.capabilities and "smp" in platform.capabilities
    assert parse_processor(platform.plain_cpu).excluded[-1] == vendor
    assert [str(driver) for driver in platform.drivers] == ["BochsAcpiDxe.efi"]

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Requests: what is refused, and what the startup script of the others says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from click.testing import CliRunner

from hvtools.boot import options, runner, startup
from hvtools.boot.request import BootRequest, parse_added, parse_settings
from hvtools.errors import UsageError
from hvtools.generated.options import OPTIONS
from hvtools.verbs.boot import command


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"platform": "vax"}, "no platform 'vax'"),
        ({"cpus": 0}, "0 CPUs: must be 1 to 255"),
        ({"cpus": 256}, "256 CPUs: must be 1 to 255"),
        ({"memory_mib": 16}, "16 MiB of memory"),
        ({"kernel": Path("none/vmlinuz")}, "the kernel none/vmlinuz does not exist"),
        ({"initrd": Path("none")}, "the initial RAM disk none does not exist"),
        ({"script": Path("/")}, "the script / is no file"),
        ({"application": Path("none.efi")}, "the application none.efi does not exist"),
        ({"added": {PurePosixPath("x"): Path("none")}}, "the file to add none does not exist"),
        ({"added": {PurePosixPath("../x"): Path(__file__)}}, "no path inside the image"),
        ({"settings": {"nested_pages": "4k"}}, "option nested_pages: no such option; there is nested_page, log"),
        ({"settings": {"nested_page": "3k"}}, r"option nested_page=3k: must be auto\|4k\|2m\|1g"),
        ({"settings": {"fail_cpu": "-1"}}, "option fail_cpu=-1: must be none or 0 to 65535"),
        ({"settings": {"fail_cpu": "65536"}}, "option fail_cpu=65536: must be"),
        ({"settings": {"fail_cpu": "1"}, "target": "RELEASE"}, "only DEBUG builds"),
        ({"settings": {"log": "info"}, "hypervisor": False}, "--set is for the hypervisor"),
        ({"application": Path(__file__), "script": Path(__file__)}, "--run boots no Linux.*--script"),
        ({"application": Path(__file__), "initrd": Path(__file__)}, "--run boots no Linux.*--initrd"),
        ({"append": "a\nb"}, "printable ASCII"),
        ({"append": "a|b"}, r"does not pass on \|"),
        ({"append": 'a="b'}, "quotation mark"),
        *(
            ({"timeout": float(seconds)}, "--timeout must be more than 0 seconds, and at most 604800")
            for seconds in ("0", "-1", "nan", "inf", "1e12")
        ),
        ({"platform": "bochs-vmx", "secure_boot": True}, "--secure-boot: bochs-vmx cannot do that"),
        ({"platform": "bochs-svm", "tpm": True}, "--tpm: bochs-svm cannot do that"),
        ({"keys": Path("keys")}, "--keys is for --secure-boot"),
        ({"secure_boot": True, "application": Path(__file__)}, "--secure-boot boots Linux"),
        ({"secure_boot": True, "disk": Path(__file__)}, "--disk needs the --keys"),
    ],
)
def test_what_cannot_be_booted_is_refused_with_one_line(fields: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        BootRequest(**fields).checked()
    assert "\n" not in str(refused.value)


def test_every_option_accepts_all_its_values_and_its_default() -> None:
    for name, option in OPTIONS.items():
        for value in {*option.choices, option.default}:
            options.check({name: value})
        if option.kind == "number":
            for number in (option.minimum, option.maximum):
                options.check({name: str(number)})


def test_the_limit_grows_with_the_processors() -> None:
    assert BootRequest(cpus=8).seconds > BootRequest(cpus=1).seconds
    assert BootRequest(cpus=8, timeout=5).seconds == 5


def test_files_to_add_are_split_at_the_last_colon(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.write_text("")
    assert parse_added([f"{tmp_path}/x:sub/y", f"{tmp_path}/z", str(odd)]) == {
        PurePosixPath("sub/y"): tmp_path / "x",
        PurePosixPath("z"): tmp_path / "z",
        PurePosixPath("a:b"): odd,
    }


@pytest.mark.parametrize("text", ["x:", ":y", ""])
def test_half_an_addition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FILE or FILE:DESTINATION"):
        parse_added([text])


def test_two_files_cannot_have_one_destination() -> None:
    with pytest.raises(UsageError, match="both a/x and b/x would be x"):
        parse_added(["a/x", "b/x"])


def test_settings_are_split_at_the_first_equals_sign() -> None:
    assert parse_settings(["log=debug", "log=info", "a=b=c"]) == {"log": "info", "a": "b=c"}
    for wrong in ("log", "=x", ""):
        with pytest.raises(UsageError, match="OPTION=VALUE"):
            parse_settings([wrong])


def lines(hypervisor: bool, settings: Mapping[str, str], payload: startup.Payload) -> list[str]:
    text = startup.startup_script(hypervisor, settings, payload)
    assert text.endswith("\r\n")
    return text.splitlines()


def test_linux_starts_after_the_hypervisor_with_its_options() -> None:
    script = lines(True, {"log": "debug", "nested_page": "4k"}, startup.Linux("quiet"))
    assert script == [
        "@echo -off",
        "fs0:",
        "echo hvboot: shell",
        'setvar HvOptions -guid 5c1bd2a3-8f0e-4c57-9a9b-0d6d3c1f7e21 -nv -bs =S"log=debug nested_page=4k"',
        "load -nc fs0:\\HvDxe.efi",
        "echo hvboot: load %lasterror%",
        "fs0:\\vmlinuz.efi initrd=\\initrd.img console=ttyS0,115200 panic=-1 no_timer_check rdinit=/hvtools/init quiet",
        "echo hvboot: kernel %lasterror%",
    ]


def test_without_hypervisor_nothing_is_loaded() -> None:
    script = "\n".join(lines(False, {}, startup.Linux()))
    assert "HvDxe" not in script and "setvar" not in script and "HvStatus" not in script


def test_a_shell_on_the_medium_makes_it_the_first_file_system() -> None:
    script = startup.startup_script(True, {}, startup.Prompt(), own_shell=True).split("\r\n")
    assert script[1:5] == ["if /i not %homefilesystem% == fs0: then", "map fs0 %homefilesystem%", "endif", "fs0:"]
    assert not any("map" in line for line in lines(True, {}, startup.Prompt()))


def test_an_application_is_followed_by_the_counters_and_power_off() -> None:
    script = lines(True, {}, startup.Application(PurePosixPath("run/X.efi")))
    assert script[-6:] == [
        "echo hvboot: run-begin",
        "fs0:\\run\\X.efi",
        "echo hvboot: run-end %lasterror%",
        "fs0:\\HvStatus.efi",
        "echo hvboot: end",
        "reset -s",
    ]


@pytest.mark.parametrize(("hypervisor", "built_in"), [(True, False), (True, True), (False, False)])
def test_counters_are_printed_wherever_there_is_a_hypervisor(hypervisor: bool, built_in: bool) -> None:
    request = BootRequest(application=Path("X.efi"), hypervisor=hypervisor, built_in=built_in)
    script = lines(hypervisor and not built_in, {}, runner.payload_of(request))
    assert ("fs0:\\HvStatus.efi" in script) is hypervisor


def test_an_application_has_a_command_line() -> None:
    script = lines(False, {}, startup.Application(PurePosixPath("run/X.efi"), " seed=1 50% "))
    assert "fs0:\\run\\X.efi seed=1 50^%" in script


def test_special_characters_are_kept_from_the_shell() -> None:
    assert startup.quoted('a#b 100% "x y"') == 'a^#b 100^% "x y"'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "vax"], "no platform 'vax'"),
        (["--cpus", "0"], "0 CPUs"),
        (["--set", "x=y"], "option x: no such option"),
        (["--kernel", "/none"], "the kernel /none does not exist"),
    ],
)
def test_the_verb_checks_before_it_does_anything(arguments: list[str], said: str, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    result = CliRunner().invoke(command, [*arguments, "--keep", str(keep)])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(said)
    assert not keep.exists()


def test_the_help_lists_every_option_of_the_hypervisor() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for name, option in OPTIONS.items():
        assert f"{name}={option.shown}" in text

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""What the root does with its machine in a long life: no processor ever runs outside of the hypervisor.

The long variants are marked slow; how many rounds they have depends on how fast the platform is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

from hvtools import build, linux
from hvtools.boot import startup
from hvtools.boot.checks import CheckReport, parse_kernels
from hvtools.boot.shell import EfiShell
from hvtools.boot.strategy import State
from hvtools.machines.protocols import ConsoleTimeoutError
from hvtools.machines.registry import platform_named

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Session

pytestmark = pytest.mark.needs("hypervisor")

CPUS = 4
KEXEC_SECONDS = 40.0  # limits of time on a loaded host, not what it takes
REBOOT_SECONDS = 60.0

LONG = 3 * 3600.0

FEW = "few"
MANY = pytest.param("many", marks=pytest.mark.slow)


def rounds(platform: str, how_many: str, few: int, many: int, many_slow: int) -> int:
    """How often; `many` on a platform that is fast."""
    if how_many == FEW:
        return few
    return many if "fast" in platform_named(platform).capabilities else many_slow


def assert_all_virtualised(report: CheckReport, cpus: int = CPUS) -> None:
    assert report.errors == []
    assert report.online == cpus
    assert [check.virtualised for check in report.cpus["start"]] == [True] * cpus
    assert report.status is not None and report.status.virtualised == cpus


KEXEC = """
set -e
line=$(cat /proc/cmdline)
left=${line##*kexec_left=}
[ $left = 0 ] && exit 0
# The files of the initial RAM disk, without what is mounted over them.
mkdir -p /mnt
mount --bind / /mnt
(cd /mnt && find . -path ./tmp/initrd -o -print | cpio -o -H newc) > /tmp/initrd
hvcheck kexec /add/vmlinuz /tmp/initrd "${line%kexec_left=*}kexec_left=$((left - 1))"
"""


# The TSC of Bochs' AMD models runs ahead of its timer, and Linux 6.1 gives it up while it starts processors. One that
# waits for the synchronization of its TSC in that moment waits for ever, and the boot processor for it.
KEXEC_WORDS = "tsc=reliable"


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("how_many", [FEW, MANY])
def test_kexec_keeps_every_processor(boot: Boot, platform: str, script: Callable[[str], Path], how_many: str) -> None:
    count = rounds(platform, how_many, few=2, many=100, many_slow=5)
    limit = (count + 4) * KEXEC_SECONDS * platform_named(platform).patience
    result = boot(
        cpus=CPUS,
        script=script(KEXEC),
        append=f"{KEXEC_WORDS} kexec_left={count}",
        added={PurePosixPath("vmlinuz"): linux.kernel().path},
        timeout=limit,
    ).must_be_ok()
    assert len(result.earlier) == count
    for report in (*result.earlier, result.checks):
        assert_all_virtualised(report)
    exits = [report.latest_exits()[0].total() for report in (*result.earlier, result.checks)]
    assert exits == sorted(exits), "the same hypervisor all the time"


END = """
case " $(cat /proc/cmdline) " in
*" hvend=reboot "*) reboot -f ;;
*" hvend=panic "*) echo c > /proc/sysrq-trigger ;;
esac
"""

# Words of the kernel's command line. `bios` is missing: it jumps to a BIOS, which such a machine does not have.
WAYS = {
    "acpi": "reboot=acpi hvend=reboot",
    "keyboard": "reboot=kbd hvend=reboot",
    "triple": "reboot=triple hvend=reboot",
    "efi": "reboot=efi hvend=reboot",
    "pci": "reboot=pci hvend=reboot",
    "panic": "hvend=panic",
}
HARD_WAYS = ("triple", "pci")


def ways(platform: str) -> list[str]:
    """The words for each way that the platform's firmware comes back from."""
    hard = "hard-reset" in platform_named(platform).capabilities
    return [words for name, words in WAYS.items() if hard or name not in HARD_WAYS]


def reboot(session: Session, platform: str, script: Path, words: list[str]) -> None:
    """Boot in one machine with each of `words`, by which each boot but the last, without words, ends in a reset."""
    limit = (len(words) + 1) * REBOOT_SECONDS * platform_named(platform).patience
    with session(restart=True, cpus=CPUS, script=script, timeout=limit) as strategy:
        strategy.transition(State.HYPERVISOR)
        for ending in words:
            EfiShell(strategy).type(startup.linux_command(ending))
            strategy.expect([re.compile(r"hvcheck: script-begin")])
            strategy.expect([re.compile("any other key to continue")])
            strategy.machine.console.send("\r")
            _, match = strategy.expect([startup.LOADED])
            assert int(match[1], 16) == 0, f"after {ending}"
        EfiShell(strategy).type(startup.linux_command())
        strategy.expect([re.compile(r"hvcheck: done")])
        reports = parse_kernels(strategy.machine.console.text())
    assert len(reports) == len(words) + 1
    for report in reports:
        assert_all_virtualised(report)


def test_a_reset_by_keyboard_and_by_panic_starts_everything_again(
    session: Session, platform: str, script: Callable[[str], Path]
) -> None:
    reboot(session, platform, script(END), [WAYS["keyboard"], WAYS["panic"]])


@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_many_reboots_of_each_kind(session: Session, platform: str, script: Callable[[str], Path]) -> None:
    words = ways(platform)
    count = rounds(platform, "many", few=0, many=100, many_slow=len(words))
    reboot(session, platform, script(END), [words[index % len(words)] for index in range(count)])


# The load: two programs for each processor, that compute and that make system calls.
STORM = """
set -e
for cpu in 0 1 2 3; do
    while :; do :; done &
    dd if=/dev/zero of=/dev/null bs=512 2>/dev/null &
done
for round in $(seq ROUNDS); do
    for cpu in 1 2 3; do
        echo 0 > /sys/devices/system/cpu/cpu$cpu/online
        [ "$(cat /sys/devices/system/cpu/cpu$cpu/online)" = 0 ]
    done
    for cpu in 3 1 2; do
        echo 1 > /sys/devices/system/cpu/cpu$cpu/online
        [ "$(cat /sys/devices/system/cpu/cpu$cpu/online)" = 1 ]
    done
    [ $((round % 20)) != 0 ] || echo round=$round
done
kill $(jobs -p)
echo rounds=$round
hvcheck
"""


@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_a_storm_of_processors_that_go_off_and_on_under_load(
    boot: Boot, platform: str, script: Callable[[str], Path]
) -> None:
    count = rounds(platform, "many", few=0, many=500, many_slow=10)
    result = boot(cpus=CPUS, script=script(STORM.replace("ROUNDS", str(count))), timeout=LONG).must_be_ok()
    assert f"rounds={count}\n" in result.checks.script_output
    assert result.checks.script_output.count("signature=HvPkgHvPkgHv") == CPUS
    assert_all_virtualised(result.checks)


# SLP_TYP 1 is suspend to RAM on the machines that have it, and a reset on Bochs. The second byte of PM1_CNT has it.
SLEEP = """
set -e
echo states=$(cat /sys/power/mem_sleep)
port=$(sed -n 's/^ *\\([0-9a-f]*\\)-.* PM1a_CNT_BLK$/0x\\1/p' /proc/ioports)
before=$(hvcheck port $port 2)
hvcheck port $port 2 $((before | 0x2400))
hvcheck port $port 4 $((before | 0x2400))
echo changed=$((before ^ $(hvcheck port $port 2)))
hvcheck port $((port + 1)) 1 0x24
hvcheck port $port 2 $before
hvcheck
"""


@pytest.mark.everywhere
def test_suspend_to_ram_is_hidden_and_a_request_for_it_is_dropped(boot: Boot, script: Callable[[str], Path]) -> None:
    """The firmware of Bochs resumes nothing, so nothing is guarded there if nobody asks for it."""
    result = boot(cpus=CPUS, script=script(SLEEP), settings={"sleep_guard": "always"}).must_be_ok()
    output = result.checks.script_output
    assert output.splitlines()[:2] == ["states=[s2idle]", f"changed={1 << 10}"], output
    assert output.count("signature=HvPkgHvPkgHv") == CPUS
    refused = [line for line in result.log if line.event == "sleep-refused"]
    assert len(refused) == 3 and result.exits["io"] >= 6, result.report()


@pytest.mark.everywhere
@pytest.mark.needs("process")
def test_sleep_is_guarded_where_something_resumes(boot: Boot, platform: str) -> None:
    log = boot().must_be_ok().log
    guarded = [line for line in log if line.event == "sleep"]
    reasons = [line.fields["reason"] for line in log if line.event == "sleep-unguarded"]
    if "s3" in platform_named(platform).capabilities:
        assert len(guarded) == 1 and reasons == []
    else:
        assert guarded == [] and reasons == ["the firmware resumes nothing"]


@pytest.mark.slow
@pytest.mark.needs("s3")
def test_a_hypervisor_in_the_firmware_finds_the_sleep_ports_when_there_are_tables(
    boot: Boot, script: Callable[[str], Path]
) -> None:
    """It starts before the firmware has any ACPI table."""
    result = boot(firmware=build.ovmf_image(), built_in=True, cpus=CPUS, script=script(SLEEP), timeout=900).must_be_ok()
    output = result.checks.script_output
    assert output.splitlines()[:2] == ["states=[s2idle]", f"changed={1 << 10}"], output
    events = [line.event for line in result.log]
    assert (
        events.index("sleep-unguarded")
        < events.index("launch-done")
        < events.index("sleep")
        < events.index("boot-done")
    )
    assert events.count("sleep-refused") == 3 and result.exits["io"] >= 6, result.report()


@pytest.mark.slow
@pytest.mark.needs("s3")
def test_without_hypervisor_the_machine_can_suspend_to_ram(boot: Boot, script: Callable[[str], Path]) -> None:
    result = boot(cpus=1, hypervisor=False, script=script("cat /sys/power/mem_sleep\n")).must_be_ok()
    assert "deep" in result.checks.script_output


# Every sleep that is left is one in which the processors only wait. A character on the console ends it.
IDLE = """
set -e
echo enabled > /sys/class/tty/ttyS0/power/wakeup
echo mem > /sys/power/state
echo slept=$(cat /sys/power/suspend_stats/success)
hvcheck
"""


def test_suspend_to_idle_keeps_every_processor(session: Session, script: Callable[[str], Path]) -> None:
    with session(cpus=CPUS, script=script(IDLE)) as strategy:
        strategy.transition(State.HYPERVISOR)
        EfiShell(strategy).type(startup.linux_command())
        strategy.expect([re.compile(r"hvcheck: script-begin")])
        while strategy.remaining > 0:
            # One that comes too early wakes nothing.
            strategy.machine.console.send("x")
            try:
                strategy.machine.console.expect([re.compile(r"hvcheck\| slept=1")], timeout=1)
                break
            except ConsoleTimeoutError:
                continue
        strategy.expect([re.compile(r"hvcheck: done")])
        (report,) = parse_kernels(strategy.machine.console.text())
    assert report.script_exit == 0 and report.script_output.count("signature=HvPkgHvPkgHv") == CPUS
    assert_all_virtualised(report)

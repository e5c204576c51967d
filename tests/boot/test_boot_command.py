# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv boot` where something is wrong: one clear line, the right exit code, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hvtools.boot.request import parse_added
from hvtools.images import cpio
from hvtools.machines.qemu import EMULATOR

if TYPE_CHECKING:
    from tests.boot.conftest import Boot, Hv

LIMIT = 60.0


def emulator_of(pid: int) -> int:
    """The emulator that a process started; it must have one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {int(child): Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode() for child in children}
    (found,) = [child for child, name in names.items() if name.endswith((EMULATOR, "/bochs"))]
    return found


def wait_for_line(process: subprocess.Popen[str], part: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if part in line:
            return
    raise AssertionError(f"{part!r} was not printed")


def ends(pidfd: int) -> bool:
    """Whether a process ends within the limit."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(LIMIT * 1000))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "nothing"], "no platform 'nothing'"),
        (["--cpus", "0"], "0 CPUs: must be 1 to 255"),
        (["--cpus", "256"], "256 CPUs: must be 1 to 255"),
        (["--cpus", "four"], "'four' is not a valid integer"),
        (["--kernel", "missing"], "the kernel missing does not exist"),
        (["--set", "colour=red"], "option colour: no such option; there is nested_page"),
        (["--set", "nested_page=3k"], "option nested_page=3k: must be"),
        (["--frobnicate"], "No such option"),
        (["--no-hv", "--cpu", "nonesuch"], "the emulator refuses this machine"),
        (["--no-hv", "--accel", "nonesuch"], "the emulator refuses this machine"),
        (["--no-hv", "--on", "bochs-svm", "--cpu", "nonesuch"], "the emulator refuses this machine"),
        (["--no-hv", "--on", "bochs-svm", "--cpu", "ryzen svm"], "'ryzen svm' is no name of a model"),
        (["--no-hv", "--on", "bochs-svm", "--accel", "tcg"], "Bochs has one way to execute code only"),
        (["--exact"], "--exact: qemu-svm does not count ticks"),
        (["--no-hv", "--json", "no/such/folder.json"], "no/such/folder.json"),
        (["--no-hv", "--keep", "/dev/null/x"], "cannot make the folder /dev/null/x"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(hv: Hv, arguments: list[str], said: str) -> None:
    done = hv("boot", *arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("hv: error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and said in errors[0]
    assert "Traceback" not in done.stderr
    assert list(hv.temporary.iterdir()) == []


def test_no_disk_space_is_one_line_and_leaves_nothing(hv: Hv) -> None:
    folder = shlex.quote(str(hv.temporary))
    verb = shlex.join(hv.command("boot", "--no-hv"))
    shell = f"mount -t tmpfs -o size=2m none {folder} && {verb}; code=$?; ls -A {folder}; exit $code"
    done = subprocess.run(
        ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "sh", "-c", shell],
        env=hv.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "unshare" not in done.stderr, f"this test needs user name spaces or root: {done.stderr}"
    assert done.returncode == 2, done.stderr
    assert "hv: error: no disk space in" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "", "left behind"


@pytest.mark.everywhere
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.needs("process")
def test_an_interrupt_in_mid_boot_leaves_nothing(platform: str, hv: Hv, number: signal.Signals, code: int) -> None:
    with hv.start("boot", "--on", platform, "--no-hv", "--json", "out.json") as process:
        wait_for_line(process, "firmware")
        pidfd = os.pidfd_open(emulator_of(process.pid))
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT)
        assert ends(pidfd)
        os.close(pidfd)
    assert process.returncode == code
    assert "Traceback" not in errors
    if number is signal.SIGINT:
        assert errors.splitlines()[-1] == "hv: error: interrupted"
    assert list(hv.temporary.iterdir()) == []
    assert not (hv.folder / "out.json").exists()


@pytest.mark.everywhere
@pytest.mark.needs("process")
def test_the_emulator_dies_with_its_parent_however_that_dies(platform: str, hv: Hv) -> None:
    with hv.start("boot", "--on", platform, "--no-hv") as process:
        wait_for_line(process, "firmware")
        pidfd = os.pidfd_open(emulator_of(process.pid))
        process.kill()
        assert ends(pidfd)
        os.close(pidfd)


def test_a_hung_machine_fails_within_its_limit_with_the_last_lines(hv: Hv) -> None:
    (hv.folder / "hang.sh").write_text("echo before the end of the world\nwhile :; do :; done\n")
    start = time.monotonic()
    done = hv("boot", "--no-hv", "--cpus", "1", "--script", "hang.sh", "--timeout", "30", "--json", "out.json")
    assert time.monotonic() - start < 30 + LIMIT
    assert done.returncode == 1
    assert "the limit of 30 s is over" in done.stderr
    assert "last lines of the console:" in done.stderr and "last lines of the hypervisor log:" in done.stderr
    assert "hvcheck| before the end of the world" in done.stderr
    (folder,) = re.findall(r"\(`hv decode (\S+)` explains the logs\)$", done.stderr, re.MULTILINE)
    assert (Path(folder) / "console.log").is_file()
    assert (hv.folder / "out.json").is_file(), "a boot that fails still has a result"


def test_kept_folders_have_all_logs_and_the_image(hv: Hv) -> None:
    done = hv("boot", "--no-hv", "--cpus", "1", "--keep", "kept", "-v")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (hv.folder / "kept").iterdir()}
    assert {"console.log", "hypervisor.log", "serial2.log", "emulator.log", "esp.img", "result.json"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert "hvcheck: done" in done.stderr, "-v shows the console"


@pytest.mark.needs("linux")
def test_script_files_and_kernel_command_line_arrive_as_they_are(
    boot: Boot, script: Callable[[str], Path], tmp_path: Path
) -> None:
    odd = tmp_path / "data"
    odd.write_bytes(bytes(range(256)))
    text = "cat /proc/cmdline\nsha256sum < /add/sub/data\necho to stderr >&2\nprintf 'no end of line'\nexit 42\n"
    result = boot(
        hypervisor=False,
        cpus=1,
        append='x="a b" p=50% c#d',
        script=script(text),
        added=parse_added([f"{odd}:sub/data"]),
    )
    lines = result.checks.script_output.splitlines()
    assert lines[0].endswith('x="a b" p=50% c#d')
    assert lines[1].split()[0] == hashlib.sha256(odd.read_bytes()).hexdigest()
    assert lines[2:] == ["to stderr", "no end of line"]
    assert result.failures == ["the script ended with exit code 42"]


def test_somebodys_own_ram_disk_is_below_ours(boot: Boot, script: Callable[[str], Path], tmp_path: Path) -> None:
    initrd = tmp_path / "theirs"
    initrd.write_bytes(cpio.archive([cpio.regular("etc/theirs", b"here\n")]))
    result = boot(hypervisor=False, cpus=1, initrd=initrd, script=script("cat /etc/theirs\n"))
    assert result.ok and result.checks.script_output == "here\n"

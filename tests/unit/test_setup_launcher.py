# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The launcher `hv`, and the making of the Python environment: whole or not there, by whatever number of runs."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    """tools/bootstrap.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ERROR: No matching distribution found for click==99", "answers, but does not have a package"),
        (
            "WARNING: Retrying after NewConnectionError: Temporary failure in name resolution\n"
            "ERROR: Could not find a version that satisfies the requirement click\n"
            "ERROR: No matching distribution found for click",
            "no network",
        ),
        (
            "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1, "
            "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in chain'))'\n"
            "ERROR: No matching distribution found for click",
            "signed by nobody whom this machine trusts",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("ERROR: Failed building editable for hvtools", "pip failed: Failed building editable"),
        ("", "pip failed"),
    ],
)
def test_what_pip_says_is_understood(bootstrap: ModuleType, said: str, expected: str) -> None:
    line = bootstrap.explain(said)
    assert expected in line
    assert "\n" not in line


# The real `make`, with commands that only leave their mark, and wait in the second one until they are let go.
DRIVER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv.pop(1))
    import bootstrap

    venv, log = Path(sys.argv[1]), Path(sys.argv.pop(2))

    def run(command, on_line=False):
        with log.open("a") as file:
            file.write(command[2] + "\\n")
        if command[2] == "venv":
            assert not venv.exists()
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").symlink_to(sys.executable)
        else:
            print("installing", flush=True)
            if sys.stdin.readline() == "fail\\n":
                raise bootstrap._FailedError("pip failed: trial")

    bootstrap._run = run
    sys.exit(bootstrap.main())
    """
)


Process = subprocess.Popen[bytes]


def start(venv: Path, log: Path) -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(ROOT / "tools"), str(venv), str(log)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def in_pip(process: Process) -> None:
    """Waits until it is in the middle of installing."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"installing\n"


def test_two_runs_make_it_once(tmp_path: Path) -> None:
    venv, log = tmp_path / ".venv" / "key", tmp_path / "log"
    with start(venv, log) as one:
        try:
            in_pip(one)
            with start(venv, log) as two:
                try:
                    assert two.stderr is not None
                    assert b"waiting for another hv" in two.stderr.readline()
                    one.communicate(b"go\n", timeout=30)
                    two.communicate(timeout=30)
                finally:
                    two.kill()
        finally:
            one.kill()
    assert (one.returncode, two.returncode) == (0, 0)
    assert (venv / "ready").exists()
    assert log.read_text().split() == ["venv", "pip"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_cut_off_leaves_no_half_made_environment(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    venv, log = tmp_path / ".venv" / "key", tmp_path / "log"
    with start(venv, log) as process:
        try:
            in_pip(process)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert b"Traceback" not in err
    assert not (venv / "ready").exists()
    if number != signal.SIGKILL:
        assert not venv.exists()
    with start(venv, log) as process:
        in_pip(process)
        process.communicate(b"go\n", timeout=30)
    assert process.returncode == 0
    assert (venv / "ready").exists()


def test_a_failed_install_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    venv, log = tmp_path / ".venv" / "key", tmp_path / "log"
    with start(venv, log) as process:
        in_pip(process)
        _, err = process.communicate(b"fail\n", timeout=30)
    assert process.returncode == 1
    assert err.decode().splitlines()[1:] == ["hv: error: pip failed: trial"]
    assert not venv.exists()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with the real launcher, and a bootstrap that makes an environment which says how it is called."""
    folder = tmp_path / "a clone"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "hv", folder)
    (folder / "pyproject.toml").write_text("one")
    (folder / "constraints.txt").write_text("two")
    (folder / "tools" / "bootstrap.py").write_text(
        textwrap.dedent("""\
            import pathlib, sys
            venv = pathlib.Path(sys.argv[1])
            (venv / "bin").mkdir(parents=True, exist_ok=True)
            python = venv / "bin" / "python"
            python.unlink(missing_ok=True)
            python.write_text('#!/bin/sh\\nprintf "%s|" "$@"\\nexit 7\\n')
            python.chmod(0o755)
            (venv / "ready").touch()
            print("made", venv.name, file=sys.stderr)
            """)
    )
    return folder


def launch(clone: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(clone / "hv"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HV_PYTHON": sys.executable, **environment},
        cwd="/",
    )


def test_the_launcher_makes_the_environment_once_and_hands_everything_on(clone: Path) -> None:
    first = launch(clone, "boot", "--append", "a b  c", "")
    assert first.returncode == 7
    assert first.stdout == "-m|hvtools|boot|--append|a b  c||"
    assert first.stderr.startswith("made ")
    assert launch(clone, "build").stderr == ""


def test_the_environment_follows_its_pins_and_its_place(clone: Path) -> None:
    names = {launch(clone).stderr}
    for name in ("pyproject.toml", "constraints.txt"):
        (clone / name).write_text("changed")
        names.add(launch(clone).stderr)
    moved = clone.rename(clone.parent / "moved")
    names.add(launch(moved).stderr)
    assert len(names) == 4
    assert all(name.startswith("made ") for name in names)


def test_the_launcher_works_through_a_link(clone: Path, tmp_path: Path) -> None:
    link = tmp_path / "hv-link"
    link.symlink_to(clone / "hv")
    result = subprocess.run([str(link), "x"], capture_output=True, text=True, env={**os.environ}, timeout=60)
    assert result.stdout == "-m|hvtools|x|"


@pytest.mark.parametrize("damage", ["ready", "python"])
def test_a_damaged_environment_is_made_again(clone: Path, damage: str) -> None:
    launch(clone)
    (venv,) = (clone / ".venv").iterdir()
    if damage == "ready":
        (venv / "ready").unlink()
    else:
        # As an upgrade of the system's Python leaves it: a link to nothing.
        (venv / "bin" / "python").unlink()
        (venv / "bin" / "python").symlink_to(venv / "gone")
    assert launch(clone).stderr.startswith("made ")


def test_without_a_python_and_without_root_the_command_is_given(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "readlink", "sha256sum", "cut", "cat", "printf"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    for name, script in {
        "id": "echo 1000",
        "sudo": "exit 1",
        "apt-get": "echo called >&2; exit 1",
        # A Python without the part that makes environments.
        "python3": "exit 1",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    # /usr/bin/python3 is asked too, by its full name; here it must not count.
    hv = clone / "hv"
    hv.write_text(hv.read_text().replace("/usr/bin/python3", str(tools / "python3")))
    result = launch(clone, "setup", HV_PYTHON="", PATH=str(tools))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "hv: error: Python's venv module is missing, and only root can install it; "
        "run: sudo apt-get install -y --no-install-recommends python3 python3-venv\n"
    )


def test_ctrl_c_lets_apt_get_come_to_its_end(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    begun, let_go, done = (tmp_path / name for name in ("begun", "let-go", "done"))
    os.mkfifo(begun)
    os.mkfifo(let_go)
    for name, script in {
        "id": "echo 0",
        "python3": "exit 1",
        "apt-get": f"echo > {begun}; read line < {let_go}; touch {done}",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    hv = clone / "hv"
    hv.write_text(hv.read_text().replace("/usr/bin/python3", str(tools / "python3")))
    environment = {**os.environ, "HV_PYTHON": "", "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    gate = os.open(let_go, os.O_RDWR)  # to write to it never waits for who reads
    with subprocess.Popen([hv, "setup"], env=environment, stderr=subprocess.PIPE, start_new_session=True) as process:
        begun.read_text()  # apt-get is at it
        os.killpg(process.pid, signal.SIGINT)
        os.write(gate, b"\n")
        process.wait(timeout=60)
    os.close(gate)
    assert done.exists() and process.returncode != 0

# SPDX-License-Identifier: BSD-2-Clause-Patent
"""Makes the Python environment of a clone. Called by `hv`, before any other package is there: standard library only.

The environment is made in its final place, because it has absolute paths in it, and counts as made when the file
`ready` is in it: whatever a run that was cut off left is removed by the next one.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]

_NO_NETWORK = re.compile(
    r"NewConnectionError|Temporary failure in name resolution|Name or service not known|ConnectTimeout|ReadTimeout"
    r"|Network is unreachable|ProxyError|SSLError|Connection (refused|reset|aborted)|Max retries exceeded"
)
_NOT_THERE = re.compile(r"No matching distribution|Could not find a version|ResolutionImpossible")


def explain(output: str) -> str:
    """The one line that says why pip failed. A host that does not answer makes pip also say "no matching"."""
    told = [line.strip() for line in output.splitlines() if line.lstrip().startswith("ERROR:")]
    reason = told[0].removeprefix("ERROR:").strip() if told else (output.strip().splitlines() or ["no reason"])[-1]
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return "no space left on the disk for the Python environment"
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return "the certificate of the Python package index is signed by nobody whom this machine trusts (a proxy?)"
    if _NO_NETWORK.search(output):
        return "no network: the Python package index did not answer"
    if _NOT_THERE.search(output):
        return f"the Python package index answers, but does not have a package: {reason}"
    return f"pip failed: {reason}"


class _FailedError(Exception):
    """A command failed; the message is for the person."""


def _run(command: list[str], on_line: bool = False) -> None:
    """Runs a command; shows what pip is at, on a terminal in one line, elsewhere nothing."""
    output = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                if on_line and sys.stderr.isatty():
                    print(f"\r\033[K{line.strip()[:78]}", end="", file=sys.stderr, flush=True)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            if on_line and sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise _FailedError(explain("".join(output)))


def make(venv: Path) -> None:
    """Makes the environment, unless another run did so meanwhile."""
    venv.parent.mkdir(exist_ok=True)
    with (venv.parent / f"{venv.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another hv that makes the Python environment ...", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (venv / "ready").exists() and os.access(venv / "bin" / "python", os.X_OK):
            return
        start = time.monotonic()
        print("making the Python environment of this clone (once, about half a minute) ...", file=sys.stderr)
        shutil.rmtree(venv, ignore_errors=True)
        try:
            # The interpreter itself, not a link that an upgrade redirects: a changed one must be seen as missing.
            _run([os.path.realpath(sys.executable), "-m", "venv", str(venv)])
            pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input"]
            _run([*pip, "--editable", f"{ROOT}[dev]"], on_line=True)
            (venv / "ready").touch()
        except BaseException:
            shutil.rmtree(venv, ignore_errors=True)
            raise
        print(f"the Python environment is ready ({time.monotonic() - start:.0f} s)", file=sys.stderr)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    """Makes the environment in the folder that is the only argument."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        make(Path(sys.argv[1]))
    except _FailedError as error:
        print(f"hv: error: {error}", file=sys.stderr)
        return 2 if "no space" in str(error) else 1
    except KeyboardInterrupt:
        print("hv: error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"hv: error: the Python environment cannot be made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

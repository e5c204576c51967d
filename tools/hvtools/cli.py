# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The command line `hv`: finds the verb, and turns every error into one line and an exit code."""

import importlib
import os
import pkgutil
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

import click

from hvtools import verbs
from hvtools.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    HvError,
    InterruptedByUser,
    NoSpaceError,
    UsageError,
    is_no_space,
    with_step,
)

_ORDER = "setup doctor build boot log decode debug trace bench test docs gen clean".split()
"""The verbs in the order in which a person meets them; others follow."""


class _Verbs(click.Group):
    """The verbs, each loaded only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names the modules in `hvtools.verbs`."""
        names = sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads one verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"hvtools.verbs.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Runs the verb; takes Ctrl-C before click prints an empty line for it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedByUser("interrupted") from None


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hvtools", prog_name="hv")
def cli() -> None:
    """Build, boot and test HvPkg, a hypervisor that a machine's own firmware starts.

    Every verb first fetches and installs what it lacks. Exit codes: 0 did it, 1 ran and failed, 2 wrong use,
    130 Ctrl-C.
    """


def _fail(message: str, code: int) -> int:
    """Prints the one line."""
    print(f"hv: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _verb_of(arguments: list[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def run(arguments: list[str]) -> int:
    """Runs a command line.

    Returns:
        The exit code. No error of a kind that a person can cause comes out as an exception.
    """
    try:
        result = cli.main(arguments, prog_name="hv", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except HvError as error:
        return _fail(with_step(error.line, error.step, _verb_of(arguments)), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "", file=sys.stderr)
        return EXIT_USAGE
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "hv"
        return _fail(f"{error.format_message().rstrip('.')} (see {verb} --help)", EXIT_USAGE)
    except click.ClickException as error:
        return _fail(with_step(error.format_message(), UsageError.step, _verb_of(arguments)), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stdout = open(os.devnull, "w")
        return EXIT_FAILED
    except OSError as error:
        if os.environ.get("HV_DEBUG"):
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        full = is_no_space(error)
        step = NoSpaceError.step if full else "see that it is there, and yours"
        return _fail(with_step(f"{where}{error.strerror or error}", step, ""), EXIT_USAGE if full else EXIT_FAILED)
    except Exception as error:
        if os.environ.get("HV_DEBUG"):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}; HV_DEBUG=1 shows the traceback"
        return _fail(f"a fault in hv itself: {type(error).__name__}: {error} ({place})", EXIT_FAILED)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Makes a request to end unwind the stack, so that emulators and temporary files go too."""
    raise SystemExit(128 + number)


def main() -> NoReturn:
    """The entry point of the `hv` command."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    sys.exit(run(sys.argv[1:]))

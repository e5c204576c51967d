# SPDX-License-Identifier: BSD-2-Clause-Patent
"""`hv completion`: tab completion for a shell."""

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog="""\b
Examples:
  eval "$(hv completion bash)"                               for this shell
  hv completion bash >> ~/.bashrc                            for every one
  hv completion fish > ~/.config/fish/completions/hv.fish    fish""",
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete verbs, options, platforms and the hypervisor's options behind `hv` and `./hv`."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "hv", "_HV_COMPLETE").source())

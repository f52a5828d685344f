"""`edgetune completion`: the script with which a shell completes verbs, options and values at the Tab key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click
from click.shell_completion import get_completion_class

from edgetune.commands._common import Console, verb
from edgetune_core.options import Options, option


@dataclass(frozen=True, kw_only=True)
class CompletionOptions(Options):
    """Whose script is printed."""

    shell: Literal["bash", "zsh", "fish"] = option(help="Name of the shell.", argument=True, metavar="{bash|zsh|fish}")


@verb(CompletionOptions)
def command(console: Console, shell: str) -> None:
    """Print the script that lets a shell complete verbs, options and their values at the Tab key.

    A shell reads it with one line, which belongs into its start-up file:

    bash 4.4 or newer: `eval "$(edgetune completion bash)"` in ~/.bashrc

    zsh: `eval "$(edgetune completion zsh)"` in ~/.zshrc, after compinit

    fish: `edgetune completion fish | source` in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    root = click.get_current_context().find_root().command
    script = kind(root, {}, "edgetune", "_EDGETUNE_COMPLETE").source()
    console.line(script.rstrip("\n"))
    console.result({"shell": shell, "script": script})

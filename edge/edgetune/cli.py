"""The `edgetune` program: a group of verbs whose modules are imported only when they are called.

`edgetune --help` reads the table below and the names that other packages declare, and imports no verb, hence neither
numpy nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from edgetune import __version__
from edgetune.commands._common import Program
from edgetune_runtime.plugins import Plugins, package_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

VERBS = {
    "data": "Convert, check, crop, split and count data sets.",
    "label": "Propose boxes for people to correct, and learn from them.",
    "train": "Fine-tune a checkpoint on your records with LoRA.",
    "grpo": "Train an adapter on its own answers and what their boxes earn.",
    "merge": "Fold a LoRA adapter into its base and prove that it worked.",
    "calibrate": "Solve int4 weights for a checkpoint on your own records.",
    "export": "Write an on-device bundle, checked against its checkpoint.",
    "run": "Ask a bundle about an image: boxes for a phrase, or an answer.",
    "serve": "Put bundles behind an address: boxes over HTTP, and a page.",
    "eval": "Score bundles and checkpoints on held-out records.",
    "bench": "Compare bundles: accuracy, speed by stage, memory and size.",
    "tune-budget": "Find the smallest pictures that are accurate enough.",
    "gate": "Pass or fail measured rows: accuracy lost, time, size, memory.",
    "doctor": "Say what is installed, which engines work, how to get the rest.",
    "demo": "The whole chain on the tiny example model, with pictures.",
    "completion": "Print the script for completion in bash, zsh or fish.",
}

OTHERS: Plugins[click.Command] = Plugins(
    "edgetune.verbs",
    "verb",
    "a click command",
    lambda found: isinstance(found, click.Command),
    built_in=VERBS,
)
"""Verbs that installed packages add."""


class LazyGroup(Program, click.Group):
    """A group that knows its verbs by name and one line of help, and imports one to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which they are used."""
        return [*VERBS, *OTHERS.names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its `command`, or None when there is no such verb.

        Raises:
            InputError: the verb is another package's, which is broken.
            MissingDependency: it is, and something that it needs cannot be imported.
        """
        if cmd_name not in VERBS:
            return OTHERS.load(cmd_name) if cmd_name in OTHERS.names() else None
        command = import_module(f"edgetune.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that `args` starts with; a mistyped one gets a suggestion."""
        told = ctx.resilient_parsing or args[0].startswith("-") or args[0] in VERBS  # which searches no packages
        if not told and args[0] not in (known := self.list_commands(ctx)):
            raise click.NoSuchCommand(args[0], possibilities=known, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs from the table, and those of other packages with the names of their packages."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))
        added = [(point.name, _told(point)) for point in OTHERS.points()]
        if added:
            with formatter.section("Verbs of other packages"):
                formatter.write_dl(added)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the verbs, and the options that stand before one; nothing is imported."""
        told = {point.name: _told(point) for point in OTHERS.points()} | VERBS
        verbs = [CompletionItem(name, help=text) for name, text in told.items() if name.startswith(incomplete)]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]


def _told(point: EntryPoint) -> str:
    package = package_of(point)
    return f"Not offered: {package} uses the name of a verb above." if point.name in VERBS else f"Of {package}."


@click.command(
    cls=LazyGroup,
    subcommand_metavar="VERB [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 a gate or self-check failed, 2 usage or bad input, "
    "3 the environment misses something, 4 a gate has too few records to tell, 130 Ctrl-C, 143 SIGTERM.",
)
@click.version_option(__version__, prog_name="edgetune")
def cli() -> None:
    """From records to boxes on a device: fine-tune, merge, export, measure.

    Stages talk only through folders on disk: each verb reads the folder that the one before it wrote.
    """


def main() -> None:
    """Entry point of the `edgetune` script."""
    from edgetune_runtime.terminal import prepare

    prepare()
    cli(prog_name="edgetune")

"""What all verbs share: the `verb` decorator with its common options, the `Console`, and error reporting."""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._config import load_config
from edgetune.commands._options import parameters
from edgetune_core.options import Options, description, options_taken
from edgetune_runtime.errors import EdgetuneError, install_command
from edgetune_runtime.signals import Terminated, sigterm_raises
from edgetune_runtime.terminal import drop, finish, printable, report, say

if TYPE_CHECKING:
    from edgetune_core.stage import StageResult

EXTRA_OF_MODULE = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "accelerate": "train",
    "trl": "grpo",
    "yaml": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "export",
    "psutil": "bench",
    "datasets": "data",
    "jsonschema": "data",
    "cleanvision": "data",
    "cv2": "redact",
    "rapidocr": "redact",
}
"""Which extra of `edgetune` installs a module that a verb may find missing."""


class _Notes(logging.Handler):
    """Prints what the stages remark, a line each, to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one remark."""
        say(record.getMessage(), error=True)


def print_notes() -> None:
    """Send the remarks of the Python API (logger "edgetune") to stderr, once however often this is called."""
    log = logging.getLogger("edgetune")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())
        log.setLevel(logging.INFO)
        log.propagate = False


class Console:
    """Where a verb writes: a person's text, or one JSON document under `--json`. Notes go to stderr in both."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line to stdout, unless under `--json`."""
        if not self.as_json:
            say(text)

    def note(self, text: str) -> None:
        """Print a remark to stderr."""
        say(text, error=True)

    def stage(self, stage: StageResult, plan: str) -> bool:
        """Print what became of a stage, its manifest under `--json`, and return whether there is news to print.

        Args:
            stage: what an API function returned.
            plan: what a dry run would do, such as "train on 8 records".
        """
        self.result({"folder": stage.folder, "skipped": stage.skipped, "dry_run": stage.dry_run, **stage.manifest})
        if stage.skipped:
            self.line(f"{stage.folder}: unchanged, nothing to do")
        elif stage.dry_run:
            self.line(f"{stage.folder}: would {plan}")
        return not stage.skipped and not stage.dry_run

    def next_verb(self, *words: object) -> None:
        """Print to stderr the command that usually comes next; words in capitals are for the user to fill in."""
        self.note(f"next: edgetune {shlex.join(map(str, words))}")

    def table(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Print rows under the keys of the first one, numbers to the right, unless under `--json`."""
        if self.as_json or not rows:
            return
        columns = list(rows[0])
        numeric = {c: all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns}
        cells = [[_cell(row.get(c)) for c in columns] for row in rows]
        widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
        for line in [columns, ["-" * w for w in widths], *cells]:
            parts = [t.rjust(w) if numeric[c] else t.ljust(w) for c, t, w in zip(columns, line, widths, strict=True)]
            say("  ".join(parts).rstrip())

    def result(self, result: Mapping[str, object]) -> None:
        """Print the verb's result as JSON when under `--json`."""
        if self.as_json:
            say(json.dumps(_to_json(result), indent=2, ensure_ascii=False))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value)).replace("\n", "\\n")


def _to_json(value: Any) -> object:
    """Return the JSON form: numpy as lists and numbers, paths as text, NaN and infinity (which JSON lacks) as null."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        return _to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


def suggestion(word: str, known: Any) -> str:
    """Return ` Did you mean 'x'?` for the nearest of the known words, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Program(click.Command):
    """The group and each verb: errors become one line and an exit code, however it is called.

    `subcommands` take over when their name is the first argument, so `edgetune bench merge ...` is a command of its
    own; a file or folder of that name is written ./merge.
    """

    subcommands: Mapping[str, click.Command] = MappingProxyType({})

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments, of a subcommand where they start with one."""
        chosen = self.subcommands.get(args[0]) if args else None
        if chosen is None:
            return super().make_context(info_name, args, parent, **extra)
        return chosen.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the subcommands where there are any."""
        super().format_options(ctx, formatter)
        if self.subcommands:
            with formatter.section("Subcommands"):
                formatter.write_dl([(name, sub.get_short_help_str(90)) for name, sub in self.subcommands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run what the context was made for: this command, or one of its subcommands."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run; in standalone mode print errors and exit with the code that the documentation promises."""
        print_notes()
        run = functools.partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        sys.exit(_exit_code(run))


def _exit_code(run: Callable[[], object]) -> int:
    """Run, report what went wrong, and return the program's exit code."""
    try:
        with sigterm_raises():
            code = run()
        return finish(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "edgetune"
        return _report(error.format_message(), f"see {path} --help", 2)
    except click.ClickException as error:
        return _report(error.format_message(), None, 2)
    except (click.Abort, KeyboardInterrupt) as error:  # click makes the one of the other
        if isinstance(error, Terminated) or isinstance(error.__cause__, Terminated):
            return _report("ended by SIGTERM", None, Terminated.exit_code)
        return _report("interrupted", None, 130)
    except EdgetuneError as error:
        return _report(str(error), error.hint, error.exit_code)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF_MODULE:
            raise
        hint = install_command(EXTRA_OF_MODULE[module])
        return _report(f"the Python package {module!r} is not installed", hint, 3)
    except OSError as error:
        return _report_system_error(error)


def _report_system_error(error: OSError) -> int:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _report(f"{where}no space left on the disk", "free some space or choose another --output", 3)
    if error.errno == errno.EFBIG:
        hint = "raise the limit (ulimit -f), or choose an --output on a file system that holds larger files"
        return _report(f"{where}a file would be larger than the system allows", hint, 3)
    if error.errno == errno.EPIPE:
        drop(sys.stdout)  # the reader left; nothing more can be written
        return 1
    if not error.filename and not _working_folder():
        return _report("the current folder was deleted", "cd to a folder that exists", 2)
    if error.errno is None:
        raise error
    return _report(f"{where}{error.strerror or error}", None, 2)


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _report(message: str, hint: str | None, code: int) -> int:
    report(message, hint)
    return finish(code)


def verb(
    api: Callable[..., object] | type[Options] | None = None,
    *,
    subcommands: Mapping[str, click.Command] | None = None,
) -> Callable[[Callable[..., object]], Program]:
    """Make a click command that calls a function of the Python API, with its options and those that every verb has.

    What is decorated gets a `Console` first, then the options by name. Its docstring is the help text, or the API
    function's where it has none. Options that only concern what is printed are declared with click's decorators.

    Args:
        api: the function, made by `edgetune_core.options.takes`; options alone, or None, for a verb that has none.
        subcommands: are run instead when their name comes first.
    """

    def decorate(command: Callable[..., object]) -> Program:
        @functools.wraps(command)
        def callback(*, as_json: bool, **arguments: Any) -> object:
            return command(Console(as_json=as_json), **arguments)

        own = list(reversed(getattr(command, "__click_params__", [])))
        if api is not None:
            own += parameters(api if isinstance(api, type) else options_taken(api))
        program = Program(
            name=command.__module__.rpartition(".")[2].replace("_", "-"),
            callback=callback,
            params=[*own, *_common_options()],
            help=command.__doc__ or (description(api) if api else None),
            context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
        )
        program.subcommands = subcommands or {}
        return program

    return decorate


def _common_options() -> list[click.Parameter]:
    config = click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=load_config,
        help="TOML file with values for the options above; the command line wins.",
    )
    as_json = click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document to stdout.")
    return [config, as_json]

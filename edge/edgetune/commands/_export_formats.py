"""Several formats of one checkpoint: each is the same verb in a process of its own, so that none can take another down.

The calibration that they share, where it is made here, is a process too. Every folder is a stage of its own: an
unchanged one is kept, an interrupted calibration is continued.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgetune.commands._common import Console
from edgetune_runtime.errors import EdgetuneError, InputError
from edgetune_runtime.manifest import MANIFEST

WEIGHTS = "weights"
"""Folder of the weight set beside the bundles, when it is calibrated here."""


def export_formats(ctx: click.Context, console: Console, formats: Sequence[str]) -> int:
    """Run `edgetune export` once for each format, after `edgetune calibrate` where --data was given.

    Returns:
        0, or the exit code of the first format that failed; the others are written all the same.

    Raises:
        InputError: the output is itself a result of edgetune.
        EdgetuneError: the calibration failed; the message is on stderr already.
    """
    output: Path = ctx.params["output"]
    if (output / MANIFEST).is_file():
        raise InputError(f"{output}: is a bundle or another result itself", hint="choose another --output")
    weights, dry_run = ctx.params["weights"], ctx.params["dry_run"]
    if ctx.params["data"]:
        weights = _calibrate(ctx, console, output)
    if dry_run and weights is not None and not weights.is_dir():
        console.line("\n".join(f"{output / name}: would be written" for name in formats))
        return 0
    options = _arguments(ctx)
    results: dict[str, Any] = {}
    failures: dict[str, int] = {}
    for name in formats:
        arguments = ["--checkpoint", ctx.params["checkpoint"], "--format", name, "--output", output / name, *options]
        code, told = _run("export", [*arguments, *(["--weights", weights] if weights else [])])
        if told is None:
            failures[name] = code
            console.note(f"{output / name}: failed with exit code {code}")
            continue
        results[name] = told
        state = "unchanged, kept" if told["skipped"] else "would be written" if dry_run else "written"
        console.line(f"{output / name}: {state}")
    if not dry_run:
        from edgetune.commands.export import row

        console.table([row(told["manifest"]) for told in results.values()])
    console.result({"output": output, "weights": weights, "formats": results, "failed": failures})
    return next(iter(failures.values()), 0)


def _calibrate(ctx: click.Context, console: Console, output: Path) -> Path:
    """Make the weight set and return its folder."""
    weights = output / WEIGHTS
    flags = [f"--{flag.replace('_', '-')}" for flag in ("force", "dry_run") if ctx.params[flag]]
    place = ["--checkpoint", ctx.params["checkpoint"], "--data", ctx.params["data"], "--output", weights]
    code, told = _run("calibrate", [*place, *flags])
    if told is None:
        error = EdgetuneError("no format was written, for the calibration failed")
        error.exit_code = code
        raise error
    console.line(f"{weights}: {'would be calibrated' if ctx.params['dry_run'] else 'calibrated'}")
    return weights


def _arguments(ctx: click.Context) -> list[str]:
    """The options that were given, but for those that differ from format to format."""
    own = {"checkpoint", "weights", "data", "output", "format_", "formats"}
    arguments: list[str] = []
    for option in ctx.command.params:
        given = ctx.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT
        if given and option.name in ctx.params and option.name not in own:
            value, flag = ctx.params[str(option.name)], max(option.opts, key=len)
            if isinstance(value, bool):
                arguments += [flag] if value else []
            else:
                arguments += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    return arguments


def _run(verb: str, arguments: Sequence[str | Path]) -> tuple[int, Any]:
    """Run a verb; its exit code, and what it told as JSON or None when it failed. Its stderr is ours."""
    command = [sys.executable, "-m", "edgetune", verb, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return (done.returncode if done.returncode > 0 else 1), None
    return 0, json.loads(done.stdout)

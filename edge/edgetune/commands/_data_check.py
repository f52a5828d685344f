"""`edgetune data check`: what is wrong with a data set, before an hour of training is lost on it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.commands._common import Console, verb
from edgetune.commands._data_options import model_options, model_view_of

if TYPE_CHECKING:
    from edgetune_data.check import Material, Report

_TOLD = 100  # errors of a rule in the terminal; --json and the folder have all of them


@verb(writes=True)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Another data file that must share no picture with DATA, such as the validation split; repeatable.",
)
@model_options
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder to write report.json, sheet.html and what --fix makes."
)
@click.option(
    "--fix",
    "fixes",
    is_flag=False,
    flag_value="unreadable,duplicates",
    metavar="[NAME,...]",
    help="Write a cleaned copy, too, with these mended: unreadable, duplicates (both when no name is given), swap, "
    "clip, boxes, leaks, cover, private.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too, not only for errors.")
@click.option(
    "--redactor",
    "redactors",
    multiple=True,
    metavar="NAME",
    help="Look for what must not be in pictures: faces, text, or a plug-in's; repeatable.",
)
@click.option(
    "--pictures", type=click.IntRange(min=0), default=8, help="Show so many pictures of each rule in sheet.html."
)
@click.option("--examples", type=click.IntRange(min=0), default=3, help="Print so many warnings of each rule.")
@click.option("--min-box", type=float, default=0.25, help="Warn about boxes smaller than this many image tokens.")
@click.option(
    "--near",
    type=click.IntRange(0, 32),
    default=6,
    help="Warn about pictures whose perceptual hashes differ in at most this many of 64 bits.",
)
@click.option(
    "--max-blur",
    type=click.FloatRange(0, 1),
    default=0.6,
    help="Warn about pictures blurred more than this, from 0 (sharp) to 1.",
)
@click.option(
    "--min-bright",
    type=click.FloatRange(0, 1),
    default=0.32,
    help="Warn about dark pictures: even the brightest 1 % of pixels is below this, 0 to 1.",
)
@click.option(
    "--max-bright",
    type=click.FloatRange(0, 1),
    default=0.95,
    help="Warn about bright pictures: even the darkest 5 % of pixels is above this, 0 to 1.",
)
@click.option(
    "--min-entropy",
    type=float,
    default=3.0,
    help="Warn about pictures with less entropy than this many bits, which show hardly anything.",
)
@click.option(
    "--max-enlarge",
    type=float,
    default=2.0,
    help="Warn about pictures whose sides the model enlarges more than this many times.",
)
@click.option(
    "--same-box",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Warn where one phrase has boxes in one picture that overlap less than this IoU.",
)
@click.option(
    "--rare",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Warn about labels with less than this share of the boxes of the most frequent label.",
)
@click.option(
    "--frame-boxes",
    type=click.IntRange(min=1),
    default=10,
    help="Judge the coordinate frame of a file from this many boxes on.",
)
@click.option(
    "--vague",
    multiple=True,
    metavar="REGEX",
    help="Warn about phrases that match this, too, as naming nothing; repeatable.",
)
def check(
    console: Console,
    data: Path,
    against: tuple[Path, ...],
    checkpoint: Path | None,
    family: str | None,
    min_pixels: int | None,
    max_pixels: int | None,
    output: Path | None,
    fixes: str | None,
    strict: bool,
    redactors: tuple[str, ...],
    pictures: int,
    examples: int,
    force: bool,
    dry_run: bool,
    **thresholds: Any,
) -> int:
    """Say what is wrong with a data set: all errors with file and line, and what trains badly.

    Exit code 0: nothing wrong, or warnings only. 1: errors, or warnings under --strict; with --fix, what is left of
    them in the cleaned copy. 2: there is nothing to check.
    """
    from edgetune_data.check import Limits, gather
    from edgetune_data.check import check as run_check
    from edgetune_data.check.fix import parse_fixes
    from edgetune_data.redactors import load_redactor

    if output is None and (fixes or force or dry_run):
        raise click.UsageError("--fix, --force and --dry-run need --output, the folder to write.")
    limits = Limits(**{field.name: thresholds[field.name] for field in fields(Limits)})
    names = parse_fixes(fixes) if fixes else ()
    material = gather(
        data,
        model=model_view_of(checkpoint, family, min_pixels, max_pixels),
        limits=limits,
        redactors={name: load_redactor(name) for name in redactors},
    )
    report = run_check(material, against)
    final = report
    if output is not None:
        options = {"fixes": names, "pictures": pictures, "redactors": redactors}
        final = _write(console, output, material, report, against, options, force=force, dry_run=dry_run)
    console.result({**report.to_dict(), **({"after": final.to_dict()} if final is not report else {})})
    _tell(console, report, examples)
    if final is not report:
        console.line(f"after --fix {','.join(names)}: {_count(final)}")
    return int(final.errors > 0 or (strict and final.warnings > 0))


def _write(
    console: Console,
    output: Path,
    material: Material,
    report: Report,
    against: tuple[Path, ...],
    options: dict[str, Any],
    *,
    force: bool,
    dry_run: bool,
) -> Report:
    """Write the stage folder; return what is wrong with the cleaned copy, or the report itself without one."""
    from edgetune_core.stage import run_stage
    from edgetune_data.check.folder import recheck, write

    fixes = options["fixes"]
    done = run_stage(
        "data-check",
        output,
        inputs={"data": material.path} | {f"against {number}": path for number, path in enumerate(against, start=1)},
        settings={**material.settings(), **options},
        build=lambda work: write(work, output, material, report, fixes, options["pictures"]),
        force=force,
        dry_run=dry_run,
    )
    state = "unchanged" if done.skipped else "would be written" if dry_run else "written"
    console.note(f"{output}: {state}")
    return recheck(material, report, fixes, output, against) if fixes else report


def _tell(console: Console, report: Report, examples: int) -> None:
    from edgetune_data.check.findings import RULES

    for name, rule in RULES.items():
        found = report.of(name)
        shown = _TOLD if rule.level == "error" else examples
        for finding in found[:shown]:
            console.line(f"{rule.level}: {finding.source}: {finding.message}")
        if len(found) > shown > 0:
            console.line(f"{rule.level}: and {len(found) - shown} more of {name} (--json has all)")
    rows = [
        {"rule": name, "level": rule.level, "found": len(report.of(name)), "what": rule.title, "advice": rule.advice}
        for name, rule in RULES.items()
        if report.of(name)
    ]
    if rows:
        console.line()
        console.table(rows)
        console.line()
    for name, why in report.skipped.items():
        console.line(f"not looked for: {name} ({why})")
    console.line(f"{report.data}: {_count(report)}")


def _count(report: Report) -> str:
    return f"{report.records} records, {report.images} pictures, {report.errors} errors, {report.warnings} warnings"

"""`edgetune data`: data sets of any known format are converted, checked, cropped, split and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgetune.api import data as api
from edgetune.commands._common import Console, verb

if TYPE_CHECKING:
    from edgetune_data.check import Report

_TOLD = 100  # errors of a rule in the terminal; --json and the folder have all of them


@verb(api.convert)
def convert(console: Console, **options: Any) -> None:
    stage = api.convert(**options)
    path, facts = options["path"], stage.facts
    for remark, count in facts["notes"].items():
        console.note(f"{path}: {remark}: {count}")
    if facts["rejected"]:
        first = facts["rejected"][0]["problem"]
        console.note(f"{path}: records rejected: {len(facts['rejected'])}, the first: {first}")
    records, format_ = facts["records"], facts["format"]
    if console.stage(stage, f"write {records} records from {format_}"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in stage.result["kinds"].items())
        console.line(
            f"{stage.folder / 'data.jsonl'}: {records} records ({kinds}) of {stage.result['images']} pictures "
            f"from {format_}, {stage.result['rejected']} rejected"
        )
    if not stage.dry_run:
        console.next_verb("data", "check", stage.folder / "data.jsonl")


@verb(api.check)
@click.option("--strict", is_flag=True, help="Exit with code 1 for warnings as well, not only for errors.")
@click.option("--examples", type=click.IntRange(min=0), default=3, help="How many warnings of each rule to print.")
def check(console: Console, strict: bool, examples: int, **options: Any) -> int:
    """Say what is wrong with a data set: all errors with file and line, and what trains badly.

    Exit code 0: nothing wrong, or warnings only. 1: errors, or warnings under --strict; with --fix, what is left of
    them in the cleaned copy. 2: there is nothing to check.
    """
    found = api.check(**options)
    if found.stage is not None:
        state = "unchanged" if found.stage.skipped else "would be written" if options["dry_run"] else "written"
        console.note(f"{found.stage.folder}: {state}")
    final = found.after or found.report
    console.result({**found.report.to_dict(), **({"after": found.after.to_dict()} if found.after else {})})
    _tell(console, found.report, examples)
    if found.after:
        console.line(f"after --fix {','.join(options['fixes'])}: {_count(found.after)}")
    return int(final.errors > 0 or (strict and final.warnings > 0))


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


@verb(api.crop)
def crop(console: Console, **options: Any) -> None:
    stage = api.crop(**options)
    facts = stage.facts
    summary = (
        f"{facts['records']} records: {facts['cropped']} on crops, {facts['records'] - facts['cropped']} as they were"
    )
    if facts["dropped"]:
        summary += f", {facts['dropped']} dropped"
    if facts["cut"] or facts["left_out"]:
        summary += f"; {facts['cut']} boxes cut, {facts['left_out']} left out (changes.jsonl)"
    if console.stage(stage, "be written"):
        console.line(f"{stage.folder}: {summary}")
    if not stage.dry_run:
        console.next_verb("data", "check", stage.folder / "data.jsonl")


@verb(api.split)
def split(console: Console, **options: Any) -> None:
    stage = api.split(**options)
    console.table(stage.facts["summary"])
    summary = f"{stage.facts['records']} records in {stage.facts['groups']} groups"
    if console.stage(stage, "be written"):
        console.line(f"{stage.folder}: {summary}")
    if not stage.dry_run:
        files = ("--data", stage.folder / "train.jsonl", "--val", stage.folder / "val.jsonl")
        console.next_verb("train", "--checkpoint", "BASE", *files, "--output", "ADAPTER")


@verb(api.stats)
def stats(console: Console, **options: Any) -> None:
    found = api.stats(**options)
    data = options["data"]
    console.result({"data": data, **found})
    kinds = ", ".join(f"{number} {kind}" for kind, number in found["kinds"].items())
    console.line(f"{data}: {found['records']} records ({kinds}) of {found['images']} pictures")
    console.line(f"{found['boxes']} boxes, {found['points']} points, {found['labels']} different labels")
    console.line()
    spreads = found["distributions"] | found["tokens"]
    console.table([{"": name, **numbers} for name, numbers in spreads.items() if numbers])
    if found["boxes"]:
        console.line()
        places = list(found["positions"].values())
        rows = zip(("top", "middle", "bottom"), (places[:3], places[3:6], places[6:]), strict=True)
        columns = ("left", "centre", "right")
        console.table([{"box centres": row, **dict(zip(columns, counts, strict=True))} for row, counts in rows])
    if found["most_frequent_labels"]:
        console.line()
        frequent = found["most_frequent_labels"].items()
        console.table([{"label": label, "boxes": number} for label, number in frequent])
    if not found["tokens"]:
        console.line()
        console.line("not counted: tokens (needs --checkpoint, or --family with --min-pixels and --max-pixels)")


SUBCOMMANDS: dict[str, click.Command] = {
    "convert": convert,
    "check": check,
    "crop": crop,
    "split": split,
    "stats": stats,
}


@verb(subcommands=SUBCOMMANDS)
@click.argument("subcommand", shell_complete=lambda *call: [name for name in SUBCOMMANDS if name.startswith(call[-1])])
def command(console: Console, subcommand: str) -> None:
    """Convert, check, crop, split and count data sets."""
    raise click.NoSuchCommand(subcommand, possibilities=SUBCOMMANDS, ctx=click.get_current_context())


command.no_args_is_help = True

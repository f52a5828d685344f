"""`edgetune label`: proposals for people to decide, and learning from what they decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.api import label as api
from edgetune.commands._common import Console, verb
from edgetune_core.stage import StageResult


def _report(console: Console, stage: StageResult, folder: Path) -> bool:
    """Say what was proposed, and return whether that is something."""
    others = stage.facts.get("others", 0)
    if others:
        console.note(f"{folder}: files that are no pictures by their names, left out: {others}")
    if not console.stage(stage, f"propose for {stage.facts.get('pictures', 'the')} pictures"):
        return bool(stage.result.get("written"))
    found = stage.result
    if found["rejected"]:
        console.note(f"{folder}: pictures that cannot be read: {found['rejected']} ({api.REJECTED})")
    if found["cut"] or found["left_out"]:
        console.note(f"boxes cut at the edge of their picture: {found['cut']}, left out beyond it: {found['left_out']}")
    if found["unread"]:
        console.note(f"answers that could not be read as boxes: {found['unread']}")
    console.line(
        f"{stage.folder}: {found['pictures']} pictures, {found['duplicates']} of them nearly the same as another; "
        f"the first {found['written']} are written, with {found['boxes']} boxes"
    )
    return True


@verb(api.merge_proposals)
def merge(console: Console, **options: Any) -> None:
    stage = api.merge_proposals(**options)
    _report(console, stage, options["folder"])


SUBCOMMANDS: dict[str, click.Command] = {"merge": merge}


@verb(api.label, subcommands=SUBCOMMANDS)
def command(console: Console, **options: Any) -> None:
    stage = api.label(**options)
    folder = options["folder"]
    if _report(console, stage, folder) and not stage.dry_run:
        checkpoint = options["checkpoint"] or "BASE"
        learned = [word for path in options["learn"] for word in ("--learn", path)]
        bundle = stage.manifest["inputs"]["bundle"]["path"]
        places = ("--checkpoint", checkpoint, "--bundle", bundle, "--output", "ROUND")
        console.next_verb("label", folder, *options["phrases"], *learned, "--learn", "CORRECTED", *places)

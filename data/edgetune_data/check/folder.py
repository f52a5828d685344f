"""The folder that a check writes: report.json, sheet.html, and with fixes data.jsonl and changes.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune_data.check.cover import copy_of, covered, write_copy
from edgetune_data.check.findings import Report
from edgetune_data.check.fix import fix
from edgetune_data.check.material import Material
from edgetune_data.check.run import check
from edgetune_data.check.sheet import sheet
from edgetune_data.image_facts import facts_of
from edgetune_data.read import Item, pictures_of
from edgetune_data.rewrite import moved, write_lines, write_set
from edgetune_runtime.records.forms import read_form

DATA, CHANGES, REPORT, SHEET = "data.jsonl", "changes.jsonl", "report.json", "sheet.html"


def write(
    work: Path, output: Path, material: Material, report: Report, fixes: Sequence[str], pictures: int
) -> dict[str, Any]:
    """Write the files into `work`, which becomes `output`, and return the manifest's result."""
    (work / REPORT).write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / SHEET).write_text(sheet(report, pictures), encoding="utf-8")
    result: dict[str, Any] = {"records": report.records, "errors": report.errors, "warnings": report.warnings}
    if fixes:
        kept, changes = fix(material, report, fixes, output)
        values = [moved(entry, value, output) for entry, value in kept]
        named = {
            Path(name): image
            for entry, value in kept
            for name, image in zip(pictures_of(value), entry.images, strict=True)
        }
        images = [
            write_copy(facts, work) if path == copy_of(facts, output) else image
            for path, image in named.items()
            if (facts := material.facts(image))
        ]
        write_set(work, {DATA: values}, images, list(dict.fromkeys(entry.path for entry in material.entries)))
        result |= {"kept": len(kept)}
        result |= {"changes": write_lines(work / CHANGES, (change.to_dict() for change in changes))}
    return result


def recheck(material: Material, report: Report, fixes: Sequence[str], output: Path, against: Sequence[Path]) -> Report:
    """Check the cleaned copy as it stands, or will stand, in `output`; only covered pictures are looked at again."""
    kept, _ = fix(material, report, fixes, output)
    entries = []
    for line, (entry, value) in enumerate(kept, start=1):
        form = read_form(value) if entry.form is not None else None
        entries.append(Item(output / DATA, f":{line}", value, form, entry.error))
    named = {image for entry in entries for image in entry.images}
    pictures = {path: facts for path, facts in material.pictures.items() if path in named}
    # Made once more, for a dry run has left none.
    for facts in material.decoded:
        copy = copy_of(facts, output)
        if copy in named:
            pictures[copy] = facts_of(covered(facts), copy, quality=True, looks=material.looks)
    cleaned = replace(material, path=output / DATA, entries=entries, pictures=pictures)
    return check(cleaned, against)

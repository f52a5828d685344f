"""The folder that a check writes: report.json, sheet.html, and with fixes data.jsonl and changes.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune_data.check.findings import Report
from edgetune_data.check.fix import fix
from edgetune_data.check.material import Material
from edgetune_data.check.run import check
from edgetune_data.check.sheet import sheet
from edgetune_data.entries import Entry
from edgetune_data.rewrite import moved, write_lines, write_set
from edgetune_runtime.record_forms import read_form

DATA, CHANGES, REPORT, SHEET = "data.jsonl", "changes.jsonl", "report.json", "sheet.html"


def write(
    work: Path, output: Path, material: Material, report: Report, fixes: Sequence[str], pictures: int
) -> dict[str, Any]:
    """Write the files into `work`, which becomes `output`, and return the manifest's result."""
    (work / REPORT).write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / SHEET).write_text(sheet(report, pictures), encoding="utf-8")
    result: dict[str, Any] = {"records": report.records, "errors": report.errors, "warnings": report.warnings}
    if fixes:
        kept, changes = fix(material, report, fixes)
        values = [moved(entry, value, output) for entry, value in kept]
        images = dict.fromkeys(image for entry, _ in kept for image in entry.images if material.facts(image))
        write_set(work, {DATA: values}, images, list(dict.fromkeys(entry.path for entry in material.entries)))
        result |= {"kept": len(kept)}
        result |= {"changes": write_lines(work / CHANGES, (change.to_dict() for change in changes))}
    return result


def recheck(material: Material, report: Report, fixes: Sequence[str], output: Path, against: Sequence[Path]) -> Report:
    """Check the cleaned copy as it stands, or will stand, in `output`; no picture is decoded again."""
    kept, _ = fix(material, report, fixes)
    entries = []
    for line, (entry, value) in enumerate(kept, start=1):
        form = read_form(value) if entry.form is not None else None
        entries.append(Entry(output / DATA, f":{line}", value, form, entry.error))
    named = {image for entry in entries for image in entry.images}
    pictures = {path: facts for path, facts in material.pictures.items() if path in named}
    cleaned = replace(material, path=output / DATA, entries=entries, pictures=pictures)
    return check(cleaned, against)

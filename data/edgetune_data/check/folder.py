"""The folder that a check writes: report.json, sheet.html, and with fixes data.jsonl and changes.jsonl."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune_data.check.cover import copy_of, regions_of, write_copy
from edgetune_data.check.findings import Report
from edgetune_data.check.fix import fix
from edgetune_data.check.material import Material
from edgetune_data.check.run import check
from edgetune_data.check.sheet import sheet
from edgetune_data.entries import Entry
from edgetune_data.image_facts import ImageFacts, read_images
from edgetune_data.read import pictures_of
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
        kept, changes = fix(material, report, fixes, output)
        values = [moved(entry, value, output) for entry, value in kept]
        copies = {copy_of(facts, output): facts for facts in material.decoded if "cover" in fixes and regions_of(facts)}
        named = dict.fromkeys(path for _, value in kept for path in map(Path, pictures_of(value)))
        images = [write_copy(copies[path], work) if path in copies else path for path in named]
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
        entries.append(Entry(output / DATA, f":{line}", value, form, entry.error))
    named = {image for entry in entries for image in entry.images}
    pictures = {path: facts for path, facts in material.pictures.items() if path in named}
    if "cover" in fixes:
        pictures |= _copies(material, named, output)
    cleaned = replace(material, path=output / DATA, entries=entries, pictures=pictures)
    return check(cleaned, against)


def _copies(material: Material, named: Container[Path], output: Path) -> dict[Path, ImageFacts]:
    """Return what the covered copies are that records name, from making them once more: a dry run has left none."""
    hurt = [facts for facts in material.decoded if regions_of(facts) and copy_of(facts, output) in named]
    with tempfile.TemporaryDirectory() as name:
        made = {write_copy(facts, Path(name)): copy_of(facts, output) for facts in hurt}
        looked = read_images(made, quality=True, looks=material.looks)
    return {
        made[path]: replace(facts, path=made[path]) for path, facts in looked.items() if isinstance(facts, ImageFacts)
    }

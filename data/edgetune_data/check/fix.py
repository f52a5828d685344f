"""A cleaned copy: only what can be mended in one way, each change told with its reason. Originals stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_data.check.boxes import fault, written
from edgetune_data.check.copies import content
from edgetune_data.check.cover import copy_of, hidden, regions_of
from edgetune_data.check.findings import Report
from edgetune_data.check.material import Material
from edgetune_data.image_facts import ImageFacts
from edgetune_data.read import Item, pictures_of, with_pictures
from edgetune_data.rewrite import with_places
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.dialogue import Place

FIXES = {
    "unreadable": "drop records that cannot be read, or whose picture cannot",
    "duplicates": "drop a record that is there already",
    "swap": "put the corners of inverted boxes in order",
    "clip": "cut boxes that leave their picture by at most one pixel",
    "boxes": "drop records with boxes that are still wrong",
    "leaks": "drop records whose picture is in an --against file, or nearly",
    "cover": "paint over what a redactor found, in copies of the pictures",
    "private": "drop records whose picture a redactor objects to",
}
"""What can be asked for, in the order in which it is done."""

SAFE = ("unreadable", "duplicates")
"""What is done unless something else is asked for: nothing here changes what a record says."""

_RULE = {"leaks": "leak", "cover": "private", "private": "private"}
"""Fixes that go by the findings of a rule which is not looked for in every check."""

_ROUNDING = 1.0  # pixels by which a box may leave its picture and count as a matter of rounding


@dataclass(frozen=True)
class Change:
    """One record that was changed or dropped: where it stood, which fix, why, and what it says now (None: dropped)."""

    source: str
    fix: str
    reason: str
    value: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        action = "dropped" if self.value is None else "changed"
        return {"source": self.source, "action": action, "fix": self.fix, "reason": self.reason}


def parse_fixes(names: str) -> tuple[str, ...]:
    """Return the fixes of a list such as "unreadable,duplicates", in the order in which they are done.

    Raises:
        InputError: one is unknown, or two exclude each other.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in FIXES]
    if unknown or not asked:
        raise InputError(f"--fix: unknown fix {(unknown or [names])[0]!r}", hint=f"known: {', '.join(FIXES)}")
    if {"cover", "private"} <= set(asked):
        raise InputError("--fix cover,private: what is covered need not be dropped", hint="name one of them")
    return tuple(name for name in FIXES if name in asked)


def fix(
    material: Material, report: Report, fixes: Sequence[str], folder: Path
) -> tuple[list[tuple[Item, Any]], list[Change]]:
    """Return the kept records as (line, its object now), and every change.

    Args:
        material: what was checked.
        report: what was found in it.
        fixes: names of `FIXES`.
        folder: where covered copies of pictures will be, see `cover.copy_of`.

    Raises:
        InputError: a fix needs a finding that was not looked for, or a record cannot be read and is not to be dropped.
    """
    for name, rule in _RULE.items():
        if name in fixes and rule in report.skipped:
            raise InputError(f"--fix {name} {report.skipped[rule]}")
    unreadable = [entry for entry in material.entries if entry.form is None]
    if unreadable and "unreadable" not in fixes:
        raise InputError(
            f"{unreadable[0].source}: cannot be read, so it cannot be copied",
            hint=f"--fix unreadable,{','.join(fixes)}",
        )
    kept: list[tuple[Item, Any]] = []
    changes: list[Change] = []
    bad = {name: _lines(report, rule) for name, rule in _RULE.items()}
    seen: dict[str, Item] = {}
    for entry in material.entries:
        value: Any = entry.value
        for change in _changes(material, entry, fixes, seen, bad, folder):
            changes.append(change)
            value = change.value
            if value is None:
                break
        else:
            kept.append((entry, value))
    return kept, changes


def _changes(
    material: Material,
    entry: Item,
    fixes: Sequence[str],
    seen: dict[str, Item],
    bad: dict[str, set[str]],
    folder: Path,
) -> Iterator[Change]:
    """Yield what is done to one record, in order; a dropped one ends it."""
    broken = entry.form is None or any(material.facts(image) is None for image in entry.images)
    if broken:
        if "unreadable" in fixes:
            errors = [str(material.pictures[image]) for image in entry.images if material.facts(image) is None]
            yield Change(entry.source, "unreadable", str(entry.error) if entry.error else "; ".join(errors), None)
        return
    if "duplicates" in fixes:
        first = seen.setdefault(content(entry, material), entry)
        if first is not entry:
            yield Change(entry.source, "duplicates", f"the same record as {first.source}", None)
            return
    places, value = entry.places, dict(entry.value or {})
    for name, mend in (("swap", _swapped), ("clip", _clipped)):
        if name in fixes:
            mended = [mend(place, *_size(material, entry, place)) for place in places]
            if mended != places:
                told = [
                    f"{written(a.numbers)} is now {written(b.numbers)}"
                    for a, b in zip(places, mended, strict=True)
                    if a != b
                ]
                places, value = mended, with_places(value, mended)
                yield Change(entry.source, name, "; ".join(told), value)
    faults = [wrong for place in places if (wrong := fault(place.numbers, *_size(material, entry, place)))]
    if faults and "boxes" in fixes:
        yield Change(entry.source, "boxes", "; ".join(faults), None)
        return
    for name, why in (("leaks", "its picture is in an --against file"), ("private", "a redactor objects")):
        if name in fixes and entry.line in bad[name]:
            yield Change(entry.source, name, why, None)
            return
    if "cover" in fixes:
        found = {image: facts for image in entry.images if (facts := material.facts(image)) and regions_of(facts)}
        if found:
            names = zip(pictures_of(value), entry.images, strict=True)
            copies = {name: str(copy_of(found[image], folder)) if image in found else name for name, image in names}
            yield Change(entry.source, "cover", _covers(entry, places, found), with_pictures(value, copies))


def _covers(entry: Item, places: Sequence[Place], found: Mapping[Path, ImageFacts]) -> str:
    """Return what is covered in a record's pictures, and which of its boxes hardly anything is left of."""
    told = []
    for image, facts in found.items():
        regions = regions_of(facts)
        told.append(f"{len(regions)} of {', '.join(sorted({region.kind for region in regions}))} in {image.name}")
        for place in places:
            share = hidden(place, regions, facts.width, facts.height) if entry.images[place.image] == image else 0.0
            if share > 0.5:
                told.append(f"{share:.0%} of {written(place.numbers)} is hidden now")
    return "; ".join(told)


def _lines(report: Report, rule: str) -> set[str]:
    return {line for finding in report.of(rule) for line in finding.lines}


def _size(material: Material, entry: Item, place: Place) -> tuple[int, int]:
    facts = material.facts(entry.images[place.image])
    assert facts is not None
    return facts.width, facts.height


def _swapped(place: Place, _width: int, _height: int) -> Place:
    if len(place.numbers) == 2:
        return place
    x1, y1, x2, y2 = place.numbers
    return Place((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), place.image)


def _clipped(place: Place, width: int, height: int) -> Place:
    """Cut what leaves the picture by rounding; a box that is further out is wrong in another way and stays."""
    ends = (width, height, width, height)[: len(place.numbers)]
    inside = tuple(min(max(number, 0), end) for number, end in zip(place.numbers, ends, strict=True))
    near = all(abs(a - b) <= _ROUNDING for a, b in zip(place.numbers, inside, strict=True))
    return Place(inside, place.image) if near else place

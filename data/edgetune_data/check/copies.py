"""What is there more than once: records, pictures, and pictures that another file has too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgetune_data.check.findings import Finding
from edgetune_data.check.material import Material
from edgetune_data.image_facts import ImageFacts
from edgetune_data.near_duplicates import clusters, near_pairs, stack
from edgetune_data.read import Item


def check(material: Material, against: Mapping[Path, Sequence[ImageFacts]]) -> Iterator[Finding]:
    """Yield what is there twice in the file, and what is in one of the other files as well.

    Args:
        material: the file.
        against: other data file -> its decoded pictures.
    """
    yield from _records(material)
    yield from _pictures(material)
    yield from _near(material)
    for path, pictures in against.items():
        yield from _leaks(material, path, pictures)


def content(entry: Item, material: Material) -> str:
    """Return what a record says, whatever it is called: equal texts are equal records about equal pictures."""
    assert entry.value is not None
    names = {"image": None, "images": None, "id": None, "meta": None}
    said = {key: value for key, value in entry.value.items() if key not in names}
    return json.dumps([[material.identity(image) for image in entry.images], said], sort_keys=True)


def _records(material: Material) -> Iterator[Finding]:
    told: dict[str, list[Item]] = {}
    for entry in material.entries:
        if entry.form is not None:
            told.setdefault(content(entry, material), []).append(entry)
    for same in told.values():
        if len(same) > 1:
            first = same[0]
            yield material.finding(
                "duplicate-record",
                same,
                f"the record is there {len(same)} times: lines {', '.join(entry.line for entry in same[:5])}"
                + (" …" if len(same) > 5 else ""),
                image=first.images[0] if first.images else None,
                boxes=[place.numbers for place in first.places],
                badness=len(same),
            )


def _pictures(material: Material) -> Iterator[Finding]:
    for same in _by_pixels(material.decoded).values():
        if len(same) > 1:
            entries = [entry for facts in same for entry in material.naming[facts.path]]
            names = ", ".join(facts.path.name for facts in same[:3]) + (" …" if len(same) > 3 else "")
            yield material.finding(
                "duplicate-picture",
                entries,
                f"{len(same)} files hold the same picture: {names}",
                image=same[0].path,
                other=same[1].path,
                badness=len(same),
            )


def _near(material: Material) -> Iterator[Finding]:
    unique = [same[0] for same in _by_pixels(material.decoded).values()]
    for group in clusters([facts.phash for facts in unique], material.limits.near):
        if len(group) > 1:
            alike = [unique[index] for index in group]
            names = ", ".join(facts.path.name for facts in alike[:3]) + (" …" if len(alike) > 3 else "")
            yield material.finding(
                "near-duplicate",
                [entry for facts in alike for entry in material.naming[facts.path]],
                f"{len(alike)} pictures are nearly the same: {names}",
                image=alike[0].path,
                other=alike[1].path,
                badness=len(alike),
            )


def _leaks(material: Material, path: Path, pictures: Sequence[ImageFacts]) -> Iterator[Finding]:
    unique = list(_by_pixels(material.decoded).values())
    theirs = [same[0] for same in _by_pixels(pictures).values()]
    nearest: dict[int, tuple[int, int]] = {}
    mine = stack(same[0].phash for same in unique)
    for row, column, bits in near_pairs(mine, stack(facts.phash for facts in theirs), material.limits.near):
        same_pixels = unique[row][0].sha256 == theirs[column].sha256
        nearest[row] = min(nearest.get(row, (65, column)), (-1 if same_pixels else bits, column))
    for row, (bits, column) in nearest.items():
        for facts in unique[row]:
            how = "is the same picture as" if bits < 0 else f"differs in {bits} of 64 bits from"
            yield material.finding(
                "leak",
                material.naming[facts.path],
                f"{facts.path.name} {how} {theirs[column].path.name} of {path}",
                image=facts.path,
                other=theirs[column].path,
                badness=-bits,
            )


def _by_pixels(pictures: Sequence[ImageFacts]) -> dict[str, list[ImageFacts]]:
    same: dict[str, list[ImageFacts]] = {}
    for facts in pictures:
        same.setdefault(facts.sha256, []).append(facts)
    return same

"""Canonical records written anew: with other places, in another folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune_data.manifest import NAME, describe, hash_files, relative
from edgetune_data.read import Item, pictures_of, with_pictures
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.dialogue import Place


def with_places(value: Mapping[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """Return a record whose boxes and points, in order, are replaced by as many others."""
    numbers = [[_plain(number) for number in place.numbers] for place in places]
    if "objects" in value:
        return {**value, "objects": {**value["objects"], "bbox": numbers}}
    if "bbox" not in value:
        return dict(value)
    single = bool(value["bbox"]) and not isinstance(value["bbox"][0], list)
    return {**value, "bbox": numbers[0] if single else numbers}


def moved(entry: Item, value: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what a record says now as a file in `folder` says it: every picture named from there.

    Args:
        entry: the record as it was read.
        value: the same or a changed one, its pictures as paths from the current folder.
        folder: where it will be written.
    """
    named = with_pictures(value, {name: relative(Path(name), folder) for name in pictures_of(value)})
    origin = origin_of(entry)
    if origin is None or value.get("meta") != (entry.value or {}).get("meta"):
        return named
    path, crop = origin
    return {**named, "meta": {**named["meta"], "origin": {"image": relative(path, folder), "crop": list(crop)}}}


def origin_of(entry: Item) -> tuple[Path, tuple[int, ...]] | None:
    """Return the picture that a record's own one was cut from, and the crop in its pixels, or None for an original.

    Raises:
        InputError: what the record says of it makes no sense.
    """
    origin = ((entry.value or {}).get("meta") or {}).get("origin")
    if origin is None:
        return None
    image, crop = (origin.get("image"), origin.get("crop")) if isinstance(origin, dict) else (None, None)
    numbers = isinstance(crop, list) and len(crop) == 4 and all(type(number) is int for number in crop)
    if not isinstance(image, str) or not isinstance(crop, list) or not numbers:
        raise InputError(f'{entry.source}: meta.origin must be {{"image": path, "crop": [x1, y1, x2, y2]}}')
    return entry.path.parent / image, tuple(crop)


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> int:
    """Write objects as JSON Lines and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for value in values:
            stream.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_set(
    work: Path, files: Mapping[str, Sequence[Mapping[str, Any]]], images: Iterable[Path], made_from: Sequence[Path]
) -> dict[str, Any]:
    """Write data files with their `dataset.json`, and return it.

    Args:
        work: the folder to write to.
        files: name -> records, whose pictures are named relative to the folder.
        images: the pictures that they name.
        made_from: the files that they come from.
    """
    counts = [write_lines(work / name, values) for name, values in files.items()]
    described = describe(
        work,
        records=sum(counts),
        files=[work / name for name in files],
        images=hash_files(images),
        made_from=hash_files(made_from),
    )
    (work / NAME).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return described


def _plain(number: float) -> float:
    rounded = round(float(number), 6)  # sums of decimals are not exact in binary
    return int(rounded) if rounded.is_integer() else rounded

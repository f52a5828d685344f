"""Writing a data set as canonical JSONL, with its pictures' hashes and a list of what was refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from edgetune_data.formats.base import Value
from edgetune_data.formats.canonical import DATA
from edgetune_data.manifest import NAME, Hashed, describe, hash_files, relative, set_hash
from edgetune_data.read import Reading, pictures_of, with_pictures, with_source
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.dialogue import Dialogue

REJECTED = "rejected.jsonl"
IMAGES = "images"


@dataclass(frozen=True)
class Converted:
    """A data set that has been read to the end.

    Attributes:
        reading: where it came from.
        values: its canonical records; paths of pictures lead from the current folder.
        kinds: how many records of each kind: ground, vqa, dialogue.
        rejected: what was refused, as lines of rejected.jsonl.
        images: hashes of the pictures, by path.
    """

    reading: Reading
    values: list[Value]
    kinds: dict[str, int]
    rejected: list[dict[str, Any]]
    images: dict[Path, Hashed]

    @property
    def images_sha256(self) -> str:
        """One sha256 over all pictures."""
        return set_hash(self.images)


def collect(reading: Reading, *, on_error: Literal["stop", "report"] = "stop") -> Converted:
    """Read and check a data set to the end.

    Raises:
        InputError: the first bad record with "stop"; with "report" only when no good one is left.
    """
    values: list[Value] = []
    rejected: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    known = reading.format.name == "edgetune"
    for item in tqdm(reading, desc="read", unit="record", disable=None, delay=2, leave=False):
        try:
            record = item.record()
        except InputError as problem:
            if on_error == "stop":
                raise
            rejected.append({"source": item.name, "problem": str(problem), "record": item.found})
            continue
        value = item.value or {}
        values.append(value if known else with_source(value, item.name))
        kinds["dialogue" if isinstance(record, Dialogue) else record.kind] += 1
    if not values:
        raise InputError(f"{reading.path}: none of {len(rejected)} records can be used; {rejected[0]['problem']}")
    paths = dict.fromkeys(Path(name) for value in values for name in pictures_of(value))
    hashed = hash_files(tqdm(paths, desc="hash images", unit="image", disable=None, delay=2, leave=False))
    return Converted(reading, values, dict(kinds), rejected, hashed)


def write(converted: Converted, folder: Path, *, copy_images: bool = False) -> dict[str, Any]:
    """Write data.jsonl, dataset.json, images/ where pictures were inside the data or are copied, and rejected.jsonl.

    Other pictures stay where they are, and data.jsonl names them relative to `folder`.

    Returns:
        What a manifest says of it: counts by kind, of pictures, of refused records, and remarks.
    """
    names: dict[str, str] = {}
    images: dict[Path, Hashed] = {}
    for path, entry in converted.images.items():
        place = path
        if copy_images or path in converted.reading.pictures.written:
            (folder / IMAGES).mkdir(exist_ok=True)
            place = folder / IMAGES / f"{entry['sha256'][:16]}{path.suffix.lower()}"
            shutil.copyfile(path, place)
        names[str(path)] = relative(place, folder)
        images[place] = entry
    lines = [
        with_pictures(value, {name: names[str(Path(name))] for name in pictures_of(value)})
        for value in converted.values
    ]
    _write_lines(folder / DATA, lines)
    if converted.rejected:
        _write_lines(folder / REJECTED, converted.rejected)
    made_from = hash_files(converted.reading.files)
    described = describe(folder, records=len(lines), files=[folder / DATA], images=images, made_from=made_from)
    (folder / NAME).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "format": converted.reading.format.name,
        "records": len(lines),
        "kinds": converted.kinds,
        "images": len(converted.images),
        "images_sha256": converted.images_sha256,
        "rejected": len(converted.rejected),
        "notes": dict(converted.reading.notes),
    }


def _write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for value in values:
            stream.write(json.dumps(value, ensure_ascii=False, default=_unwritable) + "\n")


def _unwritable(value: object) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)

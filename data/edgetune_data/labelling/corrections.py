"""What people made of proposals: several files of corrections, of any known format, as one data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edgetune_data.formats import find
from edgetune_data.formats.base import Value
from edgetune_data.formats.canonical import DATA
from edgetune_data.manifest import relative
from edgetune_data.read import Reading, pictures_of, with_pictures, with_source
from edgetune_data.rewrite import write_set
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import image_hash, load_image

_SERVED = "labelstudio"


def read_settings(path: Path, folder: Path, phrases: Sequence[str], image_root: Path | None) -> ReadSettings:
    """Return how a file of corrections is read, as `edgetune_data.labelling.tasks` has named the pictures in it.

    Args:
        path: the file.
        folder: of the pictures that were proposed for.
        phrases: what was looked for on every picture.
        image_root: the folder that paths of pictures start from, where it is another one.

    Raises:
        InputError: the file is not recognised.
    """
    format = find("auto", path)
    if "absent" not in format.options:
        return ReadSettings(image_root=image_root)
    root = folder.resolve().parent if format.name == _SERVED else folder
    return ReadSettings(image_root=image_root or root, absent=tuple(phrases))


def collect(paths: Sequence[Path], settings: Sequence[ReadSettings]) -> tuple[list[Value], list[Path], Counter[str]]:
    """Return the records of corrected files, the files, and the remarks of reading.

    Of two records with one picture and one phrase, that of the later file counts: it was corrected again.

    Raises:
        InputError: the first bad record.
    """
    records: dict[tuple[Any, ...], Value] = {}
    files: list[Path] = []
    notes: Counter[str] = Counter()
    for number, (path, chosen) in enumerate(zip(paths, settings, strict=True)):
        reading = Reading(path, "auto", chosen)
        files += reading.files
        for place, item in enumerate(reading):
            item.record()
            value = with_source(item.value or {}, item.name)
            grounds = "text" in value and "bbox" in value
            key = (str(Path(value["image"]).resolve()), value["text"]) if grounds else (number, place)
            records[key] = value
        notes += reading.notes
    return list(records.values()), files, notes


def write(records: Sequence[Value], files: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Write records as data.jsonl with its dataset.json; return what a manifest says of them."""
    images = {name: relative(Path(name), folder) for value in records for name in pictures_of(value)}
    named = [with_pictures(value, images) for value in records]
    write_set(folder, {DATA: named}, map(Path, images), files)
    absent = sum(value.get("bbox") == [] for value in records)
    return {"records": len(records), "absent": absent, "images": len(images)}


def pixels(records: Iterable[Value]) -> set[str]:
    """Return the sha256 of the pixels of all pictures that records name.

    Raises:
        ImageError: a picture cannot be read.
    """
    paths = dict.fromkeys(name for value in records for name in pictures_of(value))
    bar = tqdm(paths, desc="read labelled pictures", unit="image", disable=None, delay=2, leave=False)
    return {image_hash(load_image(Path(path))) for path in bar}


def check_phrases(phrases: Sequence[str]) -> None:
    """Refuse an empty list of phrases, and one that has a phrase twice.

    Raises:
        InputError: it is such a one.
    """
    if not phrases:
        raise InputError("no phrase given", hint='name what to look for, as in "cup" "jar"')
    twice = [phrase for phrase, count in Counter(phrases).items() if count > 1]
    if twice:
        raise InputError(f"the phrase {twice[0]!r} is given twice")

"""YOLO detection data: a text file beside each picture, class names in data.yaml (or classes.txt).

Format: docs.ultralytics.com/datasets/detect. A line is a class and a box `cx cy w h` in shares of the picture's width
and height. The labels of `images/…/a.jpg` are `labels/…/a.txt`, those of a picture elsewhere lie beside it. There is
one record for each picture and class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.formats.base import IMAGE_ROOT, Format, Row, Source, Value, in_folders, number_in, read_text
from edgetune_data.formats.sniffing import Sniffed
from edgetune_data.frames import corners, frame_of
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.records.forms import FormError

DATA, CLASSES = "data.yaml", "classes.txt"
SPLITS = ("train", "val", "test")
PICTURES = frozenset((".bmp", ".dng", ".heic", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"))
_DECIMALS = re.compile(r"\.(\d+)$")
_LEAST_DECIMALS = 4
"""Labels are rounded to six decimals by most tools; trailing zeros may be gone, so fewer than these say nothing."""


@dataclass(frozen=True)
class _Data:
    """What data.yaml says.

    Attributes:
        names: class number -> name.
        pictures: the chosen split's, sorted.
        keypoints: labels are a box and keypoints, and not an outline.
    """

    names: Mapping[int, str]
    pictures: Sequence[Path]
    keypoints: bool = False


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the file with the names of classes, and the labels.

    Raises:
        InputError: a file or folder is missing, or there are several splits and none was chosen.
    """
    named = _named(path)
    labels = (_labels(picture) for picture in _open(named, options).pictures)
    return [named, *in_folders(file for file in labels if file.is_file())]


def _named(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in (DATA, "data.yml", CLASSES) if (path / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{path}: neither {DATA} nor {CLASSES}, which name the classes", hint="give the YAML file itself"
        )
    return found


def _open(path: Path, options: ReadSettings) -> _Data:
    if path.name == CLASSES:
        if options.split:
            raise InputError(f"{path}: has no splits, but --split {options.split} was given")
        lines = read_text(path).splitlines()
        named = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
        return _Data(_checked(path, named), _listed(options.image_root or path.parent))
    value = _yaml(path)
    given = value.get("names")
    names: Any = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path}: 'names' must be the classes' names, a list or an object by number", hint=_EXAMPLE)
    if value.get("nc") not in (None, len(names)):
        raise InputError(f"{path}: 'nc' is {excerpt(value['nc'])}, but there are {len(names)} names")
    root = _root(path, value, options)
    splits = [name for name in SPLITS if value.get(name)]
    if not splits:
        raise InputError(f"{path}: names no pictures: 'train', 'val' or 'test' is missing", hint=_EXAMPLE)
    split = options.split or splits[0]
    if split not in splits:
        raise InputError(f"{path}: there is no split {split!r}", hint=f"it has {', '.join(splits)}")
    if len(splits) > 1 and not options.split:
        raise InputError(
            f"{path}: has several splits: {', '.join(splits)}", hint="edgetune data convert --split NAME reads one"
        )
    places = value[split] if isinstance(value[split], list) else [value[split]]
    pictures = [picture for place in places for picture in _pictures(path, root, place)]
    return _Data(_checked(path, names), list(dict.fromkeys(pictures)), "kpt_shape" in value)


_EXAMPLE = "such as: train: images/train, val: images/val, names: {0: cup, 1: book}"


def _checked(path: Path, names: Mapping[Any, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, name in names.items():
        if type(number) is not int or not isinstance(name, str | int) or not str(name).strip():
            raise InputError(
                f"{path}: class {excerpt(number)} is named {excerpt(name)}", hint="names are texts by number, from 0"
            )
        if str(name).strip() in found.values():
            raise InputError(f"{path}: two classes have the same name, {name!r}")
        found[number] = str(name).strip()
    return found


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise InputError(f"{path}: no such data file")
    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f":{place.line + 1}" if place else ""
        raise InputError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be an object with 'names' and 'train'", hint=_EXAMPLE)
    return value


def _root(path: Path, value: Mapping[str, Any], options: ReadSettings) -> Path:
    """Return the folder that the splits' paths start from."""
    if options.image_root:
        return options.image_root
    said = value.get("path")
    if said is None:
        return path.parent
    if not isinstance(said, str):
        raise InputError(f"{path}: 'path' must be a folder's path, got {excerpt(said)}")
    root = path.parent / said
    if not root.is_dir():
        raise InputError(f"{path}: there is no folder {root}, as 'path' says", hint="--image-root names the right one")
    return root


def _pictures(path: Path, root: Path, place: Any) -> list[Path]:
    """Return the pictures of a folder, or those that a text file lists."""
    if not isinstance(place, str):
        raise InputError(f"{path}: a split is a folder or a text file of pictures, got {excerpt(place)}")
    found = root / place
    if not found.exists() and place.startswith("../"):
        found = root / place.removeprefix("../")  # Roboflow's exports are written one folder too high
    if found.is_dir():
        return _listed(found)
    if not found.is_file():
        raise InputError(
            f"{path}: there is no {root / place}", hint="--image-root names the folder that paths start from"
        )
    lines = (line.strip() for line in read_text(found).splitlines())
    return [found.parent / line for line in lines if line]


def _listed(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())


def _labels(picture: Path) -> Path:
    """Return the file with a picture's labels: the last folder "images" becomes "labels", as that tool does it."""
    parts = list(picture.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each picture and class, at its first line."""
    data = _open(_named(source.path), source.options)
    for picture in data.pictures:
        path = _labels(picture)
        if not path.is_file():
            source.notes["pictures without a file of labels, of which no record is made"] += 1
            continue
        groups: dict[str, dict[int, list[str]]] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            fields = line.split()
            if fields:
                groups.setdefault(fields[0], {})[number] = fields[1:]
        source.notes["pictures without boxes, of which no record is made"] += not groups
        for name, lines in groups.items():
            build = partial(_convert, source, data, picture, name, lines)
            yield Row(path, f":{next(iter(lines))}", {"class": name, "lines": list(lines.values())}, build)


def _convert(source: Source, data: _Data, picture: Path, name: str, lines: Mapping[int, list[str]]) -> Value:
    if not (name.isascii() and name.isdecimal()) or len(name) > 9 or int(name) not in data.names:
        raise FormError(f"there is no class {name!r}", hint=f"the data set names {len(data.names)}, counted from 0")
    frame = frame_of(str(picture), orientation=source.options.orientation)
    boxes = []
    for number, fields in lines.items():
        try:
            box, unit = corners(_box(source, data, fields), "cxcywh-norm1")
            boxes.append(frame.upright(_inside(box, fields), unit=unit))
        except FormError as error:
            raise FormError(f"line {number}: {error}", hint=error.hint) from error
    return {"image": str(picture), "text": data.names[int(name)], "bbox": boxes}


def _box(source: Source, data: _Data, fields: Sequence[str]) -> list[float]:
    """Return cx, cy, w, h from a line's numbers: a box, a box with keypoints, or an outline."""
    try:
        numbers = [number_in(field) for field in fields]
    except ValueError as error:
        raise FormError(
            f"a label is a class and numbers, got {excerpt(' '.join(fields), 60)}",
            hint="write numbers as decimals, such as 0.25",
        ) from error
    if data.keypoints and len(numbers) > 4:
        source.notes["labels with keypoints, which are left out"] += 1
        return numbers[:4]
    if len(numbers) == 4:
        return numbers
    if len(numbers) < 6 or len(numbers) % 2:
        raise FormError(
            f"a box is cx cy w h after the class, got {len(numbers)} numbers",
            hint="a fifth number is a prediction's confidence; labels have none" if len(numbers) == 5 else None,
        )
    source.notes["outlines, of which the box around is taken"] += 1
    across, down = numbers[::2], numbers[1::2]
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _inside(box: Sequence[float], fields: Sequence[str]) -> list[float]:
    """Return corners, those on the edge that are beside 0 or 1 only because their centre and size were rounded."""
    places = [len(match[1]) for field in fields if (match := _DECIMALS.search(field))]
    rounding = 0.75 * 10.0 ** -max(_LEAST_DECIMALS, *places, 0)  # half a step of the centre, a quarter of the size
    return [min(max(number, 0.0), 1.0) if -rounding <= number <= 1 + rounding else number for number in box]


def _sniff(found: Sniffed) -> bool:
    if found.is_folder:
        return bool({DATA, "data.yml", CLASSES} & found.names)
    return found.suffix in (".yaml", ".yml") or found.path.name == CLASSES


FORMAT = Format(
    name="yolo",
    title="YOLO: data.yaml (or classes.txt) and a text file of boxes for each picture",
    sniff=_sniff,
    rows=rows,
    options=IMAGE_ROOT
    | {
        "image_root": "the folder that the splits' paths start from, in place of 'path'",
        "split": "read train, val or test; needed where there are several",
        "orientation": "whether boxes on pictures with an EXIF rotation were drawn upright or as stored",
    },
    files=files,
)

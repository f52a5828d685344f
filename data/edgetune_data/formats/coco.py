"""COCO detection: one record for each picture and category, with all its boxes.

Format: cocodataset.org/#format-data. Boxes are [x, y, width, height] in pixels. A crowd region (`iscrowd`) covers
several objects with one box, so its picture and category have no complete list of boxes: an error, unless the options
say what such regions are. CVAT, for one, marks every mask as a crowd.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.formats.base import ABSENT, BOXES, Format, Row, Source, Value, absent_value, objects_of
from edgetune_data.frames import frame_of, xywh_to_xyxy
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records.forms import FormError

Entry = Mapping[str, Any]


class Instances:
    """A COCO file, indexed.

    Raises:
        InputError: it lacks a list, or an id stands for two things.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        value = read_json_value(path)
        self.images = self._by_id(value, "images")
        self.categories = self._by_id(value, "categories")
        self.annotations = self._by_id(value, "annotations")
        for annotation in self.annotations.values():
            for key in ("image_id", "category_id"):
                if not isinstance(annotation.get(key), int | str):
                    raise InputError(
                        f"{path}: the {key!r} of annotation {annotation['id']} must be a whole number or a text, "
                        f"got {annotation.get(key)!r}"
                    )

    def check_names(self) -> None:
        """Refuse two categories of one name that both have annotations: the name would not tell them apart.

        Roboflow adds a root category that often has the name of a class and never an annotation.

        Raises:
            InputError: there are such two.
        """
        used = dict.fromkeys(annotation["category_id"] for annotation in self.annotations.values())
        named: dict[Any, Any] = {}
        for id_ in used:
            name = str(self.categories.get(id_, {}).get("name", id_))
            if name in named:
                raise InputError(
                    f"{self.path}: categories {named[name]!r} and {id_!r} have the same name, {name!r}",
                    hint="rename one of them, or give both the same id",
                )
            named[name] = id_

    def _by_id(self, value: Any, key: str) -> dict[Any, Entry]:
        found: dict[Any, Entry] = {}
        for entry in objects_of(self.path, value, key):
            if not isinstance(entry.get("id"), int | str):
                raise InputError(f"{self.path}: an entry of {key!r} has no id: {entry}")
            if entry["id"] in found:
                raise InputError(f"{self.path}: {key!r} has id {entry['id']!r} twice")
            found[entry["id"]] = entry
        return found

    def picture(self, source: Source, image: Entry) -> str:
        """Return the path of a picture.

        Raises:
            FormError: the entry names no file.
        """
        if not isinstance(image.get("file_name"), str):
            raise FormError(f"picture {image['id']} has no 'file_name'")
        return source.pictures.path(image["file_name"])

    def boxes(self, source: Source, image: Entry, annotations: Sequence[Entry]) -> list[list[float]]:
        """Return annotations' boxes, xyxy in pixels of the upright picture.

        Raises:
            FormError: an annotation has no box or is a crowd. ImageError: the picture cannot be read.
        """
        size = image.get("width"), image.get("height")
        declared = None if None in size else size
        frame = frame_of(self.picture(source, image), orientation=source.options.orientation, declared=declared)
        for annotation in annotations:
            if source.options.crowd != "keep" and _is_crowd(annotation):
                raise FormError(
                    f"annotation {annotation['id']} is a crowd: one region for several objects",
                    hint="--crowd keep takes its box for one object, skip leaves it out; --on-error report lists it",
                )
        return [frame.upright(xywh_to_xyxy(_numbers(annotation))) for annotation in annotations]


def _is_crowd(annotation: Entry) -> bool:
    value = annotation.get("iscrowd") or 0
    if value not in (0, 1, "0", "1"):
        raise FormError(f"annotation {annotation['id']}: 'iscrowd' must be 0 or 1, got {value!r}")
    return int(value) == 1


def _numbers(annotation: Entry) -> list[float]:
    box = annotation.get("bbox")
    numbers = isinstance(box, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)
    if not isinstance(box, list) or not numbers or len(box) != 4:
        raise FormError(f"annotation {annotation['id']}: a bbox is [x, y, width, height], got {box!r}")
    if box[2] <= 0 or box[3] <= 0:
        raise FormError(
            f"annotation {annotation['id']}: bbox {box} has no area", hint="boxes are [x, y, width, height]"
        )
    return box


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each picture and category, in the order of the file."""
    data = Instances(source.path)
    data.check_names()
    groups: dict[tuple[Any, Any], list[Entry]] = {}
    for annotation in data.annotations.values():
        groups.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    if source.options.crowd == "skip" and groups and all(map(_is_crowd, data.annotations.values())):
        raise InputError(
            f"{source.path}: all {len(data.annotations)} annotations are crowds, and --crowd skip leaves them out",
            hint="--crowd keep takes the box of each for one object",
        )
    order = {name: place for place, name in enumerate(data.images)}
    seen = {image for image, _ in groups}
    if not source.options.absent:
        unseen = sum(id_ not in seen for id_ in order)
        source.notes["pictures without annotations, of which no record is made"] += unseen
    for (image, category), boxed in sorted(groups.items(), key=lambda group: order.get(group[0][0], -1)):
        name = data.categories.get(category, {}).get("name", category)
        kept = [annotation for annotation in boxed if not (source.options.crowd == "skip" and _is_crowd(annotation))]
        source.notes["crowd regions left out, as --crowd skip says"] += len(boxed) - len(kept)
        if kept:
            build = partial(_convert, source, data, image, category, kept)
            yield Row(source.path, f"#{image}/{name}", kept, build)
    names = {id_: name for id_, each in data.categories.items() if isinstance(name := each.get("name"), str)}
    named = {(image, names[category]) for image, category in groups if category in names}
    for phrase in source.options.absent:
        for id_, image in data.images.items():
            if (id_, phrase) not in named:
                yield Row(source.path, f"#{id_}/{phrase}", image, partial(_absent, source, data, image, phrase))


def _absent(source: Source, data: Instances, image: Entry, phrase: str) -> Value:
    return absent_value(data.picture(source, image), phrase)


def _convert(source: Source, data: Instances, image_id: Any, category_id: Any, boxed: Sequence[Entry]) -> Value:
    first = boxed[0]["id"]
    if image_id not in data.images:
        raise FormError(f"annotation {first}: there is no picture {image_id!r}")
    if category_id not in data.categories:
        raise FormError(f"annotation {first}: there is no category {category_id!r}")
    name = data.categories[category_id].get("name")
    if not isinstance(name, str) or not name.strip():
        raise FormError(f"the name of category {category_id!r} must be a text, got {name!r}")
    image = data.images[image_id]
    boxes = data.boxes(source, image, boxed)
    return {
        "image": data.picture(source, image),
        "text": name,
        "bbox": boxes,
        "meta": {"annotations": [annotation["id"] for annotation in boxed]},
    }


FORMAT = Format(
    name="coco",
    title="COCO detection: instances with categories (JSON)",
    sniff=lambda found: {"images", "annotations", "categories"} <= found.keys,
    rows=rows,
    options=BOXES | ABSENT | {"crowd": "what a region marked as a crowd is: keep or skip"},
)

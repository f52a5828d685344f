"""COCO detection: one record for each picture and category, with all its boxes.

Format: cocodataset.org/#format-data. Boxes are [x, y, width, height] in pixels. A crowd region (`iscrowd`) covers
several objects with one box, so its picture and category have no complete list of boxes: an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from edgetune_data.frames import frame_of, xywh_to_xyxy
from edgetune_data.source import Options, Row, Source, Value, objects_of, read_json
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.forms import FormError

Entry = Mapping[str, Any]


def files(path: Path, options: Options) -> list[Path]:
    """Return the file that holds pictures, annotations and categories."""
    return [path]


class Instances:
    """A COCO file, indexed.

    Raises:
        InputError: it lacks a list, or an id stands for two things.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        value = read_json(path)
        self.images = self._by_id(value, "images")
        self.categories = self._by_id(value, "categories")
        self.annotations = self._by_id(value, "annotations")
        for annotation in self.annotations.values():
            for key in ("image_id", "category_id"):
                if not isinstance(annotation.get(key), int | str):
                    raise InputError(f"{path}: annotation {annotation['id']} has no {key!r}: {annotation.get(key)!r}")
        names = [str(category.get("name")) for category in self.categories.values()]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: two categories have the same name, {max(names, key=names.count)!r}")

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
        declared = None if None in size else cast("tuple[int, int]", size)
        frame = frame_of(self.picture(source, image), orientation=source.options.orientation, declared=declared)
        for annotation in annotations:
            if annotation.get("iscrowd"):
                raise FormError(
                    f"annotation {annotation['id']} is a crowd: one region for several objects",
                    hint="--on-error report goes on without such records and lists them",
                )
        return [frame.upright(xywh_to_xyxy(_numbers(annotation))) for annotation in annotations]


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
    groups: dict[tuple[Any, Any], list[Entry]] = {}
    for annotation in data.annotations.values():
        groups.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation)
    order = {name: place for place, name in enumerate(data.images)}
    seen = {image for image, _ in groups}
    source.notes["pictures without annotations, of which no record is made"] += sum(id_ not in seen for id_ in order)
    for (image, category), boxed in sorted(groups.items(), key=lambda group: order.get(group[0][0], -1)):
        name = data.categories.get(category, {}).get("name", category)
        build = partial(_convert, source, data, image, category, boxed)
        yield Row(source.path, f"#{image}/{name}", boxed, build)


def _convert(source: Source, data: Instances, image_id: Any, category_id: Any, boxed: Sequence[Entry]) -> Value:
    first = boxed[0]["id"]
    if image_id not in data.images:
        raise FormError(f"annotation {first}: there is no picture {image_id!r}")
    if category_id not in data.categories:
        raise FormError(f"annotation {first}: there is no category {category_id!r}")
    image = data.images[image_id]
    boxes = data.boxes(source, image, boxed)
    return {
        "image": data.picture(source, image),
        "text": data.categories[category_id].get("name"),
        "bbox": boxes,
        "meta": {"annotations": [annotation["id"] for annotation in boxed]},
    }

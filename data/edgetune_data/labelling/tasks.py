"""Proposals as labelling tools and other programs read them: Label Studio, CVAT, COCO, and records of ours.

Every file has the pictures in the order in which people should look at them. Boxes are cut at the picture's edge, which
the tools insist on; `proposals.jsonl` has them as the model wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from edgetune_data.frames import tidy
from edgetune_data.labelling.order import Ordered, Proposed
from edgetune_data.manifest import relative

Entry = dict[str, Any]
LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio's addresses of files on its own machine begin with."""


@dataclass(frozen=True)
class Tasks:
    """What is written.

    Attributes:
        pictures: in order.
        phrases: what was looked for, the labels of the tools.
        model: what proposed, as Label Studio's model version.
        image_url: what the address of a picture begins with in Label Studio, before its path from the folder; None is
            Label Studio's local files, the folder's parent being their root.
    """

    pictures: Ordered
    phrases: Sequence[str]
    model: str
    image_url: str | None = None

    def write(self, folder: Path) -> dict[str, int]:
        """Write all files into a folder.

        Returns:
            How many `boxes` were written, how many of them were `cut` at an edge, how many `left_out` since nothing of
            them lies on the picture, and how many answers were `unread`.
        """
        self._write_list(folder / "pictures.txt")
        self._write_label_studio(folder)
        self._write_cvat(folder)
        self._write_coco(folder / "coco.json")
        return self._write_records(folder / "records.jsonl")

    def _write_list(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{picture.name}\n" for picture in self.pictures)

    def _write_label_studio(self, folder: Path) -> None:
        """Write tasks with predictions, and the labelling interface that they are for."""
        with _array(folder / "labelstudio.json") as add:
            for picture in self.pictures:
                add(self._task(picture))
        labels = "".join(f"    <Label value={quoteattr(phrase)}/>\n" for phrase in self.phrases)
        (folder / "labelstudio.xml").write_text(
            '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
            f"{labels}  </RectangleLabels>\n</View>\n",
            encoding="utf-8",
        )

    def _task(self, picture: Proposed) -> Entry:
        prefix = self.image_url
        if prefix is None:
            prefix = f"{LOCAL_FILES}{quote(self.pictures.root.resolve().name)}/"
        regions = [
            {
                "id": f"{phrase}-{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": picture.width,
                "original_height": picture.height,
                "image_rotation": 0,
                "score": score,
                "value": _percent(box, picture) | {"rotation": 0, "rectanglelabels": [phrase]},
            }
            for number, (phrase, box, score) in enumerate(_boxes(picture))
        ]
        prediction = {"model_version": self.model, "score": round(1 - picture.uncertainty, 6), "result": regions}
        return {
            "data": {"image": prefix + quote(picture.name), **_told(picture)},
            "predictions": [prediction],
        }

    def _write_cvat(self, folder: Path) -> None:
        """Write annotations for CVAT ("CVAT for images 1.1"), and the labels that a task of them needs."""
        attributes = [{"name": "score", "input_type": "text", "mutable": False, "values": [""], "default_value": ""}]
        labels = [{"name": phrase, "type": "rectangle", "attributes": attributes} for phrase in self.phrases]
        text = json.dumps(labels, indent=2, ensure_ascii=False)
        (folder / "cvat_labels.json").write_text(text + "\n", encoding="utf-8")
        with (folder / "cvat.xml").open("w", encoding="utf-8") as stream:
            xml = _Xml(stream)
            with xml.element("annotations"):
                xml.leaf("version", "1.1")
                with xml.element("meta"), xml.element("task"), xml.element("labels"):
                    for phrase in self.phrases:
                        with xml.element("label"):
                            xml.leaf("name", phrase)
                            xml.leaf("type", "rectangle")
                            with xml.element("attributes"), xml.element("attribute"):
                                for tag, value in (("name", "score"), ("mutable", "False"), ("input_type", "text")):
                                    xml.leaf(tag, value)
                                xml.leaf("default_value", "")
                                xml.leaf("values", "")
                for number, picture in enumerate(self.pictures):
                    size = {"width": str(picture.width), "height": str(picture.height)}
                    told = {"uncertainty": f"{picture.uncertainty:g}", "group": str(picture.group)}
                    with xml.element("image", {"id": str(number), "name": picture.name, **size, **told}):
                        for phrase, box, score in _boxes(picture):
                            corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, box), strict=True))
                            drawn = {"label": phrase, "source": "auto", "occluded": "0", **corners, "z_order": "0"}
                            with xml.element("box", drawn):
                                xml.leaf("attribute", "" if score is None else f"{score:g}", {"name": "score"})

    def _write_coco(self, path: Path) -> None:
        categories = [{"id": number, "name": phrase} for number, phrase in enumerate(self.phrases, start=1)]
        number_of = {category["name"]: category["id"] for category in categories}
        with path.open("w", encoding="utf-8") as stream:
            stream.write(f'{{"info": {json.dumps({"description": self.model}, ensure_ascii=False)},\n')
            stream.write(f'"categories": {json.dumps(categories, ensure_ascii=False)},\n"images": ')
            with _array_in(stream) as add:
                for number, picture in enumerate(self.pictures, start=1):
                    size = {"width": picture.width, "height": picture.height}
                    add({"id": number, "file_name": picture.name, **size, **_told(picture)})
            stream.write(',\n"annotations": ')
            annotation = 0
            with _array_in(stream) as add:
                for number, picture in enumerate(self.pictures, start=1):
                    for phrase, (x1, y1, x2, y2), score in _boxes(picture):
                        annotation += 1
                        width, height = tidy(x2 - x1), tidy(y2 - y1)
                        add(
                            {
                                "id": annotation,
                                "image_id": number,
                                "category_id": number_of[phrase],
                                "bbox": [x1, y1, width, height],
                                "area": tidy(width * height),
                                "segmentation": [],
                                "iscrowd": 0,
                                "score": score,
                            }
                        )
            stream.write("}\n")

    def _write_records(self, path: Path) -> dict[str, int]:
        """Write a record for each answer that could be read, with what is known of it in its `meta`."""
        counts = {"boxes": 0, "cut": 0, "left_out": 0, "unread": 0}
        with path.open("w", encoding="utf-8") as stream:
            for picture in self.pictures:
                image = relative(self.pictures.root / picture.name, path.parent)
                for answer in picture.answers:
                    if answer["status"] == "unparsed":
                        counts["unread"] += 1
                        continue
                    cut = [_cut(box, picture) for box in answer["boxes"]]
                    kept = [number for number, box in enumerate(cut) if box is not None]
                    counts["boxes"] += len(kept)
                    counts["left_out"] += len(cut) - len(kept)
                    counts["cut"] += sum(
                        box is not None and box != list(map(tidy, written))
                        for box, written in zip(cut, answer["boxes"], strict=True)
                    )
                    if cut and not kept:
                        continue  # an empty list would say that the object is not there, which the model did not
                    meta = {
                        "proposed_by": self.model,
                        "scores": [answer["scores"][number] for number in kept],
                        **_told(picture),
                        "uncertainty": answer["uncertainty"],
                    }
                    boxes = [cut[number] for number in kept]
                    record = {"image": image, "text": answer["phrase"], "bbox": boxes, "meta": meta}
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        return counts


def _told(picture: Proposed) -> Entry:
    """What every file says of a picture."""
    told: Entry = {"uncertainty": round(picture.uncertainty, 6), "group": picture.group}
    return told | ({"duplicate_of": picture.duplicate_of} if picture.duplicate_of else {})


def _boxes(picture: Proposed) -> Iterator[tuple[str, list[float], float | None]]:
    """Yield phrase, box and score of what was found on a picture; boxes are xyxy in pixels of the upright picture."""
    for answer in picture.answers:
        for written, score in zip(answer["boxes"], answer["scores"], strict=True):
            box = _cut(written, picture)
            if box is not None:
                yield answer["phrase"], box, score


def _cut(box: Sequence[float], picture: Proposed) -> list[float] | None:
    """Return what of a box lies on its picture, None where nothing does."""
    x1, y1, x2, y2 = box
    cut = [max(x1, 0), max(y1, 0), min(x2, picture.width), min(y2, picture.height)]
    return list(map(tidy, cut)) if cut[0] < cut[2] and cut[1] < cut[3] else None


def _percent(box: Sequence[float], picture: Proposed) -> dict[str, float]:
    x1, y1, x2, y2 = box
    across, down = 100 / picture.width, 100 / picture.height
    return {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down}


@contextmanager
def _array(path: Path) -> Iterator[Any]:
    """Open a file of one JSON array and give what adds to it."""
    with path.open("w", encoding="utf-8") as stream:
        with _array_in(stream) as add:
            yield add
        stream.write("\n")


@contextmanager
def _array_in(stream: IO[str]) -> Iterator[Any]:
    before = "[\n"

    def add(value: Mapping[str, Any]) -> None:
        nonlocal before
        stream.write(before + json.dumps(value, ensure_ascii=False))
        before = ",\n"

    yield add
    stream.write("[]" if before == "[\n" else "\n]")


class _Xml:
    """XML that is written element by element, indented."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._stream.write('<?xml version="1.0" encoding="utf-8"?>\n')
        self._depth = 0

    @contextmanager
    def element(self, tag: str, attributes: Mapping[str, str] | None = None) -> Iterator[None]:
        """Write an element around what is written meanwhile."""
        self._line(_start(tag, attributes))
        self._depth += 1
        yield
        self._depth -= 1
        self._line(f"</{tag}>")

    def leaf(self, tag: str, text: str, attributes: Mapping[str, str] | None = None) -> None:
        """Write an element that holds a text."""
        self._line(f"{_start(tag, attributes)}{escape(text)}</{tag}>")

    def _line(self, text: str) -> None:
        self._stream.write("  " * self._depth + text + "\n")


def _start(tag: str, attributes: Mapping[str, str] | None) -> str:
    told = "".join(f" {name}={quoteattr(value)}" for name, value in (attributes or {}).items())
    return f"<{tag}{told}>"

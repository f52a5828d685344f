"""CVAT for images 1.1: one XML file for all pictures; one record for each picture and label, with all its boxes.

Format: docs.cvat.ai/docs/dataset_management/formats/format-cvat. Boxes are corners in pixels of the upright picture,
counted from 0. Outlines (polygons) and masks become the box around them. A rotated box has no corners of ours, and
other shapes no box at all: both are refused.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from edgetune_data.formats.base import ABSENT, IMAGE_ROOT, Format, Row, Source, Value, absent_value, number_in
from edgetune_data.formats.sniffing import Sniffed
from edgetune_data.formats.xml_lines import Lines, Wrong, attribute_of, parse, word_of
from edgetune_data.frames import frame_of, is_turned
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.records.forms import FormError

ANNOTATIONS = "annotations.xml"
_BESIDE = (".", "images")
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_BOXED = ("box", "polygon", "mask")
_OTHER = ("polyline", "points", "cuboid", "ellipse", "skeleton")
_ROOT = re.compile(rb"<annotations[\s/>]")
_HEAD = 4096  # bytes of a file in which its first element stands
Element = ElementTree.Element


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the XML file, of an unpacked export if `path` is its folder."""
    return [path / ANNOTATIONS if path.is_dir() else path]


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each picture and label, at the line of its first shape.

    Raises:
        InputError: the file is not of this format.
    """
    [path] = files(source.path, source.options)
    try:
        root, lines = parse(path)
    except Wrong as error:
        raise InputError(f"{path}:{error.line}: {error}", hint=error.hint) from error
    if root.tag != "annotations":
        raise InputError(f"{path}: <{root.tag}> is no <annotations> of CVAT")
    tracks = root.find("track")
    if tracks is not None:
        raise InputError(
            f"{path}:{lines[tracks]}: tracks of a video are not read",
            hint='export the task as "CVAT for images 1.1", which has the boxes of each frame',
        )
    for image in root.findall("image"):
        shapes: dict[str, list[Element]] = {}
        for shape in image:
            if shape.tag in (*_BOXED, *_OTHER):
                shapes.setdefault(shape.get("label") or "", []).append(shape)
        source.notes["tags of whole pictures, which are left out"] += image.find("tag") is not None
        source.notes["pictures without shapes, of which no record is made"] += not (shapes or source.options.absent)
        for label, drawn in shapes.items():
            raw = {"name": image.get("name"), "label": label, "shapes": [dict(shape.attrib) for shape in drawn]}
            yield Row(path, f":{lines[drawn[0]]}", raw, partial(_convert, source, image, label, drawn, lines))
        for phrase in source.options.absent:
            if phrase not in shapes:
                raw = {"name": image.get("name"), "label": phrase, "shapes": []}
                build = partial(_absent, source, image, phrase, lines)
                yield Row(path, f":{lines[image]}/{phrase}", raw, build)


def _absent(source: Source, image: Element, phrase: str, lines: Lines) -> Value:
    return absent_value(_picture(source, image, lines), phrase)


def _convert(source: Source, image: Element, label: str, shapes: Sequence[Element], lines: Lines) -> Value:
    if not label.strip():
        raise FormError(f"<{shapes[0].tag}> has no label")
    picture = _picture(source, image, lines)
    declared = None
    if image.get("width") is not None or image.get("height") is not None:
        sides = (attribute_of(image, lines, side) for side in ("width", "height"))
        width, height = (int(side) if side.is_integer() else side for side in sides)
        declared = (width, height)
    frame = frame_of(picture, orientation=source.options.orientation, declared=declared)
    boxes = [frame.upright(_corners(shape, lines)) for shape in shapes]
    for kind, what in (("polygon", "outlines"), ("mask", "masks")):
        number = sum(shape.tag == kind for shape in shapes)
        source.notes[f"{what}, which are read as the boxes around them"] += number
    source.notes["boxes marked as occluded, which are kept"] += sum(shape.get("occluded") == "1" for shape in shapes)
    value: Value = {"image": picture, "text": label, "bbox": boxes}
    told = [{entry.get("name") or "": word_of(entry) for entry in shape.findall("attribute")} for shape in shapes]
    return {**value, "meta": {"attributes": told}} if any(told) else value


def _picture(source: Source, image: Element, lines: Lines) -> str:
    """Return the picture: the file of that name below the root, beside the XML file, or in its folder images."""
    name = image.get("name")
    if not name:
        raise FormError(f"the <image> of line {lines[image]} has no name")
    [path] = files(source.path, source.options)
    root = source.options.image_root
    folders = [root] if root else [path.parent / folder for folder in _BESIDE]
    return str(next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name))


def _corners(shape: Element, lines: Lines) -> list[float]:
    """Return the upright box of a shape, xyxy in the pixels that it is written in."""
    name = f"<{shape.tag}> of {shape.get('label')!r} in line {lines[shape]}"
    if shape.tag in _OTHER:
        raise FormError(f"{name}: such shapes have no box", hint="draw a rectangle, a polygon or a mask")
    if shape.get("rotation") is not None and is_turned(attribute_of(shape, lines, "rotation")):
        raise FormError(
            f"{name}: rotated by {shape.get('rotation')} degrees", hint="boxes are upright; draw it without rotation"
        )
    if shape.tag == "box":
        return [attribute_of(shape, lines, corner) for corner in _CORNERS]
    if shape.tag == "mask":
        left, top, width, height = (attribute_of(shape, lines, side) for side in ("left", "top", "width", "height"))
        return [left, top, left + width, top + height]
    points = [_point(text, name) for text in (shape.get("points") or "").split(";")]
    across, down = zip(*points, strict=True)
    return [min(across), min(down), max(across), max(down)]


def _point(text: str, name: str) -> tuple[float, float]:
    try:
        x, y = (number_in(part) for part in text.split(","))
    except ValueError as error:
        raise FormError(f"{name}: a point is x,y, got {excerpt(text, 40)}") from error
    return x, y


def _sniff(found: Sniffed) -> bool:
    path = found.path / ANNOTATIONS if found.is_folder else found.path
    if not path.is_file() or path.suffix.lower() != ".xml":
        return False
    with path.open("rb") as stream:
        return _ROOT.search(stream.read(_HEAD)) is not None


FORMAT = Format(
    name="cvat",
    title="CVAT for images 1.1: an XML file for all pictures",
    sniff=_sniff,
    rows=rows,
    options=IMAGE_ROOT
    | ABSENT
    | {
        "image_root": "the folder of the pictures, in place of the XML file's own or its folder images",
        "orientation": "whether boxes on pictures with an EXIF rotation were drawn upright or as stored",
    },
    files=files,
)

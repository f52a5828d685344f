"""Pascal VOC: an XML file for each picture; one record for each picture and name, with all its boxes.

Format: the development kit of host.robots.ox.ac.uk/pascal/VOC. Its boxes are whole pixels counted from 1, both corners
belonging to the box: from 1 to the width they cover the picture, which is 0 to the width in our frame. Many tools write
the same XML with corners that count from 0 and may be fractions; a data set that has such a number is read as that.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from edgetune_data.formats.base import IMAGE_ROOT, Format, Row, Source, Value, in_folders, read_text
from edgetune_data.formats.sniffing import Sniffed
from edgetune_data.formats.xml_lines import Lines, Wrong, number_of, parse, word_of
from edgetune_data.frames import frame_of
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.records.forms import FormError

ANNOTATIONS, SETS = "Annotations", "ImageSets/Main"
_BESIDE = (".", "../JPEGImages", "../images")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Object:
    """One thing in a picture: its name, its corners as they are written, and the line that it starts on."""

    line: int
    name: str
    corners: list[float]
    difficult: bool


@dataclass
class _Annotation:
    """What an XML file says; `problem` is why it cannot be read, ":12: ..." with the line."""

    path: Path
    picture: str = ""
    size: tuple[float, float] | None = None
    objects: list[_Object] = field(default_factory=list)
    problem: tuple[str, FormError] | None = None


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the XML files, and the list of the split where one was chosen.

    Raises:
        InputError: there are none.
    """
    listed = [_split(path, options.split)] if options.split and path.is_dir() else []
    return [*in_folders(_documents(path, options.split)), *listed]


def _folder(path: Path) -> Path:
    return path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path


def _split(path: Path, split: str) -> Path:
    listed = path / SETS / f"{split}.txt"
    if not listed.is_file():
        known = ", ".join(sorted(file.stem for file in (path / SETS).glob("*.txt") if "_" not in file.stem))
        raise InputError(f"{listed}: no such list of the split", hint=f"there are {known}" if known else None)
    return listed


def _documents(path: Path, split: str | None) -> list[Path]:
    if not path.is_dir():
        if split:
            raise InputError(f"{path}: one file has no splits, but --split {split} was given")
        return [path]
    found = sorted(_folder(path).rglob("*.xml"))
    if split:
        lines = read_text(_split(path, split)).splitlines()
        stems = {line.split()[0] for line in lines if line.strip()}
        missing = stems - {file.stem for file in found}
        if missing:
            raise InputError(
                f"{_split(path, split)}: {min(missing)} has no XML file, and {len(missing)} in all have none"
            )
        found = [file for file in found if file.stem in stems]
    if not found:
        raise InputError(f"{path}: no XML files")
    return found


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each picture and name, at the line of its first object."""
    read = [_read(path) for path in _documents(source.path, source.options.split)]
    first = _first_pixel(source, read)
    for annotation in read:
        if annotation.problem is not None:
            place, error = annotation.problem
            yield Row(annotation.path, place, annotation.path.name, partial(_refuse, error))
            continue
        source.notes["pictures without objects, of which no record is made"] += not annotation.objects
        groups: dict[str, list[_Object]] = {}
        for thing in annotation.objects:
            groups.setdefault(thing.name, []).append(thing)
        for name, things in groups.items():
            build = partial(_convert, source, annotation, name, things, first)
            raw = {"name": name, "objects": [thing.corners for thing in things]}
            yield Row(annotation.path, f":{things[0].line}", raw, build)


def _first_pixel(source: Source, read: Sequence[_Annotation]) -> int:
    """Return the number of the first pixel: 1, or 0 where the option or a number of the data set says so."""
    if source.options.box_format == "xyxy":
        return 0
    if source.options.box_format is not None:
        raise InputError(f"--box-format {source.options.box_format} means nothing for the format voc", hint="xyxy does")
    numbers = [number for one in read for thing in one.objects for number in thing.corners]
    if any(number < 1 or not number.is_integer() for number in numbers):
        source.notes["boxes read as corners that count from 0, as some numbers can be nothing else"] += (
            len(numbers) // 4
        )
        return 0
    source.notes["boxes read as pixels that count from 1 (--box-format xyxy if they count from 0)"] += len(numbers) // 4
    return 1


def _refuse(error: FormError) -> Value:
    raise error


def _convert(source: Source, annotation: _Annotation, name: str, things: Sequence[_Object], first: int) -> Value:
    picture = _picture(source, annotation)
    frame = frame_of(str(picture), orientation=source.options.orientation, declared=annotation.size)
    source.notes["boxes marked as difficult, which are kept"] += sum(thing.difficult for thing in things)
    boxes = [(x1 - first, y1 - first, x2, y2) for x1, y1, x2, y2 in (thing.corners for thing in things)]
    return {"image": str(picture), "text": name, "bbox": [frame.upright(box) for box in boxes]}


def _picture(source: Source, annotation: _Annotation) -> Path:
    """Return the picture: the file of that name in the folders where it is kept, or else beside the XML file."""
    root, name = source.options.image_root, annotation.picture
    folders = [root] if root else [annotation.path.parent / folder for folder in _BESIDE]
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _read(path: Path) -> _Annotation:
    """Read an XML file; what is wrong with it is told when its record is built."""
    found = _Annotation(path)
    try:
        root, lines = parse(path)
        if root.tag != "annotation":
            raise Wrong(1, f"<{root.tag}> is no <annotation>")
        found.picture = word_of(root.find("filename"))
        if not found.picture:
            raise Wrong(1, "no <filename>")
        found.size = _size(root, lines)
        found.objects = [_object(element, lines) for element in root.findall("object")]
    except Wrong as error:
        found.problem = (f":{error.line}", FormError(str(error), hint=error.hint))
    return found


def _size(root: ElementTree.Element, lines: Lines) -> tuple[float, float] | None:
    """Return the picture's (width, height) where the file says it; tools that do not know it write 0."""
    size = root.find("size")
    if size is None:
        return None
    sides = (
        number_of(size.find("width"), lines, "width", lines[size]),
        number_of(size.find("height"), lines, "height", lines[size]),
    )
    width, height = (int(side) if side.is_integer() else side for side in sides)
    return (width, height) if width or height else None


def _object(element: ElementTree.Element, lines: Lines) -> _Object:
    line, name, box = lines[element], word_of(element.find("name")), element.find("bndbox")
    if not name:
        raise Wrong(line, "an object has no <name>")
    if box is None:
        raise Wrong(line, f"the object {name!r} has no <bndbox>", hint="boxes are upright; rotated ones are not read")
    if len(element.findall("bndbox")) > 1:
        raise Wrong(line, f"the object {name!r} has several <bndbox>", hint="write an <object> for each")
    corners = [number_of(box.find(tag), lines, tag, lines[box]) for tag in _CORNERS]
    return _Object(line, name, corners, word_of(element.find("difficult")) == "1")


def _sniff(found: Sniffed) -> bool:
    if found.is_folder:
        return ANNOTATIONS in found.names or any(name.endswith(".xml") for name in found.names)
    return found.suffix == ".xml"


FORMAT = Format(
    name="voc",
    title="Pascal VOC: an XML file for each picture",
    sniff=_sniff,
    rows=rows,
    options=IMAGE_ROOT
    | {
        "image_root": "the folder of the pictures, in place of JPEGImages or the XML file's own",
        "split": "read the pictures that ImageSets/Main lists for it",
        "box_format": "xyxy: corners count from 0, and are not pixels that count from 1",
        "orientation": "whether boxes on pictures with an EXIF rotation were drawn upright or as stored",
    },
    files=files,
)

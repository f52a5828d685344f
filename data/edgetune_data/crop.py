"""Region-of-interest crops: pictures cut around their annotated objects, boxes moved along, originals linked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from edgetune_data.manifest import relative
from edgetune_data.read import Item
from edgetune_data.rewrite import moved, origin_of, with_places, write_lines, write_set
from edgetune_data.settings import CropRules
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.load import image_hash, load_image
from edgetune_runtime.records.dialogue import Place
from edgetune_runtime.records.forms import Parts

DATA, CHANGES, IMAGES = "data.jsonl", "changes.jsonl", "images"
Around = Literal["record", "box", "picture"]
Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels of the original upright picture, x2 and y2 exclusive."""
_QUALITY = 95  # of JPEG: what is lost is below the noise of most cameras


@dataclass
class Cut:
    """One record to be written: its line, what it says, and how it came about.

    Attributes:
        entry: the line that it comes from.
        value: the record, its pictures as paths from the current folder.
        windows: picture -> what is cut from it; empty for a record that stays as it is.
        notes: what happened to its boxes, in words.
        why: why it stays as it is, or nothing.
    """

    entry: Item
    value: dict[str, Any]
    windows: dict[Path, Window] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    why: str = ""


def plan(entries: Sequence[Item], sizes: Mapping[Path, tuple[int, int]], rules: CropRules, around: Around) -> list[Cut]:
    """Return what is to be cut, record by record.

    Args:
        entries: sound records.
        sizes: (width, height) of their upright pictures in pixels.
        rules: how crops are cut.
        around: a crop for each record (around all of its boxes), for each box of a record that lists boxes, or for each
            picture (around the boxes of all of its records).
    """
    together: dict[Path, list[Place]] = {}
    for entry in entries:
        for place in entry.places:
            together.setdefault(entry.images[place.image], []).append(place)
    cuts: list[Cut] = []
    for entry in entries:
        if not entry.places:
            cuts.append(Cut(entry, dict(entry.value or {}), why=f"a {entry.kind} record without boxes"))
        elif around == "box" and isinstance(entry.form, Parts):
            cuts += _box_by_box(entry, sizes, rules)
        else:
            own: dict[Path, list[Place]] = {}
            for place in entry.places:
                own.setdefault(entry.images[place.image], []).append(place)
            source = together if around == "picture" else own
            cuts.append(_whole(entry, {path: window(source[path], *sizes[path], rules) for path in own}, sizes, rules))
    return cuts


def _whole(entry: Item, windows: Mapping[Path, Window], sizes: Mapping[Path, tuple[int, int]], rules: CropRules) -> Cut:
    """One crop of each picture that holds all boxes of the record."""
    real = {path: cut for path, cut in windows.items() if cut != (0, 0, *sizes[path])}
    if not real:
        return Cut(entry, dict(entry.value or {}), why="the crop would be the whole picture")
    places = []
    for place in entry.places:
        cut = real.get(entry.images[place.image])
        shifted = moved_into(place, cut, rules.min_visible)[0] if cut else place
        assert shifted is not None, "the window holds every box"
        places.append(shifted)
    return Cut(entry, with_places(entry.value or {}, places), real)


def _box_by_box(entry: Item, sizes: Mapping[Path, tuple[int, int]], rules: CropRules) -> Iterator[Cut]:
    """A crop around each box; the record's other boxes go along as far as they are visible."""
    [path] = entry.images
    for number, target in enumerate(entry.places):
        cut = window([target], *sizes[path], rules)
        if cut == (0, 0, *sizes[path]):
            yield Cut(entry, dict(entry.value or {}), why="the crop would be the whole picture")
            return  # of this one crop, which has all boxes
        kept: list[tuple[int, Place]] = []
        notes = []
        for index, place in enumerate(entry.places):
            shifted, visible = moved_into(place, cut, rules.min_visible)
            if shifted is not None:
                kept.append((index, shifted))
            if 0 < visible < 1:
                done = "cut" if shifted is not None else "left out"
                notes.append(f"box {index + 1} {done}: {visible:.0%} of it is in the crop")
        value = _only(entry, kept)
        if len(entry.places) > 1 and value.get("id") is not None:
            value["id"] = f"{value['id']}#{number + 1}"
        yield Cut(entry, value, {path: cut}, notes)


def _only(entry: Item, kept: Sequence[tuple[int, Place]]) -> dict[str, Any]:
    """Return a record with only some of its boxes, and their labels."""
    places = [place for _, place in kept]
    value = dict(entry.value or {})
    if "objects" in value:
        if len(kept) < len(entry.places):
            raise InputError(
                f"{entry.source}: box by box needs records of the form image, text, bbox",
                hint="--around record keeps all boxes of a record in one crop",
            )
        return with_places(value, places)
    if isinstance(value.get("label"), list):
        value["label"] = [value["label"][index] for index, _ in kept]
    value["bbox"] = [list(place.numbers) for place in places]
    return with_places(value, places)


def beside_originals(cuts: Sequence[Cut]) -> list[Cut]:
    """Return every cropped record twice: as it was, and after it its crops."""
    both: list[Cut] = []
    told: set[str] = set()
    for cut in cuts:
        if cut.windows and cut.entry.source not in told:
            both.append(Cut(cut.entry, dict(cut.entry.value or {}), why="the original beside its crops"))
        told.add(cut.entry.source)
        both.append(cut)
    return both


def write(cuts: Sequence[Cut], work: Path, output: Path, *, kind: Literal["png", "jpeg"]) -> dict[str, Any]:
    """Cut the pictures and write images/, data.jsonl, dataset.json and changes.jsonl into `work`; return the result.

    Args:
        cuts: from `plan`.
        work: the folder to write to, which becomes `output`.
        output: its final place; the originals stay where they are.
        kind: the format of the crops; PNG keeps every pixel.
    """
    (work / IMAGES).mkdir()
    names = _cut_all(cuts, work, kind)
    values = []
    for cut in cuts:
        value = moved(cut.entry, cut.value, output)
        if cut.windows:
            value = _linked(cut, value, names, output)
        values.append(value)
    made_from = list(dict.fromkeys(cut.entry.path for cut in cuts))
    originals = dict.fromkeys(path for cut in cuts for path in cut.entry.images if path not in cut.windows)
    write_set(work, {DATA: values}, [*(work / name for name in dict.fromkeys(names.values())), *originals], made_from)
    write_lines(work / CHANGES, (_told(cut, names) for cut in cuts))
    return {
        "records": len(values),
        "crops": len(set(names.values())),
        "cropped": sum(bool(cut.windows) for cut in cuts),
        "kept": sum(not cut.windows for cut in cuts),
        "boxes_cut": sum(" cut:" in note for cut in cuts for note in cut.notes),
        "boxes_left_out": sum(" left out:" in note for cut in cuts for note in cut.notes),
    }


def _cut_all(cuts: Sequence[Cut], work: Path, kind: str) -> dict[tuple[Path, Window], str]:
    """Write each crop once and return its name relative to the folder; every picture is decoded once."""
    by_picture: dict[Path, set[Window]] = {}
    for cut in cuts:
        for path, where in cut.windows.items():
            by_picture.setdefault(path, set()).add(where)
    names: dict[tuple[Path, Window], str] = {}
    for path, windows in tqdm(by_picture.items(), desc="cut pictures", unit="image", disable=None, delay=2):
        picture = load_image(path)
        mark = image_hash(picture)[:8]  # pictures of different folders may have the same name
        for where in sorted(windows):
            corner = "-".join(map(str, where))
            name = f"{IMAGES}/{path.stem}-{mark}-{corner}.{'png' if kind == 'png' else 'jpg'}"
            _save(picture.crop(where), work / name)
            names[path, where] = name
    return names


def _save(picture: Image.Image, path: Path) -> None:
    if path.suffix == ".png":
        picture.save(path)
    else:
        picture.save(path, quality=_QUALITY, subsampling=0)


def _linked(
    cut: Cut, value: Mapping[str, Any], names: Mapping[tuple[Path, Window], str], output: Path
) -> dict[str, Any]:
    """Return a record that names its crops, and in meta.origin what they were cut from."""
    changed = dict(value)
    crops = [names[path, cut.windows[path]] if path in cut.windows else None for path in cut.entry.images]
    if "image" in changed:
        changed["image"] = crops[0]
    else:
        changed["images"] = [new or old for new, old in zip(crops, changed["images"], strict=True)]
    origins = [_origin(cut.entry, path, where, output) for path, where in cut.windows.items()]
    meta = dict((cut.entry.value or {}).get("meta") or {})
    return {**changed, "meta": {**meta, "origin": origins[0]} | ({"origins": origins} if len(origins) > 1 else {})}


def _origin(entry: Item, path: Path, where: Window, output: Path) -> dict[str, Any]:
    """Return the first original of a crop, also of a crop of a crop, and where in it the crop lies."""
    before = origin_of(entry)
    if before is None:
        return {"image": relative(path, output), "crop": list(where)}
    first, (left, top, *_) = before
    crop = [where[0] + left, where[1] + top, where[2] + left, where[3] + top]
    return {"image": relative(first, output), "crop": crop}


def _told(cut: Cut, names: Mapping[tuple[Path, Window], str]) -> dict[str, Any]:
    crops = {names[path, where]: {"image": str(path), "crop": list(where)} for path, where in cut.windows.items()}
    told = {"source": cut.entry.source, "action": "cropped" if crops else "kept"}
    return {**told, "reason": cut.why} if not crops else {**told, "crops": crops, "notes": cut.notes}


def window(places: Sequence[Place], width: int, height: int, rules: CropRules) -> Window:
    """Return the window around boxes and points of a picture of this size in pixels.

    All of them lie inside it, whatever the rules; it lies inside the picture and has at least one pixel.
    """
    xs = [number for place in places for number in place.numbers[::2]]
    ys = [number for place in places for number in place.numbers[1::2]]
    low, high, sizes = (min(xs), min(ys)), (max(xs), max(ys)), (width, height)
    inner = [_pixels_around(low[axis], high[axis], sizes[axis]) for axis in (0, 1)]
    lengths = []
    for axis in (0, 1):
        extent = high[axis] - low[axis]
        wanted = max(math.ceil(extent * (1 + 2 * rules.margin)), rules.min_size)
        if rules.max_size is not None:
            wanted = min(wanted, rules.max_size)
        lengths.append(max(wanted, inner[axis][1] - inner[axis][0]))
    for axis in (0, 1):
        lengths[axis] = max(lengths[axis], math.ceil(lengths[1 - axis] / rules.max_aspect))
    (x1, x2), (y1, y2) = (_fit(inner[axis], lengths[axis], sizes[axis]) for axis in (0, 1))
    return x1, y1, x2, y2


def _pixels_around(low: float, high: float, size: int) -> tuple[int, int]:
    """Return whole pixels around an extent: a point, or the edge of the picture, takes the pixel beside it."""
    start = min(math.floor(low), size - 1)
    return start, max(math.ceil(high), start + 1)


def _fit(inner: tuple[int, int], length: int, size: int) -> tuple[int, int]:
    """Return `length` pixels with `inner` in the middle, moved (and at last shortened) to lie within `size`."""
    length = min(length, size)
    start = (inner[0] + inner[1] - length) // 2
    # The window moves before it shrinks: what is asked for is a size, and context on one side is better than none.
    start = min(max(start, 0), size - length)
    return start, start + length


def moved_into(place: Place, cut: Window, min_visible: float) -> tuple[Place | None, float]:
    """Return a box or point in pixels of the crop, and how much of it is visible there (0-1).

    A box is cut at the crop's edge. None stands for one that is not in the crop any more: a point outside of it, or a
    box of which less than `min_visible` is inside.
    """
    x1, y1, x2, y2 = cut
    if len(place.numbers) == 2:
        x, y = place.numbers
        inside = x1 <= x <= x2 and y1 <= y <= y2
        return (Place((x - x1, y - y1), place.image), 1.0) if inside else (None, 0.0)
    left, top, right, bottom = place.numbers
    kept = (max(left, x1), max(top, y1), min(right, x2), min(bottom, y2))
    if kept[0] >= kept[2] or kept[1] >= kept[3]:
        return None, 0.0
    visible = (kept[2] - kept[0]) * (kept[3] - kept[1]) / ((right - left) * (bottom - top))
    if visible < min_visible:
        return None, visible
    return Place((kept[0] - x1, kept[1] - y1, kept[2] - x1, kept[3] - y1), place.image), visible

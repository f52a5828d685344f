"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: refs (JSON or pickle) beside COCO instances; one record a sentence.

Format: github.com/lichengunc/refer. A gRefCOCO sentence may mean several objects (`ann_id` is a list) or none.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune_data.formats.base import BOXES, Format, Row, Source, Value
from edgetune_data.formats.coco import Instances
from edgetune_data.formats.sniffing import Sniffed
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records.forms import FormError

_INSTANCES = "instances.json"
_PICKLES = (".p", ".pkl", ".pickle")


def files(path: Path, options: ReadSettings) -> list[Path]:
    """Return the refs and the instances, given either the folder or the refs.

    Raises:
        InputError: one of them is missing, or a folder has several refs.
    """
    refs = path
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if is_refs(file))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise InputError(f"{path}: needs one refs file, found {names}", hint="give the refs file itself")
        refs = found[0]
    instances = options.annotations or refs.parent / _INSTANCES
    for file in (refs, instances):
        if not file.is_file():
            raise InputError(f"{file}: no such file", hint="refs need their instances.json; --annotations names it")
    return [refs, instances]


def is_refs(path: Path) -> bool:
    """Whether a file's name is that of refs, e.g. "refs(unc).p" or "grefs(unc).json"."""
    return path.name.lstrip("g").startswith("refs") and path.suffix in (*_PICKLES, ".json")


def rows(source: Source) -> Iterator[Row]:
    """Yield a row for each sentence."""
    refs, instances = files(source.path, source.options)
    data = Instances(instances)
    left_out = 0
    for ref in _refs(refs):
        split = source.options.split
        if split and ref.get("split") != split:
            left_out += 1
            continue
        sentences = ref.get("sentences")
        for index, sentence in enumerate(sentences if isinstance(sentences, list) and sentences else [None]):
            name = sentence.get("sent_id", index) if isinstance(sentence, dict) else index
            place = f"#{ref.get('ref_id')}/{name}"
            yield Row(refs, place, ref | {"sentences": [sentence]}, partial(_convert, source, data, ref, sentence))
    source.notes["refs of other splits"] += left_out


def _refs(path: Path) -> list[dict[str, Any]]:
    value = load_plain_pickle(path) if path.suffix in _PICKLES else read_json_value(path)
    if not isinstance(value, list) or not all(isinstance(ref, dict) for ref in value):
        raise InputError(f"{path}: refs must be a list of objects")
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Loads lists, dicts, texts and numbers, which need no import; anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain values are read")


def load_plain_pickle(path: Path) -> Any:
    """Return the value of a pickle file made of plain values, without running anything from it.

    What it says of its own sizes is compared with the file's first: nine bytes can ask for gigabytes.

    Raises:
        InputError: it holds anything else, or is broken.
    """
    try:
        data = path.read_bytes()
        for opcode, argument, position in pickletools.genops(data):  # reads no more than the file has
            if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
                raise pickle.UnpicklingError(
                    f"{opcode.name} (byte {position}) asks for more than the file's {len(data)} bytes"
                )
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # a broken pickle raises almost anything
        raise InputError(f"{path}: not a pickle of plain values: {error}", hint="convert it to JSON") from error


def _convert(source: Source, data: Instances, ref: Mapping[str, Any], sentence: Any) -> Value:
    text = sentence.get("sent") or sentence.get("raw") if isinstance(sentence, dict) else sentence
    if not isinstance(text, str):
        raise FormError(f"ref {ref.get('ref_id')!r} has no sentence")
    name = ref.get("image_id")
    if not isinstance(name, int | str) or name not in data.images:
        raise FormError(f"there is no picture {name!r} in {data.path.name}")
    image = data.images[name]
    wanted = ref.get("ann_id")
    wanted = wanted if isinstance(wanted, list) else [wanted]
    absent = bool(ref.get("no_target")) or wanted == [-1]
    missing = [key for key in wanted if not absent and not (isinstance(key, int | str) and key in data.annotations)]
    if missing or not wanted:
        raise FormError(f"there is no annotation {(missing or [None])[0]!r} in {data.path.name}")
    annotations = [] if absent else [data.annotations[key] for key in wanted]
    for annotation in annotations:
        if annotation.get("image_id") != image["id"]:
            raise FormError(
                f"annotation {annotation['id']} is of picture {annotation.get('image_id')!r}, not {image['id']!r}"
            )
    meta = {key: ref[key] for key in ("ref_id", "split") if key in ref}
    boxes = data.boxes(source, image, annotations) if annotations else []
    return {"image": data.picture(source, image), "text": text.strip(), "bbox": boxes, "meta": meta}


def _sniff(found: Sniffed) -> bool:
    if found.is_folder:
        return any(is_refs(found.path / name) for name in found.names)
    if is_refs(found.path) or found.suffix in _PICKLES:
        return True
    return not found.is_json_lines and "sentences" in found.telling


FORMAT = Format(
    name="refcoco",
    title="RefCOCO: refs beside instances.json",
    sniff=_sniff,
    rows=rows,
    options=BOXES
    | {"split": "read only the refs of this split", "annotations": "the COCO instances, in place of instances.json"},
    files=files,
)

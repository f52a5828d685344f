"""Which of the user's records a model is calibrated on.

Calibration has to see what the model will see: pictures, requests and boxes with their digits. There is no default
set, for one of plain text costs boxes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_core.overlap import overlap
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.load import image_hash, load_image, upright_size
from edgetune_runtime.records import AnyRecord, Record, place_of, read_entries
from edgetune_runtime.records.dialogue import Dialogue, Name
from edgetune_runtime.threads import usable_cores

DEFAULT_SAMPLES = 128
_MISSING = 1e9  # more than any shares' sum
_LISTED = 40  # values of an axis that the manifest names; data may have thousands of labels

AXES = ("kind", "label", "size", "position", "image tokens", "image")
"""What samples are spread over. "image" counts how often one picture is used; several of a conversation are one."""

# COCO's bounds, here on pixels of the resized picture, where the model has to find the object.
_SIZES = ((32**2, "small"), (96**2, "medium"), (float("inf"), "large"))
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_TOKEN_BINS = 4


@dataclass(frozen=True)
class CalibrationSet:
    """The samples, and how they were chosen.

    Attributes:
        samples: in the order of the data file.
        seed: that broke ties.
        sha256: over the samples' pixels, requests and answers.
        available: records in the data file.
        coverage: axis -> number of values, how many of them have a sample, and for the most frequent ones how many
            records were available and chosen.
        remark: on pictures that are nearly the same as ones of the evaluation, or None.
    """

    samples: Sequence[Sample]
    seed: int
    sha256: str
    available: int
    coverage: Mapping[str, Any]
    remark: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {
            "samples": len(self.samples),
            "available": self.available,
            "seed": self.seed,
            "sha256": self.sha256,
            "sources": [sample.record.source for sample in self.samples],
            "coverage": dict(self.coverage),
        }


def calibration_set(
    checkpoint: HubCheckpoint, data: Path, *, samples: int | None, seed: int, evaluation: Path | None = None
) -> CalibrationSet:
    """Choose samples from a data file.

    Args:
        checkpoint: whose image sizes, prompts and boxes count.
        data: JSONL file of records and conversations.
        samples: how many; None takes 128, or all where there are fewer.
        seed: breaks ties between equally wanted records.
        evaluation: JSONL file that must not share a picture with `data`.

    Raises:
        InputError: a file or record is bad, `data` has fewer records than asked for, the files share a picture, or no
            sample has one.
    """
    records = read_entries(data)
    if samples is not None and samples > len(records):
        raise InputError(
            f"{data}: {len(records)} records, but {samples} samples are asked for",
            hint=f"leave --samples out to take all {len(records)}, or add records",
        )
    remark = None if evaluation is None else check_disjoint(records, data, read_entries(evaluation), evaluation)
    geometries, tokens = _sizes(records, checkpoint.spec)
    values = strata(records, geometries, tokens)
    chosen = choose(values, min(DEFAULT_SAMPLES, len(records)) if samples is None else samples, seed)
    facts = (checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
    picked = prepare([records[index] for index in chosen], *facts)
    if not any(sample.images for sample in picked):
        raise InputError(
            f"{data}: none of the {len(picked)} samples has a picture",
            hint="calibrate on records like those that the model will be asked about",
        )
    return CalibrationSet(picked, seed, _digest(picked), len(records), _coverage(values, chosen), remark)


def choose(values: Mapping[str, Sequence[str]], count: int, seed: int) -> list[int]:
    """Return `count` indices of records, sorted, that cover the values of every axis.

    A value should get a share of the samples in proportion to the square root of its frequency: common cases weigh
    more than rare ones, but not as much more as in the data. Records are taken one at a time: first those with values
    that have no sample yet, on axes with few enough values to have one of each; then always one whose values are
    furthest behind their shares. The seed decides between equals.

    Args:
        values: axis -> the value of each record.
        count: at most the number of records.
        seed: of the order among equals.
    """
    order = np.random.default_rng(seed).permutation(len(next(iter(values.values()))))
    axes = [_Axis(np.array(column)[order], count) for column in values.values()]
    free = np.zeros(len(order))
    chosen = []
    for _ in range(count):
        best = int((free + sum(axis.wanted() for axis in axes)).argmax())
        free[best] = -np.inf
        chosen.append(int(order[best]))
        for axis in axes:
            axis.taken[axis.codes[best]] += 1
    return sorted(chosen)


class _Axis:
    """How much each record is wanted for its value on one axis."""

    def __init__(self, column: npt.NDArray[np.str_], count: int) -> None:
        _, self.codes, frequency = np.unique(column, return_inverse=True, return_counts=True)
        self.goal = count * np.sqrt(frequency) / np.sqrt(frequency).sum()
        self.taken = np.zeros(len(frequency))
        self.coverable = len(frequency) <= count

    def wanted(self) -> npt.NDArray[np.float64]:
        """Return for each record how far its value is behind its share; a missing value outweighs all else."""
        lack = 1 - self.taken / self.goal
        if self.coverable:
            lack[self.taken == 0] = _MISSING
        found: npt.NDArray[np.float64] = lack[self.codes]
        return found


def check_disjoint(
    records: Sequence[AnyRecord], data: Path, held_out: Sequence[AnyRecord], evaluation: Path
) -> str | None:
    """Refuse data that shares a picture with the evaluation data: scores on it would flatter the result.

    Pictures are compared by their pixels, whatever the files are (see `edgetune_core.overlap`).

    Returns:
        A remark on pictures that are nearly the same, or None.

    Raises:
        InputError: the first shared picture, by file and line on both sides, and how many there are.
    """
    held = {path: record for record in reversed(held_out) for path in record.images}
    found = overlap((path for record in records for path in record.images), held)
    shared = [record for record in records if any(path in found.same for path in record.images)]
    if shared:
        first = shared[0]
        path = next(path for path in first.images if path in found.same)
        named = "its picture" if len(first.images) == 1 else f"its picture {path.name}"
        raise InputError(
            f"{place_of(data, first)}: {named} is also that of {place_of(evaluation, held[found.same[path]])}; "
            f"{len(shared)} of {len(records)} records share a picture with the evaluation data",
            hint="calibrate on other pictures than you evaluate on: split the data by picture",
        )
    return found.remark


def _sizes(records: Sequence[AnyRecord], spec: Preprocessing) -> tuple[list[tuple[Geometry, ...]], list[int]]:
    """Return geometries and image tokens of each record's pictures, from their headers."""
    known = {path: spec.plan(*upright_size(path)) for path in {path for record in records for path in record.images}}
    plans = [[known[path] for path in record.images] for record in records]
    geometries = [tuple(plan.geometry for plan in each) for each in plans]
    return geometries, [sum(plan.image_tokens for plan in each) for each in plans]


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    pictures = list({path: None for sample in samples for path in sample.images})
    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow decodes without holding the interpreter's lock
        hashes = dict(zip(pictures, pool.map(lambda path: image_hash(load_image(path)), pictures), strict=True))
    for sample in samples:
        pixels = " ".join(hashes[path] for path in sample.images)
        digest.update(f"{pixels} {sample.prompt_ids} {sample.answer_ids}\n".encode())
    return digest.hexdigest()


def _coverage(values: Mapping[str, Sequence[str]], chosen: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis in AXES:
        available = Counter(values[axis])
        taken = Counter(values[axis][index] for index in chosen)
        found[axis] = {"values": len(available), "covered": len(taken)}
        if axis != "image":
            most = available.most_common(_LISTED)
            found[axis]["most_common"] = {name: {"available": n, "chosen": taken[name]} for name, n in most}
    return found


def strata(
    records: Sequence[AnyRecord], geometries: Sequence[Sequence[Geometry]], tokens: Sequence[int]
) -> dict[str, list[str]]:
    """Return each record's value on each axis.

    Where a record has several boxes, the smallest as the model sees it speaks for it: it is the hardest to keep.

    Args:
        records: the data.
        geometries: of each record's images.
        tokens: image tokens of each record.
    """
    values: dict[str, list[str]] = {axis: [] for axis in AXES}
    for record, sizes in zip(records, geometries, strict=True):
        kind, label, size, position = (
            _conversation(record, sizes) if isinstance(record, Dialogue) else _answer(record, sizes[0])
        )
        for axis, value in zip(AXES, (kind, label, size, position), strict=False):
            values[axis].append(value)
        values["image"].append(" ".join(map(str, record.images)))
    values["image tokens"] = _bins(tokens)
    return values


def _answer(record: Record, geometry: Geometry) -> tuple[str, str, str, str]:
    """Return kind, label, size and position; the label of what has no box is what is asked."""
    if record.boxes is None:
        return "question", record.text, "(question)", "(question)"
    if not len(record.boxes):
        return "absent", record.text, "(absent)", "(absent)"
    smallest, size, position = _smallest([(box, geometry) for box in record.boxes])
    return "present", record.labels[smallest], size, position


def _conversation(dialogue: Dialogue, geometries: Sequence[Geometry]) -> tuple[str, str, str, str]:
    """Return kind, label, size and position; the label is what the user says first."""
    asked = next(turn for turn in dialogue.turns if turn.role == "user")
    words = (part.text if isinstance(part, Name) else part for part in asked.parts if isinstance(part, Name | str))
    boxes = [(place.numbers, geometries[place.image]) for place in dialogue.places if len(place.numbers) == 4]
    kind = "conversation"
    size, position = _smallest(boxes)[1:] if boxes else (f"({kind})", f"({kind})")
    return kind, "".join(words).strip(), size, position


def _smallest(boxes: Sequence[tuple[npt.ArrayLike, Geometry]]) -> tuple[int, str, str]:
    """Return which box (xyxy, pixels of its original picture) is the smallest to the model, its size and position."""
    seen = [
        np.asarray(box, np.float64) * ([size.resized_width / size.width, size.resized_height / size.height] * 2)
        for box, size in boxes
    ]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in seen]
    smallest = int(np.argmin(areas))
    size = next(name for bound, name in _SIZES if areas[smallest] < bound)
    return smallest, size, _cell(seen[smallest], boxes[smallest][1])


def _cell(box: npt.NDArray[np.float64], geometry: Geometry) -> str:
    """Return the third of the picture, down and across, where a box has its centre."""
    row = (box[1] + box[3]) / 2 / geometry.resized_height
    column = (box[0] + box[2]) / 2 / geometry.resized_width
    return f"{_ROWS[min(int(row * 3), 2)]} {_COLUMNS[min(int(column * 3), 2)]}"


def _bins(tokens: Sequence[int]) -> list[str]:
    """Return each count's quarter of the distribution, named by its smallest and largest count."""
    counts = np.array(tokens)
    cuts = np.unique(np.quantile(counts, np.arange(1, _TOKEN_BINS) / _TOKEN_BINS, method="inverted_cdf"))
    places = np.searchsorted(cuts, counts, side="left")
    bins = [counts[places == place] for place in range(len(cuts) + 1)]
    names = [f"{each.min()}-{each.max()}" if len(each) else "" for each in bins]
    return [names[place] for place in places]

"""In which order people should look at pictures, and reading them in it without holding them all in memory.

Pictures that are nearly the same as one before them teach little more, so they come after all others: whoever stops
after a hundred labels has labelled a hundred different pictures. Of several that are nearly the same, the first is that
of which the model is least sure, or one that is labelled already.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgetune_data.labelling.propose import Entry, lines_of
from edgetune_data.near_duplicates import leaders

By = Literal["uncertain", "random"]


@dataclass(frozen=True)
class Place:
    """Where a line of proposals is, and what it is about.

    Attributes:
        file: the file of lines.
        offset: the byte that the line starts at.
    """

    file: Path
    offset: int


@dataclass(frozen=True)
class Proposed:
    """A picture with what a model says of it.

    Attributes:
        name: its path from the folder of all pictures.
        width: pixels, upright.
        height: pixels, upright.
        uncertainty: 0 to 1, of the least sure answer.
        group: the same for pictures that are nearly the same, from 1 on.
        duplicate_of: name of the picture of its group that comes before it, which may be one that is labelled.
        answers: as in a line of proposals.
    """

    name: str
    width: int
    height: int
    uncertainty: float
    group: int
    duplicate_of: str | None
    answers: list[dict[str, Any]]


@dataclass(frozen=True)
class Ordered:
    """Pictures in the order in which people should look at them; each iteration reads their lines anew.

    Attributes:
        root: the folder that pictures are named from.
        places: where their lines are.
        groups: the group of each.
        duplicates: place -> name of the picture that comes before it.
    """

    root: Path
    places: Sequence[Place]
    groups: Sequence[int]
    duplicates: dict[int, str]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Proposed]:
        """Yield the pictures, one in memory at a time."""
        streams = {place.file: place.file.open("rb") for place in self.places}
        try:
            for number, (place, group) in enumerate(zip(self.places, self.groups, strict=True)):
                stream = streams[place.file]
                stream.seek(place.offset)
                line = json.loads(stream.readline())
                yield Proposed(
                    line["image"],
                    line["width"],
                    line["height"],
                    line["uncertainty"],
                    group,
                    self.duplicates.get(number),
                    line["answers"],
                )
        finally:
            for stream in streams.values():
                stream.close()

    def first(self, count: int | None) -> Ordered:
        """Return the first pictures; all of them for None."""
        return Ordered(self.root, self.places[:count], self.groups[:count], self.duplicates)


def arrange(files: Sequence[Path], root: Path, *, by: By, near: int, seed: int) -> tuple[Ordered, list[Entry]]:
    """Return the pictures of files of proposals in order, and the lines of those that could not be read.

    Pictures that are labelled lead the groups that they are in, and are not among those returned.

    Args:
        files: of lines.
        root: the folder that their pictures are named from.
        by: "uncertain" is first the picture with the least sure answer, of equal ones that with the less sure next one;
            "random" is of the seed.
        near: pictures whose perceptual hashes differ in at most this many of 64 bits are nearly the same.
        seed: of the random order.
    """
    places: list[Place] = []
    names: list[str] = []
    hashes: list[bytes] = []
    unsure: list[tuple[float, ...]] = []  # of a picture's answers, the least sure first; none where it is labelled
    rejected: list[Entry] = []
    for file in files:
        for offset, line in lines_of(file):
            if "problem" in line:
                rejected.append(line)
                continue
            places.append(Place(file, offset))
            names.append(line["image"])
            hashes.append(bytes.fromhex(line["phash"]))
            unsure.append(tuple(sorted((answer["uncertainty"] for answer in line.get("answers", ())), reverse=True)))
    asked = [number for number, values in enumerate(unsure) if values]
    labelled = [number for number, values in enumerate(unsure) if not values]
    order = labelled + _ordered(asked, unsure, names, by, seed)
    rows = np.frombuffer(b"".join(hashes[number] for number in order), dtype=np.uint8).reshape(-1, 8)
    leading = leaders(rows, near)
    skipped = len(labelled)
    behind = [row for row in range(skipped, len(order)) if leading[row] != row]
    ahead = [row for row in range(skipped, len(order)) if leading[row] == row]
    number_of = {row: group for group, row in enumerate(dict.fromkeys(leading[ahead + behind].tolist()), start=1)}
    final = ahead + behind
    return (
        Ordered(
            root,
            [places[order[row]] for row in final],
            [number_of[int(leading[row])] for row in final],
            {len(ahead) + place: names[order[int(leading[row])]] for place, row in enumerate(behind)},
        ),
        rejected,
    )


def _ordered(
    asked: list[int], unsure: Sequence[tuple[float, ...]], names: Sequence[str], by: By, seed: int
) -> list[int]:
    by_name = sorted(asked, key=lambda number: names[number])
    if by == "random":
        return random.Random(f"label {seed}").sample(by_name, len(by_name))
    return sorted(by_name, key=lambda number: unsure[number], reverse=True)

"""Splitting a data set so that no picture, and nothing nearly the same, is on both sides."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_data.image_facts import ImageFacts, read_images
from edgetune_data.near_duplicates import groups, near_pairs, stack
from edgetune_data.read import Item
from edgetune_data.rewrite import moved, origin_of, write_set
from edgetune_runtime.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Group:
    """Records that must stay together, and how many there are of each stratum."""

    entries: tuple[Item, ...]
    strata: Mapping[str, int]


def grouped(entries: Sequence[Item], near: int, by: str | None = None) -> list[Group]:
    """Return records in groups: those that share a picture, or pictures that are nearly the same.

    Pictures are the same when their pixels are, nearly so when their perceptual hashes differ in at most `near` of 64
    bits, and both when they were cut from one original. Groups grow from link to link.

    Args:
        entries: sound records.
        near: bits.
        by: a key of meta; records with equal values of it stay together, too (a camera's burst, a customer).

    Raises:
        ImageError: a picture cannot be decoded.
    """
    named = dict.fromkeys(image for entry in entries for image in entry.images)
    facts: list[ImageFacts] = []
    for read in read_images(named).values():
        if not isinstance(read, ImageFacts):
            raise read
        facts.append(read)
    pixels = {fact.path.resolve(): fact.sha256 for fact in facts}
    keys = [list(_keys(entry, pixels, by)) for entry in entries]
    hashes = stack(fact.phash for fact in facts)
    keys += [[facts[i].sha256, facts[j].sha256] for i, j, _ in near_pairs(hashes, hashes, near) if i < j]
    number = {key: index for index, key in enumerate(dict.fromkeys(key for linked in keys for key in linked))}
    links = [(number[linked[0]], number[other]) for linked in keys for other in linked[1:]]
    member = {index: group for group, indices in enumerate(groups(len(number), links)) for index in indices}
    together: dict[Any, list[Item]] = {}
    for entry, linked in zip(entries, keys, strict=False):
        together.setdefault(member[number[linked[0]]] if linked else entry.source, []).append(entry)
    return [Group(tuple(members), Counter(map(_stratum, members))) for members in together.values()]


def _keys(entry: Item, pixels: Mapping[Path, str], by: str | None) -> Iterator[str]:
    """Yield what ties a record to others."""
    yield from (pixels[image.resolve()] for image in entry.images)
    origin = origin_of(entry)
    if origin is not None:
        path = origin[0].resolve()
        yield pixels.get(path, f"origin {path}")
    meta = (entry.value or {}).get("meta") or {}
    if by is not None and by in meta:
        yield f"meta {json.dumps(meta[by], sort_keys=True)}"


def _stratum(entry: Item) -> str:
    """Return what a record is an example of: a label, an absent object, a question, a conversation."""
    if entry.kind == "ground":
        return f"label {' '.join(entry.labels[0].casefold().split())}" if entry.labels else "absent"
    return entry.kind


def divide(parts: Sequence[Group], ratios: Sequence[float], seed: int) -> list[list[Group]]:
    """Return the groups of each split: sizes near the ratios, every stratum in near the same shares.

    The largest groups go first, each where it lowers most the sum over splits and strata of (have - want)² / want:
    Pearson's chi-square against the wanted table. Strata in too few groups to be shared out are taken as one.

    Args:
        parts: from `grouped`.
        ratios: of records, one for each split, adding up to 1; 0 leaves a split out.
        seed: of the order among groups of one size.

    Raises:
        InputError: a split would be empty.
    """
    fewest = math.ceil(1 / min(ratio for ratio in ratios if ratio > 0))
    spread = Counter(stratum for group in parts for stratum in group.strata)
    shared = {stratum: stratum if count >= fewest else "other" for stratum, count in spread.items()}
    counted = []
    for group in parts:
        counts: Counter[str] = Counter({"": len(group.entries)})  # all records are a stratum, too
        for stratum, count in group.strata.items():
            counts[shared[stratum]] += count
        counted.append((group, counts))
    random.Random(seed).shuffle(counted)
    counted.sort(key=lambda pair: -len(pair[0].entries))
    total = sum((counts for _, counts in counted), Counter[str]())
    have = [Counter[str]() for _ in ratios]
    divided: list[list[Group]] = [[] for _ in ratios]
    for group, counts in counted:
        costs = [
            sum(
                ((have[i][s] + n - ratio * total[s]) ** 2 - (have[i][s] - ratio * total[s]) ** 2) / (ratio * total[s])
                for s, n in counts.items()
            )
            if ratio
            else math.inf
            for i, ratio in enumerate(ratios)
        ]
        chosen = costs.index(min(costs))
        have[chosen].update(counts)
        divided[chosen].append(group)
    for name, ratio, found in zip(SPLITS, ratios, divided, strict=False):
        if ratio and not found:
            raise InputError(
                f"{name} would be empty: there are {len(parts)} groups of pictures that have to stay together",
                hint="give it a larger share, add pictures, or lower --near",
            )
    return divided


def write(
    entries: Sequence[Item], divided: Sequence[Sequence[Group]], work: Path, output: Path, *, groups_file: str
) -> dict[str, Any]:
    """Write a file for each split, dataset.json, and which group each record is in; return the manifest's result.

    Args:
        entries: all records in their order, which the files keep.
        divided: from `divide`.
        work: the folder to write to, which becomes `output`.
        output: its final place; pictures stay where they are.
        groups_file: the name of the list of groups.
    """
    place = {entry.source: i for i, parts in enumerate(divided) for group in parts for entry in group.entries}
    files = {
        f"{name}.jsonl": [moved(entry, entry.value or {}, output) for entry in entries if place[entry.source] == i]
        for i, name in enumerate(SPLITS[: len(divided)])
        if divided[i]
    }
    images = dict.fromkeys(image for entry in entries for image in entry.images)
    write_set(work, files, images, list(dict.fromkeys(entry.path for entry in entries)))
    with (work / groups_file).open("w", encoding="utf-8") as stream:
        for i, parts in enumerate(divided):
            for group in parts:
                line = {"split": SPLITS[i], "records": [entry.source for entry in group.entries]}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {"splits": summary(divided)}


def summary(divided: Sequence[Sequence[Group]]) -> list[dict[str, Any]]:
    """Return a row for each split: records, their share, pictures, groups, and records of each kind."""
    everything = sum(len(group.entries) for parts in divided for group in parts)
    rows = []
    for name, parts in zip(SPLITS, divided, strict=False):
        entries = [entry for group in parts for entry in group.entries]
        if entries:
            kinds = Counter(entry.kind if entry.kind != "ground" or entry.places else "absent" for entry in entries)
            row = {"split": name, "records": len(entries), "share": len(entries) / everything}
            row |= {"pictures": len({image for entry in entries for image in entry.images}), "groups": len(parts)}
            rows.append(row | {kind: kinds[kind] for kind in ("ground", "absent", "vqa", "dialogue")})
    return rows

"""What the records point to: the images' hashes, and the check that no validation image is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.records import AnyRecord


def image_hashes(records: Sequence[AnyRecord]) -> dict[Path, str]:
    """Return the sha256 of each image file that the records name."""
    paths = dict.fromkeys(path for record in records for path in record.images)
    return {path: sha256_file(path) for path in tqdm(paths, desc="hash images", unit="image", disable=None, delay=2)}


def tree_hash(hashes: Mapping[Path, str]) -> str:
    """Return one sha256 over a set of images, whatever they are called."""
    return hashlib.sha256("\n".join(sorted(hashes.values())).encode()).hexdigest()


def check_disjoint(records: Sequence[AnyRecord], val: Sequence[AnyRecord], hashes: Mapping[Path, str]) -> None:
    """Refuse a validation record whose image is trained on: its score would say nothing about new images.

    Raises:
        InputError: the first such record, and how many there are.
    """
    trained = {hashes[path]: record for record in reversed(records) for path in record.images}
    twins = [(record, trained[hashes[path]]) for record in val for path in record.images if hashes[path] in trained]
    if twins:
        shared = list(dict.fromkeys(record.source for record, _ in twins))
        record, twin = twins[0]
        raise InputError(
            f"{record.source}: its image is also trained on ({twin.source}); so are those of {len(shared)} of "
            f"{len(val)} validation records",
            hint="split the data by image, or --allow-overlap to score on trained images",
        )

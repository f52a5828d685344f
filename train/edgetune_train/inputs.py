"""What the records point to: the images' hashes, and the check that no validation image is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.records import Record


def image_hashes(records: Sequence[Record]) -> dict[Path, str]:
    """Return the sha256 of each image file that the records name."""
    paths = dict.fromkeys(record.image for record in records)
    return {path: sha256_file(path) for path in tqdm(paths, desc="hash images", unit="image", disable=None, delay=2)}


def tree_hash(hashes: Mapping[Path, str]) -> str:
    """Return one sha256 over a set of images, whatever they are called."""
    return hashlib.sha256("\n".join(sorted(hashes.values())).encode()).hexdigest()


def check_disjoint(records: Sequence[Record], val: Sequence[Record], hashes: Mapping[Path, str]) -> None:
    """Refuse a validation record whose image is trained on: its score would say nothing about new images.

    Raises:
        InputError: the first such record, and how many there are.
    """
    trained = {hashes[record.image]: record for record in reversed(records)}
    shared = [record for record in val if hashes[record.image] in trained]
    if shared:
        twin = trained[hashes[shared[0].image]]
        raise InputError(
            f"{shared[0].source}: its image is also trained on ({twin.source}); so are those of {len(shared)} of "
            f"{len(val)} validation records",
            hint="split the data by image, or --allow-overlap to score on trained images",
        )

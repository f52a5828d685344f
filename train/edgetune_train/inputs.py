"""What the records point to: the images' hashes, and the check that no validation image is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from edgetune_core.overlap import overlap
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


def check_disjoint(records: Sequence[AnyRecord], val: Sequence[AnyRecord]) -> str | None:
    """Refuse a validation record whose picture is trained on: its score would say nothing about new pictures.

    Pictures are compared by their pixels, whatever the files are (see `edgetune_core.overlap`).

    Returns:
        A remark on pictures that are nearly the same as ones that are trained on, or None where there are none.

    Raises:
        InputError: the first such record, and how many there are.
    """
    trained = {path: record for record in reversed(records) for path in record.images}
    found = overlap((path for record in val for path in record.images), trained)
    twins = [record for record in val if any(path in found.same for path in record.images)]
    if twins:
        record = twins[0]
        twin = trained[next(found.same[path] for path in record.images if path in found.same)]
        raise InputError(
            f"{record.source}: its image is also trained on ({twin.source}); so are those of {len(twins)} of "
            f"{len(val)} validation records",
            hint="split the data by image, or --allow-overlap to score on trained images",
        )
    return found.remark

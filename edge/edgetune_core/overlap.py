"""Pictures that two sets of records share: a score on pictures that were learned from says nothing about new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from edgetune_runtime.images.load import image_hash, load_image, upright_size
from edgetune_runtime.threads import usable_cores

NEAR = 6
"""Bits of 64 in which the perceptual hashes of nearly the same picture differ at most, as in `edgetune data check`."""

_SIDE, _LOW = 32, 8  # pixels a side that the hash looks at, and the lowest frequencies it keeps
_STEPS = np.pi * np.arange(_LOW)[:, None] * (2 * np.arange(_SIDE) + 1) / (2 * _SIDE)
_COSINES = np.cos(_STEPS)  # float64 [8, 32], the first rows of a DCT-II


@dataclass(frozen=True)
class Overlap:
    """Pictures of one set that another set has, too.

    Attributes:
        same: picture -> one of the other set with the same pixels, whatever the files are.
        near: picture -> one of the other set that is nearly the same, such as a copy saved as JPEG.
    """

    same: Mapping[Path, Path]
    near: Mapping[Path, Path]

    @property
    def remark(self) -> str | None:
        """What is to be said of the nearly same pictures, or None where there are none."""
        if not self.near:
            return None
        path, other = next(iter(self.near.items()))
        return (
            f"pictures that are nearly the same on both sides: {len(self.near)}, such as {path} and {other} "
            "(`edgetune data check --against` lists them, `edgetune data split` keeps them together)"
        )


def overlap(pictures: Iterable[Path], others: Iterable[Path]) -> Overlap:
    """Return which pictures are in another set.

    Only pictures of a size that occurs in both sets are decoded: copies of another size are not found, and
    `edgetune data check --against` finds them.

    Raises:
        ImageError: a picture cannot be read.
    """
    sides = [{path: upright_size(path) for path in dict.fromkeys(side)} for side in (pictures, others)]
    common = set(sides[0].values()) & set(sides[1].values())
    mine, theirs = ([path for path, size in side.items() if size in common] for side in sides)
    both = list(dict.fromkeys([*mine, *theirs]))
    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow decodes without holding the interpreter's lock
        found = pool.map(_facts, both)
        facts = dict(zip(both, tqdm(found, "compare pictures", len(both), disable=None, delay=2), strict=True))
    by_pixels = {facts[path][0]: path for path in reversed(theirs)}
    same = {path: by_pixels[facts[path][0]] for path in mine if facts[path][0] in by_pixels}
    near = {}
    bits = np.stack([facts[path][1] for path in theirs]) if theirs else np.zeros((0, 8), np.uint8)
    for path in mine:
        if path not in same:
            differing = np.unpackbits(bits ^ facts[path][1], axis=1).sum(axis=1, dtype=int)
            if differing.size and differing.min() <= NEAR:
                near[path] = theirs[int(differing.argmin())]
    return Overlap(same, near)


def _facts(path: Path) -> tuple[str, npt.NDArray[np.uint8]]:
    return _hashes(path, path.stat().st_mtime_ns)


# Trainings in sequence compare the same pictures again.
@lru_cache(maxsize=1 << 17)
def _hashes(path: Path, _changed: int) -> tuple[str, npt.NDArray[np.uint8]]:
    image = load_image(path)
    return image_hash(image), perceptual_hash(image)


def perceptual_hash(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the 64-bit DCT hash of a picture, uint8 [8]; it survives scaling, recompression and mild exposure.

    The pHash of the library imagehash: which of the 8x8 lowest frequencies of a 32x32 grey copy are above their median.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = (_COSINES @ grey @ _COSINES.T).round(6)  # or the hash of a blank picture would be rounding
    return np.packbits(low > np.median(low))

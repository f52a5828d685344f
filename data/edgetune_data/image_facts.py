"""What a picture is, from decoding it once: size, hashes of its pixels, and how much there is to see in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from edgetune_core.overlap import perceptual_hash
from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import image_hash, load_image
from edgetune_runtime.images.smart import check_aspect
from edgetune_runtime.threads import usable_cores

if TYPE_CHECKING:
    from PIL import Image

SIGHT = 512
"""Pixels on the longer side at which quality is judged: about what a small model sees of a picture."""

_BLUR_WINDOW = 11  # pixels, as in the paper
_ONE_AT_A_TIME = Lock()  # looks come from anywhere: none has to bear threads


@dataclass(frozen=True)
class Quality:
    """How much there is to see, judged with at most `SIGHT` pixels on the longer side.

    Attributes:
        blur: 0 (sharp) to 1, see `blur`.
        darkest: brightness 0-1 that a twentieth of the pixels do not exceed.
        brightest: brightness 0-1 that a hundredth of the pixels exceed.
        entropy: bits, of the histogram of the three channels.
    """

    blur: float
    darkest: float
    brightest: float
    entropy: float


@dataclass(frozen=True)
class ImageFacts:
    """One decoded picture.

    Attributes:
        path: the file.
        width: pixels, upright.
        height: pixels, upright.
        sha256: of its pixels, whatever the file: equal pictures are equal.
        phash: uint8 [8], the 64 bits of its perceptual hash.
        quality: what can be seen in it, or None where that was not asked for.
        seen: what each look at it returned, by name.
    """

    path: Path
    width: int
    height: int
    sha256: str
    phash: npt.NDArray[np.uint8]
    quality: Quality | None
    seen: Mapping[str, Any]


Look = Callable[["Image.Image"], Any]
"""Anything else to be learned from an upright RGB picture while it is in memory."""


def read_images(
    paths: Iterable[Path], *, quality: bool = False, looks: Mapping[str, Look] | None = None
) -> dict[Path, ImageFacts | ImageError]:
    """Decode pictures to their last byte; return what they are, or the error that says why they are none.

    Args:
        paths: files; each is read once.
        quality: judge what can be seen, too.
        looks: more to be asked of each picture, by name; never two at the same time.
    """
    unique = list(dict.fromkeys(paths))
    _import_libraries(quality=quality)

    def read(path: Path) -> ImageFacts | ImageError:
        try:
            image = load_image(path)
        except ImageError as error:
            return error
        try:
            check_aspect(*image.size)
        except ImageError as error:
            return ImageError(f"{path}: {error}", hint=error.hint)
        return facts_of(image, path, quality=quality, looks=looks)

    # Pillow decodes and resizes without holding the interpreter's lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        results = pool.map(read, unique)
        bar = tqdm(results, total=len(unique), desc="decode pictures", unit="image", disable=None, delay=2, leave=False)
        return dict(zip(unique, bar, strict=True))


def facts_of(
    image: Image.Image, path: Path, *, quality: bool = False, looks: Mapping[str, Look] | None = None
) -> ImageFacts:
    """Return what an upright RGB picture is that is in memory; `path` is where it is, or will be, as a file."""
    judged = judge(image) if quality else None
    with _ONE_AT_A_TIME:
        seen = {name: look(image) for name, look in (looks or {}).items()}
    return ImageFacts(path, *image.size, image_hash(image), perceptual_hash(image), judged, seen)


def _import_libraries(*, quality: bool) -> None:
    """Import here and not in the threads, where a missing library would be told later and importing takes turns."""
    if quality:
        from cleanvision.issue_managers import image_property  # noqa: F401


def judge(image: Image.Image) -> Quality:
    """Judge an upright RGB picture at the size in which models see it."""
    from cleanvision.issue_managers.image_property import BrightnessProperty, EntropyProperty

    small = image.copy()
    small.thumbnail((SIGHT, SIGHT))
    light = BrightnessProperty("dark").calculate(small)
    return Quality(
        blur(small),
        float(light["brightness_perc_5"]),
        float(light["brightness_perc_99"]),
        float(EntropyProperty().calculate(small)["entropy"]),
    )


def blur(image: Image.Image) -> float:
    """Return how blurred a picture is, from 0 (sharp) to 1.

    Crété-Roffet, Dolmière, Ladret, Nicolas: "The blur effect: perception and estimation with a new no-reference
    perceptual blur metric" (SPIE 6492, 2007): blurring once more takes little from a picture that is blurred already.
    A picture without any edges counts as sharp; it has little entropy instead.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float32)  # [H, W]
    worst = 0.0
    for lines in (grey, grey.T):
        if lines.shape[1] <= _BLUR_WINDOW:
            continue
        sharp = np.abs(np.diff(lines, axis=1))
        soft = np.abs(np.diff(_box_blur(lines), axis=1))
        total = float(sharp.sum())
        lost = float(np.maximum(sharp - soft, 0).sum())
        worst = max(worst, 1 - lost / total if total else 0.0)
    return worst


def _box_blur(lines: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Average each pixel of [H, W] with its neighbours to the left and right, edges repeated."""
    half = _BLUR_WINDOW // 2
    padded = np.pad(lines, ((0, 0), (half + 1, half)), mode="edge").astype(np.float64)
    sums = np.cumsum(padded, axis=1)
    return np.asarray((sums[:, _BLUR_WINDOW:] - sums[:, :-_BLUR_WINDOW]) / _BLUR_WINDOW)

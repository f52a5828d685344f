"""Finding what must not be in a picture: faces, plates, screens with text. Each finder is a plugin.

A redactor is a function without arguments that returns an object with

    def find(self, image: PIL.Image.Image) -> Sequence[Region]: ...

which gets an upright RGB picture and returns boxes xyxy in its pixels. A package offers one through an entry point:

    [project.entry-points."edgetune.redactors"]
    plates = "my_package.plates:PlateFinder"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgetune_runtime.errors import MissingDependency
from edgetune_runtime.plugins import Plugins

if TYPE_CHECKING:
    from PIL import Image

_CASCADE = (
    "haarcascade_frontalface_alt.xml"  # no false face in 50 landscapes and textures, where the default one sees 12
)
_SMALLEST_FACE = 24  # pixels a side; the cascade was trained on 20
_FACE_SIDE = 1024  # pixels on the longer side that are looked at
_FEWEST_LETTERS = 2  # letters and digits; a lone one is mostly an edge or a round thing


@dataclass(frozen=True)
class Region:
    """One region that should not be there: xyxy in pixels of the upright picture, what it is, and how sure."""

    box: tuple[float, float, float, float]
    kind: str
    score: float = 1.0


class Redactor(Protocol):
    """What a plugin's function returns."""

    def find(self, image: Image.Image) -> Sequence[Region]:
        """Return the regions of an upright RGB picture that should not be there."""


class FaceFinder:
    """Finds upright frontal faces of at least 24 pixels (of 1024 on the longer side of the picture).

    By the Haar cascade that OpenCV 4 ships (Viola & Jones, CVPR 2001; Lienhart 2002).
    It misses faces in profile and turned ones; a clean result is no proof.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
        MissingDependency: it is OpenCV 5, which has no cascades.
    """

    def __init__(self) -> None:
        cv2: Any = import_module("cv2")
        if not hasattr(cv2, "CascadeClassifier"):
            raise MissingDependency(
                f"OpenCV {cv2.__version__} has no cascades, which the redactor 'faces' needs",
                hint='pip install "opencv-python-headless>=4.12,<5"',
            )
        self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + _CASCADE)

    def find(self, image: Image.Image) -> Sequence[Region]:
        """Return the faces in an upright RGB picture, the surest first."""
        small = image.convert("L")
        small.thumbnail((_FACE_SIDE, _FACE_SIDE))
        across, down = image.width / small.width, image.height / small.height
        boxes, _, weights = self._cascade.detectMultiScale3(
            np.asarray(small),
            scaleFactor=1.1,
            minNeighbors=5,
            minSize=(_SMALLEST_FACE, _SMALLEST_FACE),
            outputRejectLevels=True,
        )
        found = [
            Region((x * across, y * down, (x + w) * across, (y + h) * down), "face", float(weight))
            for (x, y, w, h), weight in zip(np.asarray(boxes).tolist(), weights, strict=True)
        ]
        return sorted(found, key=lambda region: -region.score)


class TextFinder:
    """Finds lines of writing in which at least two letters or digits can be read: signs, plates, screens, labels.

    By the PP-OCR networks that RapidOCR ships (Du et al. 2020).
    What is read is used for nothing else and told nowhere. Small, sideways and handwritten lines are missed at times;
    a clean result is no proof.

    Raises:
        ModuleNotFoundError: RapidOCR is not installed.
    """

    def __init__(self) -> None:
        self._read: Any = import_module("rapidocr").RapidOCR(params={"Global.log_level": "error"})

    def find(self, image: Image.Image) -> Sequence[Region]:
        """Return the lines of writing in an upright RGB picture, the surest first."""
        found = self._read(np.asarray(image)[:, :, ::-1], use_det=True, use_cls=False, use_rec=True)
        if found.boxes is None:
            return []
        regions = [
            Region((*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()), "text", float(score))
            for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
            if sum(map(str.isalnum, text)) >= _FEWEST_LETTERS
        ]
        return sorted(regions, key=lambda region: -region.score)


_BUILT_IN: dict[str, Callable[[], Redactor]] = {"faces": FaceFinder, "text": TextFinder}


OTHERS: Plugins[Redactor] = Plugins(
    "edgetune.redactors",
    "redactor",
    "a function whose result has a method 'find'",
    lambda made: callable(getattr(made, "find", None)),
    built_in=_BUILT_IN,
    made=True,
)
"""Redactors that installed packages add."""


def load_redactor(name: str) -> Redactor:
    """Return the redactor with this name, built in or of another package.

    Raises:
        InputError: there is none, or the package is broken.
        MissingDependency: the package, or something that it needs, cannot be imported.
        ModuleNotFoundError: a library that a built-in one needs is missing.
    """
    return _BUILT_IN[name]() if name in _BUILT_IN else OTHERS.load(name)

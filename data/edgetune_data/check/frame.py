"""Whether the boxes of a whole file are in another frame than pixels of the upright picture, and which.

Each frame that tools use is tried on all boxes. Two kinds of evidence count, and both are told:

- the boxes as they stand are impossible (they leave their pictures or are inverted) and make sense in the other frame;
- they are possible, but all of them lie in the same corner of their pictures, exactly as far as the other frame
  reaches. Were boxes anywhere in a picture, each of their far corners would lie there with the probability of the
  corner's share of the area; the product over all boxes says how likely that is by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune_data.check.boxes import written
from edgetune_data.check.findings import Finding
from edgetune_data.check.material import Material
from edgetune_runtime.errors import InputError

Floats = npt.NDArray[np.float64]

_FITS = 0.98  # share of the boxes that have to make sense in a frame
_BROKEN = 0.9  # below this share the boxes as they stand do not
_CHANCE = 1e-9  # the probability from which on a coincidence is no longer believed
_REACHES = 0.9  # of the other frame's width and height, by some box; asked where the corner may be a real one
_SLACK = 1.005  # rounding in the tools that wrote them


@dataclass(frozen=True)
class Frame:
    """A frame that the numbers may be in: what the unit is, and what the four numbers are."""

    unit: str
    order: str = "xyxy"

    @property
    def title(self) -> str:
        """How it is told to people."""
        units = {
            "pixel": "pixels",
            "norm1": "0-1 of width and height",
            "norm100": "percent of width and height",
            "norm1000": "0-1000 of width and height",
            "resized": "pixels of the picture that the model sees",
        }
        orders = {
            "xyxy": "[x1, y1, x2, y2]",
            "xywh": "[x, y, width, height]",
            "cxcywh": "[centre x, centre y, width, height]",
            "yxyx": "[y1, x1, y2, x2]",
        }
        return f"{orders[self.order]} in {units[self.unit]}"


_UNITS = ("pixel", "norm1", "norm100", "norm1000", "resized")
_ORDERS = ("xyxy", "xywh", "cxcywh", "yxyx")


def check(material: Material) -> Iterator[Finding]:
    """Yield one finding when the boxes of the file are in another frame."""
    placed = [(entry, facts, numbers) for entry, facts, numbers in material.placed() if len(numbers) == 4]
    if len(placed) < material.limits.frame_boxes:
        return
    boxes = np.array([numbers for _, _, numbers in placed], dtype=np.float64)  # [N, 4]
    sizes = np.array([(facts.width, facts.height) for _, facts, _ in placed], dtype=np.float64)  # [N, 2]
    seen = _seen(material, sizes)
    found = detect(boxes, sizes, seen)
    if found is None:
        return
    frame, evidence = found
    first, facts, numbers = placed[0]
    yield material.finding(
        "frame",
        [],
        f"the {len(boxes)} boxes look like {frame.title}: {evidence}; e.g. {first.source} has {written(numbers)} on a "
        f"{facts.width}x{facts.height} picture",
        image=facts.path,
        boxes=[numbers for _, other, numbers in placed if other is facts],
        badness=len(boxes),
    )


def detect(boxes: Floats, sizes: Floats, seen: Floats | None) -> tuple[Frame, str] | None:
    """Return the frame that boxes seem to be in and why, or None when pixels of the picture is as good.

    Args:
        boxes: [N, 4] numbers as they stand.
        sizes: [N, 2] width and height of their pictures in pixels.
        seen: [N, 2] the same after the model's resize, or None where that is not known.
    """
    extents = {"pixel": sizes, "norm1": np.ones_like(sizes), "norm100": np.full_like(sizes, 100.0)}
    extents["norm1000"] = np.full_like(sizes, 1000.0)
    if seen is not None:
        extents["resized"] = seen
    fits = {(unit, order): _fit(boxes, extents[unit], order) for unit in extents for order in _ORDERS}
    declared = fits["pixel", "xyxy"]
    if declared < _BROKEN:
        return _instead_of_broken(boxes, extents, fits, declared)
    return _smaller(boxes, sizes, extents, fits)


def _instead_of_broken(
    boxes: Floats, extents: dict[str, Floats], fits: dict[tuple[str, str], float], declared: float
) -> tuple[Frame, str] | None:
    """The boxes as they stand are impossible: take the tightest other frame in which nearly all make sense."""
    rank = {name: place for place, name in enumerate(_ORDERS)}
    good = [key for key, fit in fits.items() if fit >= _FITS]
    if not good:
        return None
    # Uniform corners make the frame with the smallest area the likeliest; between orders the first that fits is taken.
    unit, order = min(good, key=lambda key: (float(np.log(extents[key[0]]).sum()), rank[key[1]]))
    return Frame(unit, order), (
        f"{declared:.0%} of them are possible as [x1, y1, x2, y2] in pixels, {fits[unit, order]:.0%} are that way"
    )


def _smaller(
    boxes: Floats, sizes: Floats, extents: dict[str, Floats], fits: dict[tuple[str, str], float]
) -> tuple[Frame, str] | None:
    """The boxes are possible, but they may all lie in the corner that another frame reaches to."""
    for unit in ("norm1", "norm100", "norm1000", "resized"):
        if unit not in extents:
            continue
        reach = extents[unit]
        far = boxes[:, 2:] / reach
        order = next((order for order in _ORDERS if fits[unit, order] == 1.0), None)
        if order is None or (unit != "norm1" and not (far.max(axis=0) >= _REACHES).all()):
            continue
        chance = float(np.log10(np.minimum(1.0, reach / sizes)).sum())
        if chance <= np.log10(_CHANCE):
            share = float(np.minimum(1.0, reach / sizes).prod(axis=1).mean())
            return Frame(unit, order), (
                f"all of them lie in a corner of {share:.2%} of their pictures' area, which by chance happens once in "
                f"10^{-chance:.0f} files, and they reach to {far[:, 0].max():.2f} and {far[:, 1].max():.2f} of that "
                "frame's width and height"
            )
    return None


def _fit(boxes: Floats, extent: Floats, order: str) -> float:
    """Return the share of boxes that are ordered and inside a frame of this extent [N, 2]."""
    a, b, c, d = boxes.T
    x1, y1, x2, y2 = {
        "xyxy": (a, b, c, d),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        "yxyx": (b, a, d, c),
    }[order]
    slack = extent * (_SLACK - 1)
    inside = (
        (x1 >= -slack[:, 0]) & (y1 >= -slack[:, 1]) & (x2 <= (extent + slack)[:, 0]) & (y2 <= (extent + slack)[:, 1])
    )
    return float((inside & (x1 < x2) & (y1 < y2)).mean())


def _seen(material: Material, sizes: Floats) -> Floats | None:
    """Return the sizes [N, 2] that the model sees, or None where that is not known or it does not take one of them."""
    if material.model is None or material.model.spec is None:
        return None
    try:
        views = [material.model.sees(int(width), int(height)) for width, height in sizes]
    except InputError:
        return None
    return np.array([(view.resized_width, view.resized_height) for view in views], dtype=np.float64)

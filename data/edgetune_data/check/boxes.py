"""What is wrong with boxes one by one: not boxes, outside of their picture, or tiny for the model."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune_data.check.findings import Finding, Numbers
from edgetune_data.check.material import Material
from edgetune_data.image_facts import ImageFacts
from edgetune_runtime.errors import ImageError


def check(material: Material) -> Iterator[Finding]:
    """Yield what is wrong with the boxes and points."""
    for entry, facts, numbers in material.placed():
        wrong = fault(numbers, facts.width, facts.height)
        if wrong:
            yield material.finding("box", [entry], wrong, image=facts.path, boxes=[numbers])
            continue
        tokens = _tokens(material, facts, numbers)
        if tokens is not None and tokens < material.limits.min_box:
            yield material.finding(
                "tiny-box",
                [entry],
                f"{written(numbers)} is {tokens:.2f} image tokens of {facts.path.name} ({facts.width}x{facts.height})",
                image=facts.path,
                boxes=[numbers],
                badness=-tokens,
            )


def fault(numbers: Numbers, width: int, height: int) -> str | None:
    """Return what is wrong with a box (xyxy) or point (x, y) of a picture of this size in pixels, or None."""
    picture = f"the {width}x{height} picture"
    if len(numbers) == 2:
        inside = 0 <= numbers[0] <= width and 0 <= numbers[1] <= height
        return None if inside else f"point {written(numbers)} is outside {picture}"
    x1, y1, x2, y2 = numbers
    if x1 == x2 or y1 == y2:
        return f"bbox {written(numbers)} is empty"
    if x1 > x2 or y1 > y2:
        return f"bbox {written(numbers)} is inverted: {'x1 > x2' if x1 > x2 else 'y1 > y2'}"
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        return f"bbox {written(numbers)} leaves {picture} by {beyond:g} px"
    return None


def written(numbers: Numbers) -> str:
    """Return coordinates as they stand in a file."""
    return "[" + ", ".join(f"{number:g}" for number in numbers) + "]"


def _tokens(material: Material, facts: ImageFacts, numbers: Numbers) -> float | None:
    """Return a box's area in image tokens, or None for a point or where the model is not known."""
    if material.model is None or material.model.spec is None or len(numbers) == 2:
        return None
    try:
        return material.model.tokens_of(numbers, facts.width, facts.height)
    except ImageError:
        return None  # told as a picture that the model does not take

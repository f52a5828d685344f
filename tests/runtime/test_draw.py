"""Boxes on pictures: where they are drawn, and that the picture is otherwise kept."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import draw_detections

GRAY = Image.new("RGB", (200, 150), (90, 90, 90))


def changed(detections: list[Detection], **options: int) -> np.ndarray:
    """Return which pixels [H, W] drawing has changed."""
    drawn = draw_detections(GRAY, detections, **options)  # type: ignore[arg-type]
    return np.asarray((np.asarray(drawn) != np.asarray(GRAY)).any(axis=2))


def test_the_outline_lies_on_the_box() -> None:
    mask = changed([Detection((50, 60, 120, 100), "")], line_width=2)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 60, 120, 100)
    assert not mask[65:95, 55:115].any()


def test_nothing_to_draw_changes_nothing() -> None:
    assert not changed([]).any()
    assert not changed([Detection((50, 60, 40, 100), "inverted")]).any()


def test_the_original_is_kept() -> None:
    before = GRAY.tobytes()
    draw_detections(GRAY, [Detection((1, 1, 50, 50), "cup")])
    assert GRAY.tobytes() == before


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (150, 120, 260, 300), (-50, -50, 300, 300), (190, 0, 200, 9)])
def test_labels_stay_in_the_picture(box: tuple[float, float, float, float]) -> None:
    bare = changed([Detection(box, "")])
    with_label = changed([Detection(box, "the cup", 0.87)])
    assert (with_label & ~bare).sum() > 100


def test_labels_get_colours_of_their_own() -> None:
    boxes = [Detection((10, 40, 60, 90), "a"), Detection((100, 40, 150, 90), "b"), Detection((10, 100, 60, 140), "a")]
    drawn = np.asarray(draw_detections(GRAY, boxes, line_width=3))
    first, second, third = drawn[70, 10], drawn[70, 100], drawn[120, 10]
    assert (first == third).all() and (first != second).any()


def test_each_box_may_be_given_its_colour() -> None:
    image = Image.new("RGB", (200, 100), "white")
    boxes = [Detection((10, 40, 50, 80), "cup"), Detection((100, 40, 150, 80), "cup")]
    drawn = draw_detections(image, boxes, color=["red", "blue"])
    assert drawn.getpixel((10, 60)) == (255, 0, 0)
    assert drawn.getpixel((100, 60)) == (0, 0, 255)

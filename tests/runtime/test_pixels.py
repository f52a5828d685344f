"""Areas of pictures as people write them, and boxes that no bound of the area moves."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgetune_runtime.codec.grounding import encode, parse
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.pixels import area_text, parse_area


@pytest.mark.parametrize(
    ("text", "area"),
    [("1", 1), ("262144", 262_144), ("200k", 200_000), ("1M", 1_000_000), ("1.5M", 1_500_000), ("0.5k", 500)],
)
def test_areas_are_read(text: str, area: int) -> None:
    assert parse_area(text) == area
    assert parse_area(area_text(area)) == area


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "k", "200K", "200m", "1e6", "0.5", "1.0005k", "200 k", "²", "9" * 16, "inf", "200kk", "640x480"],
)
def test_everything_else_is_one_error(text: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(repr(text))} is not an area in pixels, such as 400000, 400k or"):
        parse_area(text)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("area", ["100k", "200k", "400k", "800k", "1M"])
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (640, 480), (333, 2500)])
def test_a_box_comes_back_within_half_a_step_at_every_bound(name: str, area: str, width: int, height: int) -> None:
    """No model: what is written for the picture of a bound is read as the same place of the original picture."""
    family, bound = FAMILIES[name], parse_area(area)
    patch = 16 if name == "qwen3_vl" else 14
    whole = ImageSpec(patch, 2, 2, 3136, 12_845_056, (0.5,) * 3, (0.5,) * 3, 1 / 255, 3)
    geometry = whole.bounded(max_pixels=bound).plan(width, height).geometry
    assert geometry.resized_width * geometry.resized_height <= bound
    steps = np.array([1000, 1000])
    if name == "qwen2_5_vl":  # whole pixels of the resized picture; the others write thousandths of its sides
        steps = np.array([geometry.resized_width, geometry.resized_height])
    half = np.tile([width, height] / steps / 2, 2)

    corners = np.sort(np.random.default_rng(0).uniform(size=(50, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(50, 4)  # x1, y1, x2, y2
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 2 * half[:2]).all(1)]
    answer = parse(encode(boxes, ["it"] * len(boxes), geometry, family.box_format), geometry, family.box_format)
    read = np.array([found.box for found in answer.detections])
    assert len(read) == len(boxes) > 30
    assert (np.abs(read - boxes) <= half * (1 + 1e-9)).all()

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.live.flow import Flow, small
from edgetune_runtime.live.frames import Gray, StillPicture
from live import moving, shift

BOX = (200.0, 90.0, 300.0, 170.0)


@pytest.fixture(scope="module")
def texture() -> Image.Image:
    """Cloudy noise, in which every place looks different."""
    noise = np.random.default_rng(3).integers(0, 255, (60, 80), np.uint8)
    return Image.fromarray(noise).resize((480, 360), Image.Resampling.BICUBIC).convert("RGB")


def gray(picture: Image.Image) -> Gray:
    return small(StillPicture(picture))


def test_a_box_follows_what_is_in_it(texture: Image.Image) -> None:
    first, *others = moving(texture, 40)
    flow = Flow([BOX, (250.0, 150.0, 330.0, 210.0)], texture.size, gray(first))
    for number, picture in enumerate(others, start=1):
        flow.step(gray(picture))
        x, y = shift(number)
        found = flow.boxes[0]
        assert found is not None
        assert found == pytest.approx([BOX[0] + x, BOX[1] + y, BOX[2] + x, BOX[3] + y], abs=2.0)


def test_a_box_grows_with_what_is_in_it(texture: Image.Image) -> None:
    width, height = texture.size
    flow = Flow([BOX], texture.size, gray(texture))
    for percent in range(102, 131, 2):
        scale = percent / 100
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, scale)
        grown = Image.fromarray(cv2.warpAffine(np.asarray(texture), matrix, (width, height)))
        flow.step(gray(grown))
    x1, y1, x2, y2 = BOX
    middle = np.array([width / 2, height / 2] * 2)
    expected = tuple((np.array([x1, y1, x2, y2]) - middle) * 1.3 + middle)
    assert flow.boxes[0] is not None and sample_iou([flow.boxes[0]], [expected]) > 0.9


def test_a_box_is_lost_with_what_was_in_it(texture: Image.Image) -> None:
    flow = Flow([BOX], texture.size, gray(texture))
    flow.step(gray(Image.new("RGB", texture.size, "gray")))
    assert flow.boxes == [None]
    flow.step(gray(texture))
    assert flow.boxes == [None]


def test_a_box_that_leaves_the_picture_is_lost(texture: Image.Image) -> None:
    flow = Flow([BOX], texture.size, gray(texture))
    for number in range(1, 60):
        picture = Image.new("RGB", texture.size)
        picture.paste(texture, (-5 * number, 0))
        flow.step(gray(picture))
    assert flow.boxes == [None]


def test_another_size_loses_all_boxes(texture: Image.Image) -> None:
    flow = Flow([BOX], texture.size, gray(texture))
    flow.step(gray(texture.resize((360, 480))))
    assert flow.boxes == [None]


def test_no_box_costs_nothing_and_gives_nothing(texture: Image.Image) -> None:
    flow = Flow([], texture.size, gray(texture))
    flow.step(gray(texture))
    assert flow.boxes == []

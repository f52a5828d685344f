"""A whole file in another frame is recognised, by whatever convention it was written; one in ours is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetune_data.check import check, gather
from edgetune_data.check.frame import detect
from edgetune_data.model_view import ModelView
from edgetune_runtime.images.smart import smart_resize

Floats = npt.NDArray[np.float64]


def drawn(seed: int, count: int, low: int, high: int) -> tuple[Floats, Floats]:
    """Boxes [N, 4] anywhere in pictures whose sides [N, 2] are between two numbers of pixels."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(low, high, (count, 2)).astype(np.float64)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1)  # [N, low/high, x/y]
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 0.02).clip(max=1)
    corners[:, 0] = np.minimum(corners[:, 0], corners[:, 1] - 0.02)
    return (corners * sizes[:, None]).reshape(count, 4).round(2), sizes


def xywh(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def cxcywh(boxes: Floats) -> Floats:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def share(boxes: Floats, sizes: Floats, unit: float) -> Floats:
    return boxes / np.tile(sizes, 2) * unit


WRITTEN: dict[tuple[str, str], Callable[[Floats, Floats], Floats]] = {
    ("norm1", "xyxy"): lambda boxes, sizes: share(boxes, sizes, 1).round(4),
    ("norm100", "xyxy"): lambda boxes, sizes: share(boxes, sizes, 100).round(2),
    ("norm1000", "xyxy"): lambda boxes, sizes: share(boxes, sizes, 1000).round(),
    ("pixel", "xywh"): lambda boxes, sizes: xywh(boxes),
    ("pixel", "cxcywh"): lambda boxes, sizes: cxcywh(boxes),
    ("pixel", "yxyx"): lambda boxes, sizes: boxes[:, [1, 0, 3, 2]],
    ("norm1", "xywh"): lambda boxes, sizes: xywh(share(boxes, sizes, 1)).round(4),
    ("norm1", "cxcywh"): lambda boxes, sizes: cxcywh(share(boxes, sizes, 1)).round(4),
    ("norm1000", "xywh"): lambda boxes, sizes: xywh(share(boxes, sizes, 1000)).round(),
}


@pytest.mark.parametrize("size", [(200, 500), (500, 1500), (3000, 4500)], ids=["small", "medium", "large"])
@pytest.mark.parametrize("frame", WRITTEN, ids="-".join)
def test_a_file_in_another_frame_is_recognised(frame: tuple[str, str], size: tuple[int, int]) -> None:
    boxes, sizes = drawn(1, 60, *size)
    found = detect(WRITTEN[frame](boxes, sizes), sizes, None)
    assert found is not None
    assert (found[0].unit, found[0].order) == frame, found


@pytest.mark.parametrize("size", [(200, 500), (500, 1500), (3000, 4500)], ids=["small", "medium", "large"])
def test_boxes_in_pixels_of_the_resized_picture_are_recognised(size: tuple[int, int]) -> None:
    boxes, sizes = drawn(2, 60, *size)
    seen = [
        smart_resize(int(height), int(width), factor=32, min_pixels=600 * 600, max_pixels=900 * 900)[::-1]
        for width, height in sizes
    ]
    resized = np.array(seen, dtype=np.float64)
    if size == (500, 1500):
        return  # some pictures grow and some shrink, by little: there is nothing to tell
    found = detect((boxes / np.tile(sizes, 2) * np.tile(resized, 2)).round(), sizes, resized)
    assert found is not None and (found[0].unit, found[0].order) == ("resized", "xyxy")


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(10, 80),
    size=st.sampled_from([(40, 120), (200, 500), (800, 1200), (900, 2500), (3000, 4500)]),
    resized=st.booleans(),
)
def test_pixels_are_left_alone(seed: int, count: int, size: tuple[int, int], resized: bool) -> None:
    boxes, sizes = drawn(seed, count, *size)
    seen = np.maximum((sizes * 0.6 / 32).round() * 32, 32) if resized else None
    assert detect(boxes, sizes, seen) is None


def test_one_camera_with_its_objects_in_one_half_is_left_alone() -> None:
    boxes, _ = drawn(3, 80, 700, 701)
    sizes = np.tile([1920.0, 1080.0], (80, 1))
    assert detect(boxes, sizes, None) is None


def test_a_few_bad_boxes_are_no_other_frame() -> None:
    boxes, sizes = drawn(4, 60, 300, 600)
    boxes[:3] = boxes[:3, [2, 1, 0, 3]]
    assert detect(boxes, sizes, None) is None


def test_the_evidence_is_told_and_too_few_boxes_say_nothing(tmp_path: Path) -> None:
    boxes, _ = drawn(5, 12, 100, 101)
    lines = []
    for index, box in enumerate(boxes):
        Image.effect_noise((320, 240), 80).save(tmp_path / f"{index}.png")
        record = {"image": f"{index}.png", "text": f"mug number {index}", "bbox": (box * 10).tolist()}
        lines.append(json.dumps(record))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    [finding] = check(gather(path)).of("frame")
    assert finding.source == str(path)
    assert "0-1000 of width and height" in finding.message and f"{path}:1 has [" in finding.message
    path.write_text("\n".join(lines[:9]))
    assert check(gather(path)).of("frame") == []


def test_the_model_tells_its_own_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    seeing = ModelView.of_family("qwen3_vl", 49152, 65536)
    seen = seeing.sees(1200, 900)
    for index in range(40):
        Image.effect_noise((1200, 900), 80).save(tmp_path / f"{index}.jpg")
        x, y = rng.uniform(0, seen.resized_width - 40), rng.uniform(0, seen.resized_height - 40)
        box = [round(float(value), 1) for value in (x, y, x + 40, y + 40)]
        lines.append(json.dumps({"image": f"{index}.jpg", "text": f"mug number {index}", "bbox": box}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    assert check(gather(path)).of("frame") == []
    [finding] = check(gather(path, model=seeing)).of("frame")
    assert "pixels of the picture that the model sees" in finding.message

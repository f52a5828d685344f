"""What answers earn: worked by hand, and the IoU by counting squares."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.families import FAMILIES, get_family
from edgetune_runtime.records import Record
from edgetune_train.rewards import REWARDS

FAMILY = get_family("qwen3_vl")
GEOMETRY = Geometry(200, 100, 256, 128)  # 1000 steps of the model frame are 200 x 100 pixels


def record(*boxes: list[float]) -> Record:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Record(Path("a.png"), "cup", array, ["cup"] * len(array), [], None, "a:1")


HERE, GONE = record([20, 10, 120, 60]), record()
QUESTION = Record(Path("a.png"), "How many?", None, [], ["two", "a few", "two", "three", "two"], None, "a:2")
RIGHT = '[{"bbox_2d": [100, 100, 600, 600], "label": "cup"}]'
HALF = '[{"bbox_2d": [100, 100, 350, 600], "label": "cup"}]'


@pytest.mark.parametrize(
    ("text", "asked", "earned"),
    [
        (RIGHT, HERE, {"format": 1, "iou": 1, "refusal": 1, "answer": None}),
        (HALF, HERE, {"format": 1, "iou": 0.5, "refusal": 1, "answer": None}),
        ("It is here: " + HALF, HERE, {"format": 1, "iou": 0.5, "refusal": 1, "answer": None}),
        ("[]", HERE, {"format": 1, "iou": 0, "refusal": 0, "answer": None}),
        ("[]", GONE, {"format": 1, "iou": None, "refusal": 1, "answer": None}),
        (RIGHT, GONE, {"format": 1, "iou": None, "refusal": 0, "answer": None}),
        (RIGHT[:-20], HERE, {"format": 0, "iou": 0, "refusal": 1, "answer": None}),  # breaks off
        ("no idea", HERE, {"format": 0, "iou": 0, "refusal": 1, "answer": None}),
        ("no idea", GONE, {"format": 0, "iou": None, "refusal": 0, "answer": None}),
        (RIGHT.replace("600, 600", "1600, 600"), HERE, {"format": 0, "iou": 1 / 3, "refusal": 1, "answer": None}),
        (RIGHT.replace("600, 600", "50, 600"), HERE, {"format": 0, "iou": 0, "refusal": 1, "answer": None}),
        # VQA accuracy of "two", said by three of five: leaving out one of them leaves two, 2/3; else three, 1.
        ("two", QUESTION, {"format": None, "iou": None, "refusal": None, "answer": (3 * 2 / 3 + 2 * 1) / 5}),
        ("four", QUESTION, {"format": None, "iou": None, "refusal": None, "answer": 0}),
    ],
)
def test_rewards_by_hand(text: str, asked: Record, earned: dict[str, float | None]) -> None:
    found = {name: reward(text, asked, GEOMETRY, FAMILY) for name, reward in REWARDS.items()}
    assert found == pytest.approx(earned)


def test_many_boxes_do_not_help() -> None:
    many = f"[{HALF[1:-1]}, {RIGHT[1:-1]}]"
    assert REWARDS["iou"](many, HERE, GEOMETRY, FAMILY) == pytest.approx(0.5)
    two = record([20, 10, 120, 60], [150, 10, 190, 60])
    assert REWARDS["iou"](RIGHT, two, GEOMETRY, FAMILY) == pytest.approx(0.5)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x1, x2 = sorted(draw(st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True)))
    return [10.0 * x1, 10.0 * y1, 10.0 * x2, 10.0 * y2]


@given(
    said=boxes(),
    right=boxes(),
    name=st.sampled_from([n for n, f in FAMILIES.items() if f.box_format.frame == "norm1000"]),
)
def test_the_iou_counts_squares(said: list[float], right: list[float], name: str) -> None:
    family = get_family(name)
    text = grounding.encode([said], ["cup"], GEOMETRY, family.box_format)
    first, second = (
        set(product(range(int(x1), int(x2), 10), range(int(y1), int(y2), 10))) for x1, y1, x2, y2 in (said, right)
    )
    expected = len(first & second) / len(first | second)
    assert REWARDS["iou"](text, record(right), GEOMETRY, family) == pytest.approx(expected, abs=1e-6)


@given(text=st.text(max_size=60))
def test_any_text_earns_between_0_and_1(text: str) -> None:
    for asked in (HERE, GONE, QUESTION):
        for reward in REWARDS.values():
            earned = reward(text, asked, GEOMETRY, FAMILY)
            assert earned is None or 0 <= earned <= 1

"""Boxes, points and names as they stand inside a sentence, against what the families' papers write."""

from __future__ import annotations

import pytest

from edgetune_runtime.codec.grounding import Geometry, encode_name, encode_place
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES


@pytest.mark.parametrize(
    ("family", "box", "point", "name"),
    [
        ("qwen3_vl", "[100, 200, 600, 600]", "[500, 400]", "cup"),
        ("qwen2_5_vl", "[28, 42, 168, 126]", "[140, 84]", "cup"),
        (
            "qwen2_vl",
            "<|box_start|>(100,200),(600,600)<|box_end|>",
            "<|box_start|>(500,400)<|box_end|>",
            "<|object_ref_start|>cup<|object_ref_end|>",
        ),
        ("qwen_vl", "<box>(100,200),(600,600)</box>", "<box>(500,400)</box>", "<ref>cup</ref>"),
        ("internvl", "<box>[[100, 200, 600, 600]]</box>", "<box>[[500, 400]]</box>", "<ref>cup</ref>"),
        # The square of 200 pixels around a 200x150 image adds 25 above it.
        ("llava", "[0.10, 0.28, 0.60, 0.57]", "[0.50, 0.42]", "cup"),
    ],
)
def test_places_and_names_inside_a_sentence(family: str, box: str, point: str, name: str) -> None:
    size = Geometry(200, 150, 280, 210)
    facts = FAMILIES[family]
    assert encode_place((20, 30, 120, 90), size, facts.box_format) == box
    assert encode_place((100, 60), size, facts.box_format) == point
    assert encode_name("cup", facts.box_format) == name


def test_a_point_outside_the_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"point \[201, 60\] is outside the 200x150 image"):
        encode_place((201, 60), Geometry(200, 150, 280, 210), FAMILIES["qwen3_vl"].box_format)

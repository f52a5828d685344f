"""Every preprocessing rule survives being written into a bundle, and what no rule can be is refused by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.images.anyres import AnyResolution
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.config import Normalise
from edgetune_runtime.images.naflex import NaFlex
from edgetune_runtime.images.rules import rule_from_dict
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.images.split import SplitTiles
from edgetune_runtime.images.square import PaddedSquare
from edgetune_runtime.images.tiles import DynamicTiles

NORMALISE = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255)
BICUBIC = Image.Resampling.BICUBIC
RULES: dict[str, Preprocessing] = {
    "smart": ImageSpec(14, 2, 2, 784, 78400, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255, 3),
    "tiles": DynamicTiles(28, 1, 6, 4, 14, BICUBIC, NORMALISE),
    "split": SplitTiles(32, 64, 4, 16, True, Image.Resampling.LANCZOS, NORMALISE),
    "pad_square": PaddedSquare(28, 14, BICUBIC, NORMALISE),
    "anyres": AnyResolution(28, 14, ((28, 56), (56, 28), (56, 56)), 9, BICUBIC, NORMALISE),
    "naflex": NaFlex(4, 2, 4, 16, 2, 4, 32, 1.5, True, True, Image.Resampling.BILINEAR, NORMALISE),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_survives_json(name: str) -> None:
    rule = RULES[name]
    told = json.loads(json.dumps(rule.to_dict()))
    assert told["rule"] == name
    again = rule_from_dict(told)
    assert again == rule and again.to_dict() == rule.to_dict()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for mine, theirs in zip(rule.arrays(image).values(), again.arrays(image).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.plan(120, 90) == rule.plan(120, 90)


def test_where_a_checkpoint_lay_is_no_part_of_its_rule() -> None:
    rule = PaddedSquare(28, 14, BICUBIC, NORMALISE, Path("somewhere/preprocessor_config.json"))
    assert rule_from_dict(rule.to_dict()) == RULES["pad_square"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "smart",
            {"rule": "clever"},
            "rule must be one of smart, tiles, split, pad_square, anyres, naflex, got 'clever'",
        ),
        ("smart", {"rule": ["smart"]}, "rule must be one of"),
        ("smart", {"colour": 1}, "colour is unknown"),
        ("smart", {"patch_size": None}, "patch_size is missing"),
        ("smart", {"patch_size": True}, "patch_size must be a positive whole number"),
        ("smart", {"merge_size": 10**400}, "merge_size must be a positive whole number"),
        ("smart", {"min_pixels": 10**6}, "min_pixels 1000000 is over max_pixels 78400"),
        ("smart", {"resample": 99}, "resample 99 is no filter of Pillow"),
        ("smart", {"mean": [float("nan")] * 3}, "mean must be three numbers from -256 to 256"),
        ("smart", {"mean": 0.5}, "mean must be a list"),
        ("smart", {"std": [1e-320] * 3}, "std must be three numbers from 0.001 to 256"),
        ("smart", {"std": [0.5, 0.5]}, "std must be three numbers"),
        ("smart", {"rescale": 0}, "rescale must be a number from 0.001 to 1"),
        ("smart", {"rescale": float("inf")}, "rescale must be a number"),
        ("tiles", {"max_tiles": 10**6}, "max_tiles must be 1 to 256"),
        ("tiles", {"normalise": {"mean": [0, 0, 0]}}, "rescale is missing"),
        ("split", {"split": 1}, "split must be true or false"),
        ("pad_square", {"resample": "bicubic"}, "resample 'bicubic' is no filter"),
        ("anyres", {"canvases": [[28, 30]]}, "canvases must be .* in whole tiles of 28"),
        ("anyres", {"canvases": []}, "canvases must hold at least one size"),
        ("naflex", {"downsample_factor": 0}, "downsample_factor must be a positive whole number, got 0"),
        ("naflex", {"max_image_tokens": 10**400}, "max_image_tokens must be a positive whole number"),
        ("naflex", {"min_image_tokens": 17}, "min_image_tokens 17 is over max_image_tokens 16"),
        ("naflex", {"min_tiles": 5}, "min_tiles and max_tiles must be in order and 2 to 256, or both 1, got 5 and 4"),
        ("naflex", {"min_tiles": 1}, "or both 1, got 1 and 4"),
        ("naflex", {"max_tiles": 257}, "or both 1, got 2 and 257"),
        ("naflex", {"tile_size": 36}, "tile_size 36 is no multiple of the 8 pixels of an image token"),
        (
            "naflex",
            {"max_pixels_tolerance": float("nan")},
            "max_pixels_tolerance must be a number over 0 to .* got nan",
        ),
        ("naflex", {"max_pixels_tolerance": 10**400}, "max_pixels_tolerance must be a number"),
        ("naflex", {"max_pixels_tolerance": "2"}, "max_pixels_tolerance must be a number over 0 to .* got '2'"),
        ("naflex", {"split": 1}, "split must be true or false, got 1"),
        ("naflex", {"use_thumbnail": "no"}, "use_thumbnail must be true or false, got 'no'"),
    ],
)
def test_what_is_no_rule_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    told = {key: value for key, value in (RULES[name].to_dict() | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        rule_from_dict(told)

"""Reading a checkpoint's preprocessing, in every spelling that published checkpoints use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.images.smart import ImageSpec, preprocess

BASE: dict[str, Any] = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}
OLD = {"min_pixels": 50176, "max_pixels": 100352}
NEW = {"size": {"shortest_edge": 50176, "longest_edge": 100352}}


def write(folder: Path, config: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "limits",
    [
        OLD,
        NEW,
        {**OLD, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"min_pixels": 50176, "size": {"shortest_edge": 1, "longest_edge": 100352}},
    ],
)
def test_both_spellings_of_the_limits_mean_what_transformers_means(tmp_path: Path, limits: dict[str, Any]) -> None:
    folder = write(tmp_path, {**BASE, **limits})
    spec = ImageSpec.from_checkpoint(folder)
    assert (spec.min_pixels, spec.max_pixels) == (50176, 100352)
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(folder)
    for width, height in ((50, 60), (1000, 700)):  # one below the minimum, one above the maximum
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
        expected = processor(images=image, return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(preprocess(image, spec).pixel_values, expected)


def test_limits_may_sit_in_size_under_their_own_names(tmp_path: Path) -> None:
    # As transformers 4 saved them for a while.
    spec = ImageSpec.from_checkpoint(write(tmp_path, {**BASE, "size": OLD}))
    assert (spec.min_pixels, spec.max_pixels) == (50176, 100352)


def test_nested_config_of_transformers_5_wins_as_it_does_there(tmp_path: Path) -> None:
    write(tmp_path, {**BASE, "min_pixels": 1, "max_pixels": 2})
    write(
        tmp_path,
        {"processor_class": "Qwen2_5_VLProcessor", "image_processor": {**BASE, **OLD}},
        "processor_config.json",
    )
    assert ImageSpec.from_checkpoint(tmp_path).max_pixels == 100352
    reference = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(tmp_path)
    assert reference.size["longest_edge"] == 100352


def test_processor_config_without_image_processor_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, {**BASE, **OLD})
    write(tmp_path, {"processor_class": "Qwen2_5_VLProcessor"}, "processor_config.json")
    assert ImageSpec.from_checkpoint(tmp_path).max_pixels == 100352


def test_missing_preprocessor_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json") as caught:
        ImageSpec.from_checkpoint(tmp_path)
    assert caught.value.exit_code == 2 and caught.value.hint


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        ImageSpec.from_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": None}, "missing patch_size"),
        ({"max_pixels": None}, "missing max_pixels"),
        ({"image_mean": None, "image_std": None}, "missing image_mean, image_std"),
        ({"image_mean": [0.5]}, r"preprocessor_config\.json: mean must be three numbers"),
        ({"min_pixels": 200, "max_pixels": 100}, "min_pixels 200 is over max_pixels 100"),
        ({"min_pixels": "many"}, r"preprocessor_config\.json: min_pixels must be a positive whole number, got 'many'"),
        ({"image_std": ["a", "b", "c"]}, "std must be three numbers"),
        ({"image_mean": 0.5}, "mean must be three numbers"),
        ({"size": 448}, "'size' must be an object"),
        ({"do_resize": False}, "do_resize is False"),
        ({"image_processor_type": "CLIPImageProcessor"}, "'CLIPImageProcessor' is not"),
    ],
)
def test_unusable_configs_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageSpec.from_checkpoint(write(tmp_path, {**BASE, **OLD, **change}))


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: not valid JSON"):
        ImageSpec.from_checkpoint(tmp_path)

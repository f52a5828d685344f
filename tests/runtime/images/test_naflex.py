"""LFM2-VL's rule by itself: sizes and tokens worked out by hand, the order of patches, and checkpoints it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.images.config import Normalise
from edgetune_runtime.images.naflex import NaFlex
from edgetune_runtime.images.rules import open_preprocessing
from lfm2_settings import PUBLISHED

HALF = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255)
LARGE = NaFlex(16, 2, 64, 256, 2, 10, 512, 2.0, True, True, Image.Resampling.BILINEAR, HALF)  # LFM2-VL-1.6B
TINY = NaFlex(2, 2, 1, 8, 2, 4, 8, 0.5, True, True, Image.Resampling.BILINEAR, HALF)

MODEL = {"downsample_factor": 2, "vision_config": {"patch_size": 16}}


def checkpoint(folder: Path, change: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> Path:
    config = {key: value for key, value in {**PUBLISHED, **(change or {})}.items() if value is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(MODEL if model is None else model))
    return folder


@pytest.mark.parametrize(
    ("size", "resized", "tokens"),
    [
        ((512, 512), (512, 512), 256),  # as many as there may be
        ((100, 100), (256, 256), 64),  # as few as there may be
        ((300, 310), (288, 320), 90),  # each side to the nearest
        ((720, 720), (512, 512), 256),  # 22.5 tokens a side become 22, and 22 * 22 are not over twice 256
    ],
)
def test_a_picture_that_is_not_cut(size: tuple[int, int], resized: tuple[int, int], tokens: int) -> None:
    plan = LARGE.plan(*size)
    assert (plan.geometry.width, plan.geometry.height) == size
    assert (plan.geometry.resized_width, plan.geometry.resized_height) == resized
    assert plan.pieces == ("<|image_start|>", tokens, "<|image_end|>")
    assert plan.image_tokens == tokens


def test_a_picture_that_is_cut_into_tiles() -> None:
    plan = LARGE.plan(1000, 800)  # 1.25 is as near to 2:2 as to 3:2, and the picture has half of the latter's pixels
    assert (plan.geometry.resized_width, plan.geometry.resized_height) == (3 * 512, 2 * 512)
    assert plan.pieces == (
        *("<|image_start|><|img_row_1_col_1|>", 256, "<|img_row_1_col_2|>", 256, "<|img_row_1_col_3|>", 256),
        *("<|img_row_2_col_1|>", 256, "<|img_row_2_col_2|>", 256, "<|img_row_2_col_3|>", 256),
        *("<|img_thumbnail|>", 17 * 14, "<|image_end|>"),
    )
    assert replace(LARGE, use_thumbnail=False).plan(1000, 800).pieces == (*plan.pieces[:12], "<|image_end|>")
    assert replace(LARGE, split=False).plan(1000, 800).pieces == ("<|image_start|>", 17 * 14, "<|image_end|>")
    assert LARGE.plan(724, 724).pieces[0] == "<|image_start|><|img_row_1_col_1|>"  # 23 * 23 tokens, over twice 256


def test_the_most_tokens_of_a_picture() -> None:
    assert LARGE.most_tokens == 11 * 256 and LARGE.token_pixels == 32 and LARGE.max_patches == 1024
    assert replace(LARGE, use_thumbnail=False).most_tokens == 10 * 256
    assert replace(LARGE, split=False).most_tokens == replace(LARGE, min_tiles=1, max_tiles=1).most_tokens == 256
    sizes = [(width, height) for width in range(40, 4000, 97) for height in range(40, 4000, 89)]
    assert 10 * 256 < max(LARGE.plan(*size).image_tokens for size in sizes) <= LARGE.most_tokens


def test_tiles_and_thumbnail_are_where_they_belong() -> None:
    """Tiles of one colour each, so that no resize changes them: 16x8 pixels are two tiles, and 8 tokens whole."""
    colours = [[255, 0, 0], [0, 0, 255]]
    image = Image.fromarray(np.repeat(np.repeat(np.array([colours], np.uint8), 8, axis=0), 8, axis=1))
    arrays = TINY.arrays(image)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "pixel_values": ("float32", (3, 32, 12)),
        "pixel_attention_mask": ("int32", (3, 32)),
        "spatial_shapes": ("int64", (3, 2)),
    }
    assert arrays["spatial_shapes"].tolist() == [[4, 4], [4, 4], [4, 8]]
    assert arrays["pixel_attention_mask"].sum(axis=1).tolist() == [16, 16, 32]
    red, blue = ([2 * value / 255 - 1 for value in colour] * 4 for colour in colours)
    first, second, whole = arrays["pixel_values"]
    assert (first[:16] == red).all() and (second[:16] == blue).all()
    assert not first[16:].any() and not second[16:].any()
    assert (whole.reshape(4, 8, 12)[:, :4] == red).all() and (whole.reshape(4, 8, 12)[:, 4:] == blue).all()


def test_the_encoder_takes_patches_in_the_order_of_merging_and_no_padding() -> None:
    numbers = np.arange(4 * 8, dtype=np.uint8).reshape(4, 8)  # of each patch, row by row
    picture = Image.fromarray(np.repeat(np.repeat(numbers, 2, axis=0), 2, axis=1)[..., None].repeat(3, axis=2))
    rule = replace(TINY, split=False)
    small = Image.new("RGB", (8, 4), (255, 0, 0))
    parts = [rule.arrays(picture), rule.arrays(small)]
    taken = rule.encoder_arrays(parts)
    assert taken["image_grid_thw"].tolist() == [[1, 4, 8], [1, 2, 4]]
    assert taken["image_grid_thw"].dtype == np.int64 and taken["pixel_values"].dtype == np.float32
    assert taken["pixel_values"].shape == (4 * 8 + 2 * 4, rule.patch_values) == (40, 12)
    order = np.rint((taken["pixel_values"][:32, 0] + 1) * 127.5).astype(int).tolist()
    assert order[:8] == [0, 1, 8, 9, 2, 3, 10, 11] and order[16:20] == [16, 17, 24, 25]
    assert sorted(order) == list(range(32))
    assert taken["pixel_values"][32:].tolist() == [[1, -1, -1] * 4] * 8  # the channels of a pixel together

    joined = rule.join(parts)
    assert joined["spatial_shapes"].tolist() == [[4, 8], [2, 4]]
    assert joined["pixel_attention_mask"].sum(axis=1).tolist() == [32, 8]
    assert np.array_equal(joined["pixel_values"][1:], parts[1]["pixel_values"])


@pytest.mark.parametrize("size", [(1, 10_000), (100_000, 1), (3, 65_536)])
def test_pictures_too_thin_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        ImageError, match=rf"a {size[0]}x{size[1]} image would be resized to .* more than the 1024"
    ) as e:
        LARGE.plan(*size)
    assert e.value.hint == "crop or pad the image"


def test_what_is_no_picture_is_refused() -> None:
    for size in ((0, 10), (10, 0)):
        for rule in (LARGE, replace(LARGE, split=False)):
            with pytest.raises(ImageError, match="the image is empty"):
                rule.plan(*size)
        with pytest.raises(ImageError, match="the image is empty"):
            LARGE.whole(*size)
    with pytest.raises(ImageError, match="expected an RGB image, got mode 'L'"):
        LARGE.arrays(Image.new("L", (64, 64)))


@pytest.mark.parametrize("kind", ["Lfm2VlImageProcessorFast", "Lfm2VlImageProcessor"])
def test_a_checkpoint_is_read(tmp_path: Path, kind: str) -> None:
    expected = replace(LARGE, normalise=Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.00392156862745098))
    assert NaFlex.from_checkpoint(checkpoint(tmp_path, {"image_processor_type": kind})) == expected
    nested = {"processor_class": "Lfm2VlProcessor", "image_processor": {**PUBLISHED, "use_thumbnail": False}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))

    class Lfm2Vl:
        resize, title = "naflex", "LFM2-VL"

    assert open_preprocessing(tmp_path, Lfm2Vl()) == replace(expected, use_thumbnail=False)


@pytest.mark.parametrize(
    "key",
    [
        *("downsample_factor", "encoder_patch_size", "min_image_tokens", "max_image_tokens", "min_tiles", "max_tiles"),
        *("tile_size", "max_pixels_tolerance", "do_image_splitting", "use_thumbnail", "resample"),
        *("image_mean", "image_std"),
    ],
)
def test_no_setting_is_guessed(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: missing {key}"):
        NaFlex.from_checkpoint(checkpoint(tmp_path, {key: None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "'Siglip2ImageProcessor' is not Lfm2VlImageProcessor"),
        ({"do_pad": False}, "do_pad is False; only true is supported"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"encoder_patch_size": 14}, "encoder_patch_size is 14, but vision_config.patch_size is 16 in .*config.json"),
        ({"downsample_factor": 4}, "downsample_factor is 4, but downsample_factor is 2 in"),
        ({"tile_size": True}, "tile_size must be a positive whole number, got True"),
        ({"max_tiles": 1.5}, "max_tiles must be a positive whole number, got 1.5"),
        ({"tile_size": 500}, r"preprocessor_config\.json: tile_size 500 is no multiple of the 32 pixels"),
        ({"min_tiles": 11}, "min_tiles and max_tiles must be in order .* got 11 and 10"),
        ({"min_image_tokens": 300}, "min_image_tokens 300 is over max_image_tokens 256"),
        ({"max_pixels_tolerance": -1}, "max_pixels_tolerance must be a number over 0 to 1000000, got -1"),
        ({"max_pixels_tolerance": [2.0]}, "max_pixels_tolerance must be a number"),
        ({"do_image_splitting": "yes"}, "split must be true or false, got 'yes'"),
        ({"use_thumbnail": 0}, "use_thumbnail must be true or false, got 0"),
        ({"resample": 9}, "resample 9 is no filter of Pillow"),
        ({"rescale_factor": 0}, "rescale must be a number"),
    ],
)
def test_unusable_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        NaFlex.from_checkpoint(checkpoint(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"downsample_factor": 2}, r"config\.json: missing vision_config\.patch_size"),
        ({"vision_config": {"patch_size": 16}}, r"config\.json: missing downsample_factor"),
        ({"downsample_factor": "two", "vision_config": {"patch_size": 16}}, "downsample_factor is 'two' in"),
    ],
)
def test_so_are_unusable_models(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NaFlex.from_checkpoint(checkpoint(tmp_path, model=model))


def test_a_processor_without_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"use_image_special_tokens": False}))
    with pytest.raises(InputError, match=r"processor_config\.json: use_image_special_tokens must be true"):
        NaFlex.from_checkpoint(checkpoint(tmp_path))

"""The exported encoders of towers that see tiles, against what transformers makes of the same pictures."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_export.check.reference import flat
from edgetune_export.graph import save_model
from edgetune_export.vision.attention import FUSED, ONE_FRAME, STANDARD, Operators
from edgetune_export.vision.towers import tower_of
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.errors import ImageError, InputError
from families.checkpoints import BUILDERS
from families.conftest import Build, picture
from reference import load_model

TILES = [name for name in BUILDERS if not name.startswith("qwen")]
SIZES = [(56, 56), (9, 140), (300, 40), (133, 97), (640, 480), (61, 700), (1, 1)]
WAYS = {"fused": FUSED, "standard": STANDARD, "TensorRT": ONE_FRAME}
# LFM2-VL's decoder is not written for TensorRT, and its tower of patches would see one tile there.
WRITTEN = [(name, way) for name in TILES for way in WAYS if (name, way) != ("lfm2_vl", "TensorRT")]


def written(folder: Path, path: Path, operators: Operators, dtype: ir.DataType) -> tuple[HubCheckpoint, Any, Any]:
    """A checkpoint, its model and a session of its written encoder."""
    checkpoint, model = HubCheckpoint.open(folder), load_model(folder)
    source = VisionSource(model, checkpoint.modules)
    save_model(tower_of(checkpoint.family.tower).write(source, operators, dtype), path)
    return checkpoint, model, onnxruntime.InferenceSession(str(path))


def seen(model: Any, checkpoint: HubCheckpoint, arrays: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """What transformers makes of pictures."""
    with torch.no_grad():
        told = model.get_image_features(
            **{name: torch.from_numpy(array) for name, array in checkpoint.spec.join(arrays).items()}, return_dict=True
        )
    return flat(told.pooler_output).numpy()


@pytest.mark.parametrize(("name", "way"), WRITTEN)
def test_equals_transformers(name: str, way: str, tiny: Build, tmp_path: Path) -> None:
    checkpoint, model, session = written(tiny(name), tmp_path / "vision.onnx", WAYS[way], ir.DataType.FLOAT)
    spec, every = checkpoint.spec, []
    for size in SIZES:
        every.append(spec.arrays(picture(*size)))
        ours = session.run(["image_features"], spec.encoder_arrays(every[-1:]))[0]
        assert len(ours) == spec.plan(*size).image_tokens
        np.testing.assert_allclose(ours, seen(model, checkpoint, every[-1:]), atol=5e-5, rtol=1e-5)
    together = session.run(["image_features"], spec.encoder_arrays(every))[0]
    np.testing.assert_allclose(together, seen(model, checkpoint, every), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TILES)
def test_float16_is_close(name: str, tiny: Build, tmp_path: Path) -> None:
    checkpoint, model, session = written(tiny(name), tmp_path / "vision.onnx", STANDARD, ir.DataType.FLOAT16)
    arrays = [checkpoint.spec.arrays(picture(133, 97))]
    ours = session.run(["image_features"], checkpoint.spec.encoder_arrays(arrays))[0]
    expected = seen(model, checkpoint, arrays)
    np.testing.assert_allclose(ours, expected, atol=0.01 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("name", TILES)
def test_no_picture_has_more_tokens_than_the_rule_says(name: str, tiny: Build) -> None:
    spec = HubCheckpoint.open(tiny(name)).spec
    edges = [1, 2, 30, 56, 57, 100, 167, 168, 280, 336, 337, 500, 2000]
    found = []
    for width, height in itertools.product(edges, edges):
        with contextlib.suppress(ImageError):  # LFM2-VL has no place for very thin ones
            found.append(spec.plan(width, height).image_tokens)
    assert len(found) >= 0.8 * len(edges) ** 2
    assert max(found) <= spec.most_tokens <= 1.5 * max(found)


def test_a_tower_of_another_kind_is_refused(tiny: Build) -> None:
    checkpoint, model = HubCheckpoint.open(tiny("llava")), load_model(tiny("llava"))
    source = VisionSource(model, checkpoint.modules)
    model.model.vision_tower.config.model_type = "pixtral"
    with pytest.raises(InputError, match="a LLaVA with a 'pixtral' tower cannot be exported"):
        tower_of("llava").write(source, FUSED, ir.DataType.FLOAT)


@pytest.mark.parametrize("layer", [[-2, -1], 9, -5])
def test_a_feature_layer_that_is_none_is_refused(tiny: Build, layer: object) -> None:
    checkpoint, model = HubCheckpoint.open(tiny("llava")), load_model(tiny("llava"))
    model.config.vision_feature_layer = layer
    with pytest.raises(InputError, match=r"vision_feature_layer .* cannot be exported"):
        tower_of("llava").write(VisionSource(model, checkpoint.modules), FUSED, ir.DataType.FLOAT)


@pytest.mark.parametrize("layer", [1, 2, 3, -1, -3])
def test_every_single_layer_can_be_the_features(tiny: Build, tmp_path: Path, layer: int) -> None:
    checkpoint, model = HubCheckpoint.open(tiny("llava")), load_model(tiny("llava"))
    model.config.vision_feature_layer = layer
    source = VisionSource(model, checkpoint.modules)
    save_model(tower_of("llava").write(source, FUSED, ir.DataType.FLOAT), tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"))
    arrays = [checkpoint.spec.arrays(Image.new("RGB", (40, 50), (200, 10, 90)))]
    ours = session.run(["image_features"], checkpoint.spec.encoder_arrays(arrays))[0]
    np.testing.assert_allclose(ours, seen(model, checkpoint, arrays), atol=5e-5, rtol=1e-5)


def test_a_name_that_nobody_has_is_refused() -> None:
    with pytest.raises(InputError, match="vision tower 'swin'"):
        tower_of("swin")

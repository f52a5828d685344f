"""Encoders that take pixels as they are, against what transformers makes of the same pictures, normalised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from PIL import Image

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_export.graph import save_model
from edgetune_export.vision.attention import FUSED, STANDARD
from edgetune_export.vision.int8 import quantize_linears
from edgetune_export.vision.pixels import MIDDLE, fold, take_pixels
from edgetune_export.vision.products import Dynamic, Product, Range, by_block, static, static_standard, weights_only
from edgetune_export.vision.towers import tower_of
from edgetune_export.vision.writer import VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.quant.blocks import BlockFormat
from families.checkpoints import BUILDERS
from families.conftest import Build, picture
from families.test_towers import seen
from reference import load_model

FAMILIES = sorted({*BUILDERS, "qwen2_5_vl", "qwen3_vl"})
SIZES = [(56, 56), (133, 97), (300, 40), (640, 480)]
WAYS = {"fused": FUSED, "standard": STANDARD}
SCHEMES: dict[str, tuple[str, Product]] = {
    "dynamic": ("fused", Dynamic()),
    "by block": ("fused", by_block(BlockFormat(8, 32, symmetric=True))),
    "static": ("fused", static(Range.of(-6, 6))),
    "static, standard": ("standard", static_standard(Range.of(-6, 6))),
    "weights only": ("standard", weights_only),
}
Features = npt.NDArray[np.float32]


class Both:
    """A family's encoder for normalised pixels and for raw ones, written from one checkpoint."""

    def __init__(
        self, folder: Path, work: Path, way: str = "fused", half: bool = False, scheme: Product | None = None
    ) -> None:
        self.checkpoint, self.model = HubCheckpoint.open(folder), load_model(folder)
        self.spec = self.checkpoint.spec
        source, tower = VisionSource(self.model, self.checkpoint.modules), tower_of(self.checkpoint.family.tower)
        written = tower.write(source, WAYS[way], ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
        if scheme is not None:
            quantize_linears(written, lambda name: scheme)
        self.paths = work / "vision.onnx", work / "pixels.onnx"
        save_model(written, self.paths[0], inline_limit=0)
        assert take_pixels(written, self.spec)
        save_model(written, self.paths[1])
        self._sessions = [onnxruntime.InferenceSession(str(path)) for path in self.paths]

    def normalised(self, *images: Image.Image) -> Features:
        """Features by the graph for normalised pixels."""
        return self._run(0, images)

    def raw(self, *images: Image.Image) -> Features:
        """Features by the graph for raw ones."""
        return self._run(1, images)

    def _run(self, which: int, images: tuple[Image.Image, ...]) -> Features:
        parts = [self.spec.arrays(image, raw=bool(which)) for image in images]
        features: Features = self._sessions[which].run(["image_features"], self.spec.encoder_arrays(parts))[0]
        return features


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_equals_transformers(name: str, way: str, tiny: Build, tmp_path: Path) -> None:
    """To 2e-5 of the largest feature, each picture alone and all of them in one call."""
    both = Both(tiny(name), tmp_path, way)
    images = [picture(*size) for size in SIZES]
    for asked in (*([image] for image in images), images):
        expected = seen(both.model, both.checkpoint, [both.spec.arrays(image) for image in asked])
        np.testing.assert_allclose(both.raw(*asked), expected, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("name", FAMILIES)
def test_float16_is_as_close_as_with_normalised_pixels(name: str, tiny: Build, tmp_path: Path) -> None:
    both, image = Both(tiny(name), tmp_path, "standard", half=True), picture(133, 97)
    expected = seen(both.model, both.checkpoint, [both.spec.arrays(image)])
    limit = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(both.raw(image), expected, atol=0.01 * limit)
    usual, ours = (np.linalg.norm(given - expected) for given in (both.normalised(image), both.raw(image)))
    assert ours < 1.5 * usual


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "lfm2_vl"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_layers_are_no_further_off(name: str, scheme: str, tiny: Build, tmp_path: Path) -> None:
    """Ranges that were found with normalised pixels hold: the first product, which no scheme rounds, undoes the change.

    A value at the border of two codes may fall on either side of it, so both are compared with transformers.
    """
    way, product = SCHEMES[scheme]
    # Schemes remember what they rounded of a graph.
    both = Both(tiny(name), tmp_path, way, scheme=Dynamic() if scheme == "dynamic" else product)
    for size in SIZES:
        expected = seen(both.model, both.checkpoint, [both.spec.arrays(picture(*size))])
        usual, ours = (np.linalg.norm(run(picture(*size)) - expected) for run in (both.normalised, both.raw))
        assert ours < 1.2 * usual


def test_weights_are_written_once(tiny: Build, tmp_path: Path) -> None:
    both = Both(tiny("qwen3_vl"), tmp_path)
    usual, pixels = (onnx.load(path, load_external_data=False) for path in both.paths)
    own = {weight.name for weight in pixels.graph.initializer} - {weight.name for weight in usual.graph.initializer}
    assert own == {"patch.weight_pixels", "patch.weight_offset", "pixels_middle"}
    places = {entry.value for weight in pixels.graph.initializer for entry in weight.external_data[:1]}
    assert places == {"vision.onnx.data"}
    assert not both.paths[1].with_name("pixels.onnx.data").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_raw_arrays_are_the_picture(name: str, tiny: Build) -> None:
    """Normalised by hand they are the model's arrays; and an eighth of the bytes where there are two frames."""
    spec, image = HubCheckpoint.open(tiny(name)).spec, picture(133, 97)
    usual, raw = spec.arrays(image), spec.arrays(image, raw=True)
    assert raw["pixel_values"].dtype == np.uint8
    assert usual["pixel_values"].nbytes == raw["pixel_values"].nbytes * 4 * spec.frames
    assert all(np.array_equal(usual[key], raw[key]) for key in usual if key != "pixel_values")
    expected = scaled(raw["pixel_values"], spec)
    if (mask := usual.get("pixel_attention_mask")) is not None:
        expected[mask == 0] = 0
    np.testing.assert_allclose(usual["pixel_values"], expected, atol=1e-6)


def scaled(raw: npt.NDArray[np.uint8], spec: Preprocessing) -> npt.NDArray[np.float64]:
    """Raw pixel values as the model takes them."""
    mean, std = np.array(spec.scaling.mean), np.array(spec.scaling.std)
    values: npt.NDArray[np.float64]
    if spec.patch_values is None:
        values = (raw * spec.scaling.rescale - mean[:, None, None]) / std[:, None, None]
        return values
    values = (raw.reshape(*raw.shape[:-1], -1, 3) * spec.scaling.rescale - mean) / std
    if not spec.by_pixel:
        values = np.repeat(np.swapaxes(values, -1, -2)[..., None, :], spec.frames, axis=-2)
    flat: npt.NDArray[np.float64] = values.reshape(*raw.shape[:-1], -1)
    return flat


@pytest.mark.parametrize("name", ["qwen2_vl", "lfm2_vl"])
def test_the_fold_is_exact(name: str, tiny: Build) -> None:
    """In float64 nothing is left of the difference."""
    spec, generator = HubCheckpoint.open(tiny(name)).spec, np.random.default_rng(0)
    assert spec.patch_values is not None
    weight, bias = generator.standard_normal((7, spec.patch_values)), generator.standard_normal(7)
    raw = generator.integers(0, 256, (5, spec.patch_values // spec.frames), np.uint8)
    folded, offset = fold(weight, bias, spec)
    np.testing.assert_allclose(
        (raw - float(MIDDLE)) @ folded.T + offset, scaled(raw, spec) @ weight.T + bias, rtol=1e-12, atol=1e-11
    )


def test_a_graph_that_computes_with_pixels_is_left_alone(tiny: Build) -> None:
    checkpoint = HubCheckpoint.open(tiny("qwen2_vl"))
    source = VisionSource(load_model(tiny("qwen2_vl")), checkpoint.modules)
    written = tower_of("patches").write(source, STANDARD, ir.DataType.FLOAT)
    product = next(node for node in written.graph if node.op_type == "Gemm")
    twice = ir.node("Add", [product.inputs[0], product.inputs[0]])
    written.graph.insert_before(product, twice)
    product.replace_input_with(0, twice.outputs[0])
    nodes = [node.op_type for node in written.graph]
    assert not take_pixels(written, checkpoint.spec)
    assert [node.op_type for node in written.graph] == nodes
    assert written.graph.inputs[0].dtype == ir.DataType.FLOAT

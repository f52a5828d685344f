"""The engine that encodes pictures in OpenVINO, on bundles that were exported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetune.cli import cli
from edgetune_runtime.backends import load_backend
from edgetune_runtime.backends.openvino.engine import OpenvinoBackend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.session import Session
from train.conftest import write_records

pytest.importorskip("openvino", reason="the extra [openvino] is not installed")


def export(checkpoint: Path, output: Path, *options: str) -> Path:
    paths = ["--checkpoint", str(checkpoint), "--output", str(output), "--target", "openvino"]
    cli.main(["export", *paths, *options], standalone_mode=False)
    return output


def pictures(bundle: Bundle) -> dict[str, Any]:
    """Two of different sizes, as the vision encoder takes them: pixels as they are."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, size, dtype=np.uint8) for size in ((96, 128, 3), (200, 64, 3))]
    return dict(bundle.spec.encoder_arrays([bundle.spec.arrays(Image.fromarray(image), raw=True) for image in images]))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_features_are_those_of_the_float32_encoder(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Within bfloat16, which OpenVINO takes where the CPU multiplies it; Qwen2.5-VL has windows, Qwen3-VL DeepStack."""
    bundle = Bundle.load(export(request.getfixturevalue(family), tmp_path / "bundle", "--precision", "fp32"))
    exact = load_backend(Bundle.load(request.getfixturevalue(f"{family}_bundle")), threads=1)
    engine = load_backend(bundle, threads=1, engine="openvino")
    assert isinstance(engine, OpenvinoBackend)
    wanted, found = (which.encode_images(pictures(bundle)) for which in (exact, engine))
    assert engine.shape == exact.shape
    for theirs, ours in zip((wanted.embeddings, *wanted.deepstack), (found.embeddings, *found.deepstack), strict=True):
        assert np.linalg.norm(ours - theirs, axis=1).max() < 2e-2 * np.linalg.norm(theirs, axis=1).max()


def test_a_later_picture_leaves_earlier_features_alone(qwen3_vl_bundle: Path, qwen3_vl: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(export(qwen3_vl, tmp_path / "bundle"))
    engine = load_backend(bundle, threads=1, engine="openvino")
    images = pictures(bundle)
    first = engine.encode_images(images)
    kept = first.embeddings.copy()
    engine.encode_images({**images, "pixel_values": images["pixel_values"][::-1].copy()})
    np.testing.assert_array_equal(first.embeddings, kept)


def test_ranges_of_a_weight_set_are_used(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    """And without them weights alone are int8."""
    records = write_records(tmp_path / "data")
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(records), "--output", str(tmp_path / "set")]
    cli.main(["calibrate", *paths, "--method", "rtn", "--group-size", "32"], standalone_mode=False)
    found = {}
    for name, weights in (("with", tmp_path / "set"), ("without", weight_set)):
        folder = export(qwen3_vl, tmp_path / name, "--weights", str(weights))
        graph = onnx.load(folder / "onnx/vision_encoder.onnx", load_external_data=False).graph
        operators = {node.op_type for node in graph.node}
        found[name] = (
            Bundle.load(folder).manifest["result"]["bundle"]["vision_precision"],
            "QuantizeLinear" in operators,
        )
    assert found == {"with": ("int8-static", True), "without": ("int8", False)}


def test_both_engines_run_a_bundle_of_standard_operators(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    for format_ in ("onnx", "gptq"):
        folder = export(qwen3_vl, tmp_path / format_, "--format", format_, "--weights", str(weight_set))
        vision = onnx.load(folder / "onnx/vision_encoder.onnx", load_external_data=False)
        assert {node.domain for node in vision.graph.node} == {""}
        assert "MatMulInteger" not in {node.op_type for node in vision.graph.node}
        decoder = onnx.load(folder / "onnx/decoder_model_merged.onnx", load_external_data=False)
        assert "com.microsoft" in {node.domain for node in decoder.graph.node}
        image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        for engine in (None, "openvino"):
            with Session.load(folder, engine=engine, threads=1) as session:
                answer = session.answer(image, session.request("the cup"), max_new_tokens=4)
                assert answer.timings.tokens <= 4


def test_operators_that_openvino_does_not_read_are_refused_with_the_option(qwen3_vl_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"vision_encoder_pixels\.onnx: OpenVINO 20\S* cannot load it") as caught:
        Session.load(qwen3_vl_bundle, engine="openvino")
    assert "--target openvino" in str(caught.value.hint)


def test_other_devices_are_refused(qwen3_vl_bundle: Path) -> None:
    with pytest.raises(InputError, match="the engine openvino computes on the CPU, not on cuda:1"):
        Session.load(qwen3_vl_bundle, engine="openvino", device="cuda:1")

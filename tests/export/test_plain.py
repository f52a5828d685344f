"""Bundles of standard operators, as the runtime runs them: a cache that grows, and no other domain in any graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgetune.cli import cli
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.session import Session
from reference import greedy_text

QUESTION = "What colour is the cactus?"


def export(checkpoint: Path, output: Path, *options: str) -> Path:
    paths = ["--checkpoint", str(checkpoint), "--output", str(output), "--dialect", "plain"]
    cli.main(["export", *paths, *options], standalone_mode=False)
    return output


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_answers_are_those_of_transformers(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    session = Session.load(export(checkpoint, tmp_path / "bundle", "--precision", "fp32"))
    for seed, size in enumerate([(96, 128, 3), (200, 64, 3)]):  # the second one starts from an empty cache again
        image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))
        expected = greedy_text(checkpoint, image, QUESTION, max_new_tokens=12, eos=list(session.bundle.eos))
        assert session.ask(image, QUESTION, max_new_tokens=12) == expected


def test_a_weight_set_in_standard_operators(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    folder = export(qwen3_vl, tmp_path / "bundle", "--weights", str(weight_set), "--accuracy-level", "0")
    told = Bundle.load(folder).manifest["result"]["bundle"]
    assert (told["dialect"], told["vision_precision"]) == ("plain", "int8")
    assert told["parity"]["exact"]["token_agreement"] == 1
    for path in (folder / "onnx").glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}
        assert [opset.domain for opset in model.opset_import] == [""]
        onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(folder / "onnx/decoder_model_merged.onnx", load_external_data=False).graph
    codes = {tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".weight_codes")}
    assert codes == {onnx.TensorProto.UINT4, onnx.TensorProto.INT8}  # the layers, and the head rounded to int8

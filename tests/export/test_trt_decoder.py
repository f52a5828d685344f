"""The decoder in TensorRT's grammar against transformers with the same weights, run by onnxruntime."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch

from edgetune_core.weightset import WeightSet
from edgetune_export.check.trt import OnnxTrtBackend
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.trt_fused import PROFILES
from edgetune_export.decoder.dialects.trt_linear import positive
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.graph import save_model
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest
from reference import apply_rounding, apply_weights, decoder_weights, load_model
from weight_sets import build_weight_set

Float = npt.NDArray[np.float32]
ROWS = 48  # of the cache
TOKENS = 11
OLD = ("10.3", "10.13")
FORBIDDEN_BEFORE_10_14 = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


class Decoder(OnnxTrtBackend):
    """The checker without vision, its cache full of another sequence's rows."""

    def __init__(self, decoder: Path, table: Float, tmp_path: Path) -> None:
        np.save(tmp_path / "table.npy", table)
        super().__init__(vision=decoder, embeddings=tmp_path / "table.npy", decoder=decoder)
        past = self._decoder.past
        past |= {name: np.full_like(rows, 7) for name, rows in past.items()}


def write(
    weights: DecoderWeights, profile: str, folder: Path, dtype: ir.DataType = ir.DataType.FLOAT, rows: int = ROWS
) -> Path:
    path = folder / f"{profile}-{dtype.name}.onnx"
    save_model(build_decoder(weights, lambda graph, spec: PROFILES[profile](graph, spec, rows, dtype)), path)
    return path


def read(decoder: Path, model: Any, folder: Path) -> tuple[Float, list[Float]]:
    """Logits after the last of TOKENS tokens, read in pieces with DeepStack features in the first; and the features."""
    ids = torch.randint(20, 200, (TOKENS,), generator=torch.Generator().manual_seed(1)).numpy()
    backend = Decoder(decoder, model.get_input_embeddings().weight.detach().numpy(), folder)
    embeddings, positions = backend.embed(ids), np.tile(np.arange(TOKENS), (3, 1))
    layers = len(getattr(model.model.visual, "deepstack_merger_list", ()))
    generator = np.random.default_rng(3)
    features = [generator.standard_normal((6, embeddings.shape[1])).astype(np.float32) for _ in range(layers)]
    backend.reserve(TOKENS)
    for first, last in ((0, 6), (6, 10), (10, 11)):
        piece = slice(first, last)
        logits = backend.forward(embeddings[piece], positions[:, piece], features if first == 0 else ())
    return logits, features


@torch.no_grad()
def reference(model: Any, features: list[Float]) -> Float:
    """The same by transformers: image features at the first six places."""
    ids = torch.randint(20, 200, (TOKENS,), generator=torch.Generator().manual_seed(1))[None]
    visual = {}
    if features:
        mask = torch.zeros(1, TOKENS, dtype=torch.bool)
        mask[0, :6] = True
        visual = {"visual_pos_masks": mask, "deepstack_visual_embeds": [torch.from_numpy(part) for part in features]}
    text = model.model.language_model
    states = text(
        inputs_embeds=model.get_input_embeddings()(ids), position_ids=torch.arange(TOKENS).expand(3, 1, -1), **visual
    ).last_hidden_state
    logits: Float = model.lm_head(states[:, -1])[0].numpy()
    return logits


def rounded(model: Any, bits: int | None, *, symmetric: bool = False) -> DecoderWeights:
    fmt = None if bits is None else BlockFormat(bits, 64, symmetric)
    return decoder_weights(model, layers_format=fmt, head_format=fmt)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("profile", ["10.3", "10.16"])
@pytest.mark.parametrize(("bits", "symmetric"), [(None, False), (4, True), (4, False), (8, True)])
def test_rounded_weights_equal_transformers(
    family: str, profile: str, bits: int | None, symmetric: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = copy.deepcopy(load_model(request.getfixturevalue(family)))
    weights = rounded(model, bits, symmetric=symmetric)
    exact, half = write(weights, profile, tmp_path), write(weights, profile, tmp_path, ir.DataType.FLOAT16)
    logits, features = read(exact, model, tmp_path)
    shipped, _ = read(half, model, tmp_path)
    apply_rounding(model, weights)
    expected = reference(model, features)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert 0 < np.abs(shipped - expected).max() < 0.1
    assert shipped.argmax() == expected.argmax()
    if features:
        assert np.abs(reference(model, [np.zeros_like(part) for part in features]) - expected).max() > 0.1


@pytest.mark.parametrize("profile", ["10.3", "10.16"])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (3, True), (3, False), (8, False)])
def test_a_weight_set_equals_transformers(
    profile: str, bits: int, symmetric: bool, qwen3_vl: Path, tmp_path: Path
) -> None:
    model = copy.deepcopy(load_model(qwen3_vl))
    fmt = BlockFormat(bits, 64, symmetric)
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", choose=lambda name: fmt, head=fmt))
    decoder = decoder_weights(model, weights=weights)
    path = write(decoder, profile, tmp_path)
    logits, features = read(path, model, tmp_path)
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    # Symmetric codes need no correction, and so no means.
    assert ("ReduceMean" in kinds) == (not symmetric or bits == 8 or profile in OLD)
    apply_weights(model, weights)
    np.testing.assert_allclose(logits, reference(model, features), atol=1e-4)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_grammar(profile: str, qwen3_vl: Path, tmp_path: Path) -> None:
    weights = rounded(load_model(qwen3_vl), 4)
    model = onnx.load(write(weights, profile, tmp_path, ir.DataType.FLOAT16))
    kinds = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert not {"NonZero", "MatMulNBits", "Loop", "If"} & kinds
    assert (FORBIDDEN_BEFORE_10_14 & kinds == set()) == (profile in OLD)
    assert model.opset_import[0].version == (21 if profile in OLD else 24)
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 2  # no zero point
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = [onnx.numpy_helper.to_array(value) for name, value in constants.items() if name.endswith("_scales")]
    assert scales and all((scale > 0).all() for scale in scales)
    codes = [value for name, value in constants.items() if name.endswith("_codes")]
    assert len(codes) == len(scales) and {value.data_type for value in codes} == {onnx.TensorProto.INT4}
    free = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    assert free == {"length"}


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_become_positive_and_values_stay(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    blocks = round_to_nearest(weight, BlockFormat(bits, 32, symmetric=True))
    assert (blocks.scales < 0).any()
    flipped = positive(blocks)
    assert (flipped.scales > 0).all() and flipped.codes.max() < 1 << bits
    np.testing.assert_array_equal(flipped.dequantize(), blocks.dequantize())


def test_columns_that_are_no_whole_blocks_are_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    weights = decoder_weights(load_model(qwen3_vl), layers_format=BlockFormat(4, 96, True))
    with pytest.raises(InputError, match="128 inputs are no whole number of blocks of 96"):
        write(weights, "10.3", tmp_path)

"""The token table of a bundle: stored once where the head has it already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgetune_core.weightset import WeightSet
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.embed import build_embed
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.graph import save_model
from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest
from reference import decoder_weights, load_model
from weight_sets import build_weight_set

EIGHT = BlockFormat(8, 32, symmetric=True)


def write(folder: Path, decoder: DecoderWeights, dtype: ir.DataType = ir.DataType.FLOAT) -> Path:
    """A decoder, and the token table beside it; returns the table's graph."""
    model = build_decoder(decoder, lambda graph, spec: OrtDialect(graph, spec, dtype))
    folder.mkdir()
    save_model(model, folder / "decoder.onnx", inline_limit=0)
    save_model(build_embed(decoder, "int8", model), folder / "embed.onnx", inline_limit=0)
    return folder / "embed.onnx"


def rounded(checkpoint: Path, head: BlockFormat | None) -> DecoderWeights:
    """A decoder whose head is rounded so."""
    return decoder_weights(load_model(checkpoint), layers_format=EIGHT, head_format=head)


def looked_up(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of a table that no file of its own holds."""
    places = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"decoder.onnx.data"}
    assert not path.with_name("embed.onnx.data").exists()
    (rows,) = onnxruntime.InferenceSession(str(path)).run(None, {"input_ids": ids})
    assert rows.dtype == np.float32
    found: NDArray[np.float32] = rows
    return found


FORMATS = {
    "int8": EIGHT,
    "int4": BlockFormat(4, 32, symmetric=True),
    "int4, zero points": BlockFormat(4, 32, symmetric=False),
    "int4, zero points of one block": BlockFormat(4, 128, symmetric=False),
}


@pytest.mark.parametrize("head", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_a_tied_table_is_read_from_the_heads_codes(
    dtype: ir.DataType, head: BlockFormat, qwen3_vl: Path, tmp_path: Path
) -> None:
    """Its rows are the head's, rounded as the head is."""
    path = write(tmp_path / "bundle", rounded(qwen3_vl, head), dtype)
    table = load_model(qwen3_vl).get_input_embeddings().weight.detach().numpy()
    ids = np.array([[0, 5, len(table) - 1], [7, 7, 1]])
    expected = round_to_nearest(table, head).dequantize()[ids]
    np.testing.assert_allclose(looked_up(path, ids), expected, rtol=0 if dtype == ir.DataType.FLOAT else 2e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_table_is_read_from_a_calibrated_heads_codes(bits: int, qwen3_vl: Path, tmp_path: Path) -> None:
    weights = WeightSet.load(build_weight_set(qwen3_vl, tmp_path / "set", head=BlockFormat(bits, 64, symmetric=False)))
    decoder = decoder_weights(load_model(qwen3_vl), head_format=EIGHT, weights=weights)
    ids = np.arange(decoder.spec.vocabulary)[None]
    rows = looked_up(write(tmp_path / "bundle", decoder), ids)
    np.testing.assert_array_equal(rows[0], weights.dequantized("lm_head"))


@pytest.mark.parametrize(("name", "head"), [("qwen2_5_vl", EIGHT), ("qwen3_vl", None)], ids=["untied", "dense head"])
def test_other_tables_are_stored(
    name: str, head: BlockFormat | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As int8 with one scale a token."""
    checkpoint = request.getfixturevalue(name)
    path = write(tmp_path / "bundle", rounded(checkpoint, head))
    assert path.with_name("embed.onnx.data").is_file()
    table = load_model(checkpoint).get_input_embeddings().weight.detach().numpy()
    (rows,) = onnxruntime.InferenceSession(str(path)).run(None, {"input_ids": np.arange(len(table))[None]})
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(rows[0] - table) <= steps / 2 * 1.001).all()

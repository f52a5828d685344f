"""The decoder graph against transformers: logits, cache, batches, rotary variants and tied heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from builders import build_qwen2_5_vl, build_qwen3_vl, copy_checkpoint
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects import Dialect
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.dialects.plain import PlainDialect
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import GraphBuilder, save_model
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat
from reference import apply_rounding, decoder_weights, load_model

Float = npt.NDArray[np.float32]


Build = Callable[[Any, Path], onnxruntime.InferenceSession]
DIALECTS: dict[str, Callable[[GraphBuilder, DecoderSpec, ir.DataType], Dialect]] = {
    "ort": OrtDialect,
    "plain": PlainDialect,
}


@pytest.fixture(params=DIALECTS)
def build(request: pytest.FixtureRequest) -> Build:
    """Write the decoder of a model, in each dialect that onnxruntime runs with dense weights, and load it."""
    make = DIALECTS[request.param]

    def write(model: Any, folder: Path) -> onnxruntime.InferenceSession:
        weights = decoder_weights(model)
        graph = build_decoder(weights, lambda graph, spec: make(graph, spec, ir.DataType.FLOAT))
        save_model(graph, folder / "decoder.onnx")
        return onnxruntime.InferenceSession(str(folder / "decoder.onnx"))

    return write


def run(
    session: onnxruntime.InferenceSession,
    embeds: Float,
    positions: npt.NDArray[np.int64],
    *,
    deepstack: list[Float] | None = None,
    past: list[Float] | None = None,
    mask: npt.NDArray[np.int64] | None = None,
) -> tuple[Float, list[Float]]:
    """Logits [B, V] and the present cache of a call without shared buffers."""
    batch, length, _ = embeds.shape
    feeds: dict[str, Any] = {"inputs_embeds": embeds, "position_ids": positions}
    caches = [node for node in session.get_inputs() if node.name.startswith("past_key_values.")]
    for number, node in enumerate(caches):
        feeds[node.name] = (
            np.zeros((batch, node.shape[1], 0, node.shape[3]), np.float32) if past is None else past[number]
        )
    extra = [node.name for node in session.get_inputs() if node.name.startswith("deepstack_embeds.")]
    for number, name in enumerate(extra):
        feeds[name] = np.zeros_like(embeds) if deepstack is None else deepstack[number]
    total = length + feeds[caches[0].name].shape[2]
    feeds["attention_mask"] = np.ones((batch, total), np.int64) if mask is None else mask
    logits, *present = session.run(None, feeds)
    return logits[:, 0], present


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_two_images_of_different_sizes_in_one_prompt(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, build: Build
) -> None:
    model = load_model(request.getfixturevalue(family))
    session = build(model, tmp_path)
    image = model.config.image_token_id
    grids = torch.tensor([[1, 8, 6], [1, 4, 10]])
    text = torch.randint(20, 200, (13,), generator=torch.Generator().manual_seed(1))
    images = [torch.full((count,), image) for count in (12, 10)]
    ids = torch.cat([text[:4], images[0], text[4:6], images[1], text[6:]])[None]
    patch = model.config.vision_config.patch_size
    pixels = torch.randn(88, 3 * 2 * patch * patch, generator=torch.Generator().manual_seed(2))
    types = (ids == image).int()
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=types).logits[
            :, -1
        ]
        positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=grids)
        features = model.model.get_image_features(pixels, grids, return_dict=True)
        embeds = model.get_input_embeddings()(ids)
    embeds[ids == image] = torch.cat(features.pooler_output)
    deepstack = []
    for layer in getattr(features, "deepstack_features", None) or []:
        dense = torch.zeros_like(embeds)
        dense[ids == image] = torch.cat(layer)
        deepstack.append(dense.numpy())
    logits, _ = run(session, embeds.numpy(), positions.numpy(), deepstack=deepstack)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    if deepstack:
        without, _ = run(session, embeds.numpy(), positions.numpy())
        assert np.abs(without - logits).max() > 0.1


def text_case(model: Any, batch: int, length: int) -> tuple[Float, npt.NDArray[np.int64], Float]:
    """Embeddings, positions, and the logits [B, V] that transformers gives for text."""
    ids = torch.randint(20, 200, (batch, length), generator=torch.Generator().manual_seed(batch))
    positions = torch.arange(length).expand(3, batch, -1)
    with torch.no_grad():
        logits = model(input_ids=ids, position_ids=positions).logits[:, -1]
        embeds = model.get_input_embeddings()(ids)
    return embeds.numpy(), positions.numpy().copy(), logits.numpy()


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
def test_reading_in_pieces_equals_reading_at_once(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, build: Build
) -> None:
    model = load_model(request.getfixturevalue(family))
    session = build(model, tmp_path)
    embeds, positions, expected = text_case(model, 1, 11)
    _, past = run(session, embeds[:, :6], positions[..., :6])
    _, past = run(session, embeds[:, 6:10], positions[..., 6:10], past=past)
    logits, present = run(session, embeds[:, 10:], positions[..., 10:], past=past)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert present[0].shape[2] == 11


def test_a_batch(qwen3_vl: Path, tmp_path: Path, build: Build) -> None:
    model = load_model(qwen3_vl)
    embeds, positions, expected = text_case(model, 3, 9)
    logits, _ = run(build(model, tmp_path), embeds, positions)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def edited(source: Path, target: Path, **text_config: Any) -> Path:
    copy_checkpoint(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].update(text_config)
    path.write_text(json.dumps(config))
    return target


def rope(source: Path, **changes: Any) -> dict[str, Any]:
    config = json.loads((source / "config.json").read_text())
    return {**config["text_config"]["rope_parameters"], **changes}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_yarn(family: str, request: pytest.FixtureRequest, tmp_path: Path, build: Build) -> None:
    source: Path = request.getfixturevalue(family)
    yarn = rope(source, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    model = load_model(edited(source, tmp_path / "yarn", rope_parameters=yarn))
    assert model.model.language_model.rotary_emb.attention_scaling != 1
    embeds, positions, expected = text_case(model, 1, 100)
    logits, _ = run(build(model, tmp_path), embeds, positions)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_rotary_frequencies_that_depend_on_the_length_are_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    dynamic = rope(qwen3_vl, rope_type="dynamic", factor=2.0, original_max_position_embeddings=64)
    model = load_model(edited(qwen3_vl, tmp_path / "dynamic", rope_parameters=dynamic))
    with pytest.raises(InputError, match="rope type 'dynamic' is not supported"):
        decoder_weights(model)


def test_sliding_windows_are_refused(qwen2_5_vl: Path, tmp_path: Path) -> None:
    windowed: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    windowed["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
    model = load_model(edited(qwen2_5_vl, tmp_path / "sliding", **windowed))
    with pytest.raises(InputError, match="sliding-window"):
        decoder_weights(model)


@pytest.mark.parametrize(("builder", "tied"), [(build_qwen3_vl, False), (build_qwen2_5_vl, True)])
def test_tied_and_untied_heads(builder: Any, tied: bool, tmp_path: Path, build: Build) -> None:
    model = load_model(builder(tmp_path / "checkpoint", tied=tied, layers=2 if tied else 3))
    embeds, positions, expected = text_case(model, 1, 7)
    logits, _ = run(build(model, tmp_path), embeds, positions)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_quantized_weights_in_standard_operators(qwen3_vl: Path, tmp_path: Path) -> None:
    model = load_model(qwen3_vl)
    for name, fmt in {
        "symmetric": BlockFormat(4, 32, symmetric=True),
        "zero points": BlockFormat(4, 64, symmetric=False),
        "8 bits": BlockFormat(8, 32, symmetric=True),
        "8 bits, zero points": BlockFormat(8, 32, symmetric=False),
    }.items():
        decoder = decoder_weights(model, layers_format=fmt, head_format=fmt)
        graph = build_decoder(decoder, lambda graph, spec: PlainDialect(graph, spec, ir.DataType.FLOAT))
        assert {node.domain for node in graph.graph} == {""}
        save_model(graph, tmp_path / "decoder.onnx")
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"), options)
        rounded = load_model(qwen3_vl)
        apply_rounding(rounded, decoder)
        embeds, positions, expected = text_case(rounded, 2, 9)
        logits, _ = run(session, embeds, positions)
        np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=name)


def test_padding_on_the_left_is_not_seen(qwen3_vl: Path, tmp_path: Path) -> None:
    """Only the plain dialect reads the mask's zeros; onnxruntime's operator takes its length."""
    model = load_model(qwen3_vl)
    decoder = decoder_weights(model)
    save_model(
        build_decoder(decoder, lambda graph, spec: PlainDialect(graph, spec, ir.DataType.FLOAT)),
        tmp_path / "decoder.onnx",
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"))
    embeds, positions, expected = text_case(model, 2, 9)
    padding = np.full((2, 3, embeds.shape[2]), 7, np.float32)
    padded = np.concatenate([padding, embeds], axis=1), np.pad(positions, ((0, 0), (0, 0), (3, 0)))
    mask = np.array([[0] * 3 + [1] * 9] * 2)
    logits, _ = run(session, *padded, mask=mask)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    seen, _ = run(session, *padded)
    assert np.abs(seen - logits).max() > 0.1

"""Hidden states after each block: told by the written graph as by transformers, and a wrong block is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgetune.cli import cli
from edgetune_export import onnx_bundle
from edgetune_export.check.answers import Answers
from edgetune_export.check.blocks import MAX_ERROR, WATCHED, BlockErrors, compare, watched
from edgetune_export.check.exact import GraphDecoder, for_every_step, read_answer
from edgetune_export.check.reference import Reference, generated_cases
from edgetune_export.checkpoint import open_checkpoint
from edgetune_export.decoder import builder
from edgetune_runtime.backends import ImageFeatures
from edgetune_runtime.errors import ParityError
from reference import load_model


def export(checkpoint: Path, output: Path, *options: str) -> dict[str, Any]:
    """Export and return what the self-check measured."""
    cli.main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *options], standalone_mode=False)
    told: dict[str, Any] = json.loads((output / "manifest.json").read_text())["result"]["bundle"]["parity"]
    return told


def test_a_few_tokens_are_watched_from_the_first_to_the_last() -> None:
    np.testing.assert_array_equal(watched(10, 0), [0, 3, 6, 9])
    np.testing.assert_array_equal(watched(2, 3), [0, 1, 2, 3, 4])
    assert len(watched(5000, 300)) == 2 * WATCHED
    assert watched(5000, 300)[[0, 3, 4, 7]].tolist() == [0, 4999, 5000, 5299]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_states_are_those_of_transformers(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Kept by the reference in its pass, and told by the written graph in three calls, with a cache."""
    folder = request.getfixturevalue(name)
    opened, model = open_checkpoint(folder), load_model(folder)
    shutil.copytree(request.getfixturevalue(f"{name}_bundle") / "onnx", tmp_path / "onnx")
    path = tmp_path / "onnx" / "decoder_model_merged.onnx"
    ir.save(for_every_step(ir.load(path)), path)
    answers, decoder, table = Answers(opened), GraphDecoder(path), model.get_input_embeddings().weight
    given: list[torch.Tensor] = []
    for module in (*model.model.language_model.layers[1:], model.model.language_model.norm):
        module.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    cases = generated_cases(opened)
    tokens = [[40, 41, 42, 43, 44, 45, 46][: 7 - 3 * number] for number in range(len(cases))]  # the last has one
    reference = Reference(opened.streamed, opened, keeps_states=True)
    for sample in reference.read(cases, tokens):
        ids = torch.from_numpy(np.concatenate([sample.case.token_ids, np.array(sample.tokens[:-1], np.int64)]))[None]
        given.clear()
        model.model(
            input_ids=ids,
            mm_token_type_ids=(ids == opened.tokens["image"]).int(),
            **{name: torch.from_numpy(array) for name, array in sample.case.arrays.items()},
        )
        watch = watched(len(sample.case.token_ids), len(sample.tokens) - 1)
        assert sample.states is not None
        np.testing.assert_allclose(sample.states, torch.stack(given)[:, 0, watch].detach().numpy(), atol=1e-4)
        prompt = answers.prompt(sample.case, ImageFeatures(sample.features[0], sample.features[1:]))
        _, states = read_answer(decoder, lambda ids: table[ids].detach().numpy(), prompt, sample.tokens)
        assert states.shape == sample.states.shape
        assert max(compare([states], [sample.states]).relative_errors) < MAX_ERROR


def swap_norms(model: ir.Model) -> ir.Model:
    """Put the norm before one block's feed-forward into another's, and the other's into the one's."""
    one, other = (model.graph.initializers[f"model.layers.{n}.post_attention_layernorm.weight"] for n in (1, 2))
    one.const_value, other.const_value = other.const_value, one.const_value
    return model


@pytest.mark.parametrize("dialect", ["ort", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_a_wrong_block_is_named(
    precision: str, dialect: str, qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms of the second and third block are swapped on the way into the file."""
    options = ["--precision", precision, "--dialect", dialect]
    sound = export(qwen3_vl, tmp_path / "sound", *options)["blocks"]
    assert (sound["count"], sound["tokens"]) == (4, 3 * 2 * WATCHED)
    assert 1 <= sound["block"] <= 4 and 0 < sound["max_relative_error"] < (1e-2 if precision == "fp16" else 1e-5)
    real = builder.build_decoder
    monkeypatch.setattr(onnx_bundle, "build_decoder", lambda *args: swap_norms(real(*args)))
    with pytest.raises(ParityError, match=r"block 2 of 4 \(layers\.1\) of the written decoder differs from transform"):
        export(qwen3_vl, tmp_path / "wrong", *options)
    assert not (tmp_path / "wrong").exists()


def test_the_first_block_past_its_bound_is_named() -> None:
    errors = BlockErrors(8, (1e-6, 3e-4, 0.5))
    with pytest.raises(ParityError, match=r"block 2 of 3 .* relative error 3\.00e-04, at most 1e-04 allowed"):
        errors.require(half=False)
    with pytest.raises(ParityError, match="block 3 of 3"):
        errors.require(half=True)
    with pytest.raises(ParityError, match=r"block 1 of 2 .* computes NaN or infinity") as caught:
        BlockErrors(8, (float("nan"), 0.1)).require(half=True)
    assert "choose another precision" in str(caught.value.hint)
    assert BlockErrors(8, (1e-6, 3e-6, 1e-6)).to_dict() == {
        "tokens": 8,
        "count": 3,
        "max_relative_error": 3e-6,
        "block": 2,
    }

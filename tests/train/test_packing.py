"""Packing: every sample once an epoch, none longer than a pack, and the losses and gradients of single samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.records import read_entries
from edgetune_train.attention import choose_attention, use_attention
from edgetune_train.batch import Collator
from edgetune_train.lora import lora_config, resolve_targets
from edgetune_train.objective import answer_loss
from edgetune_train.packing import Packs, best_fit
from edgetune_train.settings import LoraSettings
from edgetune_train.tower import as_published, quicken
from edgetune_train.vision import FeatureInputs, ImageInputs, PixelInputs
from families.checkpoints import (
    build_idefics3,
    build_internvl,
    build_llava,
    build_llava_onevision,
    build_qwen2_vl,
)
from train.conftest import RECORDS, write_records

DIALOGUES: list[dict[str, Any]] = [
    {
        "images": ["0.png", "2.png"],
        "messages": [
            {"role": "user", "content": "<image><image>Which shows a clock?"},
            {"role": "assistant", "content": "The first."},
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "objects": {"ref": [], "bbox": [[10, 20, 110, 100]]},
    },
    {"images": [], "messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]},
]


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def base(request: pytest.FixtureRequest) -> HubCheckpoint:
    return HubCheckpoint.open(request.getfixturevalue(request.param))


@pytest.fixture
def samples(base: HubCheckpoint, tmp_path: Path) -> list[Sample]:
    path = write_records(tmp_path / "data", records=[*RECORDS, *DIALOGUES])
    return prepare(read_entries(path), base.family, base.spec, base.tokenizer)


def answers(samples: list[Sample]) -> int:
    return sum(sum(sample.learned) for sample in samples)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
@settings(max_examples=100, deadline=None)
def test_best_fit_places_everything_once_and_wastes_little(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert sorted(index for found in bins for index in found) == list(range(len(lengths)))
    fills = [sum(lengths[index] for index in found) for found in bins]
    assert all(fill <= capacity for fill in fills)
    # No two bins could be one, which keeps every packing within twice the best possible.
    assert all(a + b > capacity for i, a in enumerate(fills) for b in fills[:i])


def test_epochs_hold_every_sample_once_and_differ(samples: list[Sample]) -> None:
    many = samples * 20
    packs = Packs(many, 400, seed=3, epochs=3, processes=4)
    assert len(packs) % 4 == 0
    seen = []
    for epoch in range(3):
        packs.set_epoch(epoch)
        content = [packs[i] for i in range(len(packs))]
        assert Counter(id(sample) for pack in content for sample in pack) == {id(sample): 20 for sample in samples}
        assert all(0 < sum(len(sample.ids) for sample in pack) <= 400 for pack in content)
        seen.append([[id(sample) for sample in pack] for pack in content])
    assert seen[0] != seen[1] != seen[2]
    again = Packs(many, 400, seed=3, epochs=3, processes=4)
    again.set_epoch(2)
    assert [[id(sample) for sample in again[i]] for i in range(len(again))] == seen[2]
    tokens = sum(len(sample.ids) for sample in many)
    assert packs.utilization == pytest.approx(tokens / (len(packs) * 400))
    assert Packs(many, 400, seed=3, epochs=1).utilization > 0.9 > packs.padded_utilization(8)


def test_a_sample_longer_than_a_pack_names_its_line(samples: list[Sample]) -> None:
    longest = max(samples, key=lambda sample: len(sample.ids))
    with pytest.raises(InputError, match=f"{longest.record.source}: takes {len(longest.ids)} tokens") as caught:
        Packs(samples, len(longest.ids) - 1, seed=0, epochs=1)
    assert f"--pack {len(longest.ids)}" in (caught.value.hint or "")
    with pytest.raises(InputError, match="too few for 100 processes"):
        Packs(samples, 400, seed=0, epochs=1, processes=100)


@pytest.mark.parametrize("cached", [False, True])
def test_loss_and_gradients_are_those_of_single_samples(
    base: HubCheckpoint, samples: list[Sample], cached: bool
) -> None:
    """One pack against transformers alone on one sample at a time: its own masks, positions and loss."""
    model = base.load_model(torch.float32).eval()
    images: ImageInputs = FeatureInputs(model, base.spec, 0) if cached else PixelInputs(base.spec)
    batch = Collator.of(base, images)([tuple(samples)])
    outputs = model(**{key: value for key, value in batch.items() if not key.endswith("labels")})
    loss = answer_loss(outputs.logits, batch, answers(samples))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain = AutoModelForImageTextToText.from_pretrained(base.folder, dtype=torch.float32).eval()
    total = 0.0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        inputs: dict[str, Any] = {"input_ids": ids, "labels": ids.masked_fill(~torch.tensor([sample.learned]), -100)}
        if sample.images:
            kind = {"mm_token_type_ids": (ids == plain.config.image_token_id).long()}
            inputs |= {**kind, **PixelInputs(base.spec)(sample.images)}
        one = plain(**inputs).loss * sum(sample.learned) / answers(samples)
        one.backward()
        total += float(one.detach())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    text = {name for name in expected if "visual" not in name}
    assert gradients.keys() == (text if cached else expected.keys())
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)
        assert float(error) < 1e-5, name


def test_a_padded_batch_has_the_same_loss_as_a_pack(base: HubCheckpoint, samples: list[Sample]) -> None:
    model = base.load_model(torch.float32).eval()
    collate = Collator.of(base, PixelInputs(base.spec))
    losses = []
    with torch.no_grad():
        for rows in ([tuple(samples)], samples, [tuple(samples[:3])], [tuple(samples[3:])]):
            batch = collate(rows)
            logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
            losses.append(float(answer_loss(logits, batch, answers(samples))))
    packed, padded, first, second = losses
    assert padded == pytest.approx(packed, rel=1e-5)
    assert first + second == pytest.approx(packed, rel=1e-5)


def test_gradient_checkpointing_changes_no_gradient_of_a_pack(base: HubCheckpoint, samples: list[Sample]) -> None:
    found = []
    for checkpointing in (False, True):
        model = base.load_model(torch.float32)
        names = resolve_targets(model, base.modules, ["auto"], vision=False)
        torch.manual_seed(0)
        adapted = get_peft_model(model, lora_config(model, names, LoraSettings(rank=2)))
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
            adapted.enable_input_require_grads()
        adapted.train()
        batch = Collator.of(base, PixelInputs(base.spec))([tuple(samples)])
        outputs = adapted(**{key: value for key, value in batch.items() if not key.endswith("labels")})
        answer_loss(outputs.logits, batch, answers(samples)).backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    assert plain
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        np.testing.assert_allclose(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


def test_varlen_attention_computes_padded_batches_as_sdpa_does(base: HubCheckpoint, samples: list[Sample]) -> None:
    """Validation has masks and a cache, and no segments."""
    batches = Collator.of(base, PixelInputs(base.spec))
    found = []
    for name in ("sdpa", "torch_varlen"):
        model = base.load_model(torch.float32).eval()
        assert use_attention(model, name) == (name == "torch_varlen")
        assert model.config.text_config._attn_implementation == name
        assert model.config.vision_config._attn_implementation == "sdpa"
        batch = batches(samples)
        with torch.no_grad():
            logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
            prompts = batches.prompts(samples[:3])
            output = model.generate(**prompts, do_sample=False, max_new_tokens=4, pad_token_id=0)
        found.append((logits[batch["labels"] != -100], output))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1][1], found[0][1])


def varlen_spelt_out(
    q: Any, k: Any, v: Any, starts: Any, _: Any, longest: int, *__: Any, scale: float, window_size: Any, **more: Any
) -> Any:
    """What the documentation of torch's kernel for segments says, in plain words and on any device."""
    if more.get("enable_gqa"):
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
    assert longest == int((starts[1:] - starts[:-1]).max())
    rows = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        scores = scale * q[start:end].transpose(0, 1) @ k[start:end].permute(1, 2, 0)
        if window_size == (-1, 0):
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        else:
            assert window_size == (-1, -1)
        rows.append((torch.softmax(scores, -1) @ v[start:end].transpose(0, 1)).transpose(0, 1))
    return torch.cat(rows)


@torch.no_grad()
def test_a_quickened_tower_computes_the_same_and_tells_varlen_attention_where_pictures_and_windows_begin(
    base: HubCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_spelt_out)
    sizes = ((64, 96), (320, 200), (112, 64))
    pictures = [base.spec.arrays(Image.effect_noise(size, 80).convert("RGB")) for size in sizes]
    inputs = {key: torch.from_numpy(array) for key, array in base.spec.join(pictures).items()}
    model = base.load_model(torch.float32)
    tower = model.get_submodule(base.modules.vision_root)
    found = []
    for attention in ("", "sdpa", "torch_varlen"):
        as_published(tower)
        if attention:
            quicken(tower, attention)
        assert (tower.config._attn_implementation == "sdpa") == (attention != "torch_varlen")
        assert ("forward" in tower.patch_embed.proj.__dict__) == bool(attention)
        output = model.get_image_features(**inputs, return_dict=True)
        levels = getattr(output, "deepstack_features", None) or []
        found.append([*output.pooler_output, *(feature for level in levels for feature in level)])
    for ours in found[1:]:
        for one, other in zip(ours, found[0], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@torch.no_grad()
def test_a_pack_with_pixels_keeps_its_segments_from_the_tower(
    base: HubCheckpoint, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tower is trained or divided, the whole model gets the pack, and hands its segments on to the tower."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_spelt_out)
    found = []
    for name in ("sdpa", "torch_varlen"):
        model = base.load_model(torch.float32).eval()
        quicken(model.get_submodule(base.modules.vision_root), name)
        segments = use_attention(model, name)
        batch = Collator.of(base, PixelInputs(base.spec), segments=segments)([tuple(samples)])
        assert ("cu_seq_lens_q" in batch) == (name == "torch_varlen") and "pixel_values" in batch
        found.append(model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits)
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for CUDA")
def test_varlen_attention_keeps_the_samples_of_a_pack_apart(base: HubCheckpoint, samples: list[Sample]) -> None:
    found = []
    for name in ("sdpa", "torch_varlen"):
        model = base.load_model(torch.bfloat16).cuda().eval()
        segments = use_attention(model, name)
        batch = Collator.of(base, PixelInputs(base.spec), segments=segments)([tuple(samples)])
        batch = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
        loss = answer_loss(logits, batch, answers(samples))
        loss.backward()
        weight = model.get_submodule(base.modules.blocks)[0].self_attn.q_proj.weight
        found.append((float(loss.detach()), weight.grad.float().flatten()))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-3)
    assert float(torch.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.99


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what this refuses")
def test_attention_that_is_not_there_is_named() -> None:
    assert choose_attention("auto", torch.bfloat16) == "sdpa"
    with pytest.raises(MissingDependency, match="flash_attention_2: it is not installed"):
        choose_attention("flash_attention_2", torch.bfloat16)
    assert json.dumps(choose_attention("sdpa", torch.float32)) == '"sdpa"'


@pytest.mark.parametrize("build", [build_llava, build_internvl, build_idefics3, build_llava_onevision, build_qwen2_vl])
def test_other_families_pack_to_the_loss_and_gradients_of_single_samples(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Tiles, padded squares and projectors; positions of one axis where there is no M-RoPE."""
    base = HubCheckpoint.open(build(tmp_path / "model"))
    path = write_records(tmp_path / "data", records=RECORDS[:4])
    samples = prepare(read_entries(path), base.family, base.spec, base.tokenizer)
    collate = Collator.of(base, PixelInputs(base.spec))
    found = []
    for rows in ([[tuple(samples)]], [[sample] for sample in samples]):
        model = base.load_model(torch.float32).eval()
        total = 0.0
        for row in rows:
            batch = collate(row)
            logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
            loss = answer_loss(logits, batch, answers(samples))
            loss.backward()
            total += float(loss.detach())
        found.append((total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (packed, gradients), (single, expected) = found
    assert packed == pytest.approx(single, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        if not name.endswith("k_proj.bias"):  # adds the same to all of a query's scores: its gradient is rounding
            error = (gradient - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)
            assert float(error) < 1e-5, name

"""The second committed checkpoint: an ordinary InternVL, the network that was trained, and good at its job."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import batches
import render
import scenes
from blueprint import SLOT, Blueprint
from builders import TINY_INTERNVL
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.families import get_family
from families.reference import load_processor, question
from internvl import TileView, TinyInternVL
from reference import load_model

FAMILY = get_family("internvl")
CONFIG = json.loads((TINY_INTERNVL / "config.json").read_text())


@pytest.fixture(scope="module")
def model() -> Any:
    """Transformers' model in float32."""
    return load_model(TINY_INTERNVL)


@pytest.fixture(scope="module")
def blueprint() -> Blueprint:
    return Blueprint.open(TINY_INTERNVL)


@pytest.fixture(scope="module")
def assets() -> render.Assets:
    return render.load_assets()


def draw(assets: render.Assets, scene: scenes.Scene) -> torch.Tensor:
    """The picture [1, H, W, 3] of a scene, in whole values of 0 to 255."""
    things, photos = (torch.from_numpy(array) for array in render.pack([scene]))
    return render.render(assets, things, photos, *scene.size).round()


def image_of(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture[0].byte().numpy())


def test_it_is_an_internvl_with_every_part_of_the_family(model: Any) -> None:
    assert type(model).__name__ == CONFIG["architectures"][0] == "InternVLForConditionalGeneration"
    assert CONFIG["text_config"]["model_type"] == "qwen3" and CONFIG["downsample_ratio"] == 0.5
    assert sum(parameter.numel() for parameter in model.parameters()) < 25e6
    path = TINY_INTERNVL / "model.safetensors"
    assert path.stat().st_size < 45e6
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("text", ["Please provide the box of <ref>the left clock</ref>", "a\n{{ b }}"])
def test_the_chat_template_renders_the_familys_pieces(text: str) -> None:
    tokenizer = load_processor(TINY_INTERNVL).tokenizer
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == FAMILY.chat.render(text, 1)


@pytest.mark.parametrize("canvas", range(len(scenes.CANVASES)))
def test_the_network_that_was_trained_is_transformers_own(
    model: Any, blueprint: Blueprint, assets: render.Assets, canvas: int
) -> None:
    """Tiles, tokens and logits of several queries to one picture equal those of transformers, one after the other."""
    network, view = TinyInternVL(CONFIG), TileView(blueprint, canvas, "cpu")
    network.load_state_dict({name: parameter.detach() for name, parameter in model.named_parameters()})
    rng = random.Random(canvas)
    scene = scenes.draw_scene(rng, scenes.PHOTOS_OF["test"], scenes.KNOWN, canvas)
    asked = [scenes.draw_phrase(rng, scene, scenes.KNOWN) for _ in range(4)]
    tokens, spans = batches.tokenise(blueprint, canvas, [asked])
    picture = draw(assets, scene)
    patches, sequence = view.patches(picture), view.sequences(torch.from_numpy(tokens))
    with torch.inference_mode():
        logits = network(patches, sequence, view)[:, view.queries] @ network.head.T
    tiles, side = patches.shape[1], view.side
    across = side // 14
    pixels = patches.view(tiles, across, across, 3, 14, 14).permute(0, 3, 1, 4, 2, 5).reshape(tiles, 3, side, side)
    for slot, (ours, query) in enumerate(zip(logits[0].split(SLOT), asked, strict=True)):
        theirs_inputs = question(TINY_INTERNVL, image_of(picture), FAMILY.ground_prompt.format(phrase=query.text))
        start, end = spans[0, slot]
        ids = torch.cat([sequence[0, : view.queries.start], torch.from_numpy(tokens[0, slot, :end].astype(np.int64))])
        assert ids[: view.queries.start + start].tolist() == theirs_inputs["input_ids"][0].tolist()
        # A level that Pillow rounded the other way here and there.
        assert (pixels - theirs_inputs["pixel_values"]).abs().max() < 5 / 255 / 0.224
        with torch.inference_mode():
            theirs = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), pixel_values=pixels)
        expected = theirs.logits[0, view.queries.start :]
        assert expected.abs().max() > 5
        torch.testing.assert_close(ours[:end], expected, atol=2e-4, rtol=2e-4)


def answers(
    model: Any, blueprint: Blueprint, assets: render.Assets, seed: int, absent: float
) -> list[tuple[scenes.Query, ParsedAnswer]]:
    """Phrases about scenes on the test photographs, and what transformers' model says to them."""
    rng, said = random.Random(seed), []
    tokenizer = load_processor(TINY_INTERNVL).tokenizer
    for number in range(12):
        scene = scenes.draw_scene(rng, scenes.PHOTOS_OF["test"], scenes.KNOWN, number % len(scenes.CANVASES))
        query = scenes.draw_phrase(rng, scene, scenes.KNOWN, absent)
        picture = image_of(draw(assets, scene))
        inputs = question(TINY_INTERNVL, picture, FAMILY.ground_prompt.format(phrase=query.text))
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=60)
        text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        geometry = blueprint.spec.plan(*scene.size).geometry
        said.append((query, parse(text.partition("<|im_end|>")[0], geometry, FAMILY.box_format)))
    return said


def test_it_finds_what_phrases_mean_and_says_when_the_object_is_absent(
    model: Any, blueprint: Blueprint, assets: render.Assets
) -> None:
    found = [
        sample_iou([detection.box for detection in answer.detections], query.boxes)
        for query, answer in answers(model, blueprint, assets, 100, absent=0.0)
        if query.boxes
    ]
    assert len(found) >= 10 and np.mean([overlap >= 0.5 for overlap in found]) >= 0.9 and np.mean(found) >= 0.82
    assert sum(answer.refused for _, answer in answers(model, blueprint, assets, 200, absent=1.0)) >= 10

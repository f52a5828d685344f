"""The committed checkpoint: an ordinary Qwen3-VL, the same network as the one that was trained, and good at its job."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

import batches
import render
import scenes
from blueprint import SLOT, Blueprint
from builders import TINY_MODEL
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.families import get_family
from qwen3_vl import QwenView, TinyQwen3VL
from reference import load_model, load_tokenizer

FAMILY = get_family("qwen3_vl")
CONFIG = json.loads((TINY_MODEL / "config.json").read_text())


@pytest.fixture(scope="module")
def model() -> Any:
    """Transformers' model in float32."""
    return load_model(TINY_MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY_MODEL)


@pytest.fixture(scope="module")
def processor() -> Any:
    factory: Any = transformers.AutoImageProcessor
    return factory.from_pretrained(TINY_MODEL, backend="pil")


@pytest.fixture(scope="module")
def assets() -> render.Assets:
    return render.load_assets()


def draw(assets: render.Assets, layouts: list[scenes.Scene]) -> list[Image.Image]:
    """Pictures of scenes of one size."""
    things, photos = (torch.from_numpy(array) for array in render.pack(layouts))
    pictures = render.render(assets, things, photos, *layouts[0].size).round().byte().numpy()
    return [Image.fromarray(picture) for picture in pictures]


def generate(model: Any, tokenizer: Any, processor: Any, pictures: list[Image.Image], texts: list[str]) -> list[str]:
    """Greedy answers of transformers to one text about each picture; the pictures have one size."""
    pixels = processor(images=pictures, return_tensors="pt")
    image_tokens = int(pixels["image_grid_thw"][0].prod()) // processor.merge_size**2
    prompts = []
    for text in texts:
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompts.append(prompt.replace("<|image_pad|>", "<|image_pad|>" * image_tokens))
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=(ids == model.config.image_token_id).long(),
            pixel_values=pixels["pixel_values"],
            image_grid_thw=pixels["image_grid_thw"],
            max_new_tokens=60,
        )
    return [str(text) for text in tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)]


def answers(
    model: Any, tokenizer: Any, processor: Any, assets: render.Assets, asked: list[tuple[scenes.Scene, scenes.Query]]
) -> list[ParsedAnswer]:
    """What the model says to phrases about scenes of one size."""
    pictures = draw(assets, [scene for scene, _ in asked])
    texts = [FAMILY.ground_prompt.format(phrase=query.text) for _, query in asked]
    rows, columns = processor(images=pictures[:1], return_tensors="pt")["image_grid_thw"][0, 1:].tolist()
    geometry = Geometry(pictures[0].width, pictures[0].height, columns * 16, rows * 16)
    return [parse(text, geometry, FAMILY.box_format) for text in generate(model, tokenizer, processor, pictures, texts)]


def held_out(seed: int, canvas: int, count: int, absent: float) -> list[tuple[scenes.Scene, scenes.Query]]:
    """Phrases about scenes on the test photographs: all about absent objects (1.0) or none (0.0)."""
    rng = random.Random(seed)
    asked: list[tuple[scenes.Scene, scenes.Query]] = []
    while len(asked) < count:
        scene = scenes.draw_scene(rng, scenes.PHOTOS_OF["test"], scenes.KNOWN, canvas)
        query = scenes.draw_phrase(rng, scene, scenes.KNOWN, absent)
        if bool(query.boxes) == (absent == 0):
            asked.append((scene, query))
    return asked


def test_it_is_a_qwen3_vl_with_every_part_of_the_family(model: Any) -> None:
    assert type(model).__name__ == CONFIG["architectures"][0] == "Qwen3VLForConditionalGeneration"
    text, vision = model.config.text_config, model.config.vision_config
    assert vision.deepstack_visual_indexes == [2, 5] and (vision.patch_size, vision.spatial_merge_size) == (16, 2)
    assert text.rope_parameters["mrope_interleaved"] and text.rope_parameters["mrope_section"] == [12, 10, 10]
    assert text.num_key_value_heads < text.num_attention_heads and text.tie_word_embeddings
    assert 10e6 < sum(parameter.numel() for parameter in model.parameters()) < 20e6


def test_the_weights_are_small_bf16_and_complete(model: Any) -> None:
    path = TINY_MODEL / "model.safetensors"
    assert path.stat().st_size < 45e6
    with safe_open(path, framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 (not a mapping)
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}


def test_every_digit_is_a_token_and_text_comes_back(tokenizer: Any) -> None:
    assert 1000 < len(tokenizer) <= CONFIG["text_config"]["vocab_size"]
    tokens = tokenizer.tokenize('[{"bbox_2d": [103, 24, 576, 1000], "label": "the owl above the door"}]')
    digits = [token for token in tokens if any(char.isdigit() for char in token)]
    assert all(len(token) == 1 for token in digits) and "".join(digits) == "2103245761000"
    rng = random.Random(0)
    texts = [
        "naïve café\t42\r\n\n  “quotes” 漢字 🦉",
        "the jack-o'-lantern's",
        *(entry["name"] for entry in scenes.OBJECTS),
    ]
    texts += ["".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x400, 0x500)])) for _ in range(40))]
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_qwens_and_never_come_apart(tokenizer: Any) -> None:
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        token = "<|" + name.removesuffix("_token_id").replace("image", "image_pad").replace("video", "video_pad") + "|>"
        assert tokenizer.convert_tokens_to_ids(token) == CONFIG[name]
        assert tokenizer(f"a{token}b").input_ids.count(CONFIG[name]) == 1
    assert tokenizer.eos_token == FAMILY.chat.end


@pytest.mark.parametrize(
    "text", ["Locate the left clock and output its bbox coordinates in JSON format.", "a\n{{ b }}"]
)
def test_the_chat_template_renders_the_familys_pieces(tokenizer: Any, text: str) -> None:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == FAMILY.chat.render(text, 1)
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "[]"}], tokenize=False)
    assert answered == FAMILY.chat.render(text, 1) + "[]" + FAMILY.chat.end + "\n"


@pytest.mark.parametrize("canvas", range(len(scenes.CANVASES)))
def test_the_network_that_was_trained_is_transformers_own(
    model: Any, processor: Any, assets: render.Assets, canvas: int
) -> None:
    """Several queries to one image, patches of our resize: the logits equal those of one query after the other."""
    blueprint = Blueprint.open(TINY_MODEL)
    network, view = TinyQwen3VL(CONFIG), QwenView(blueprint, canvas, "cpu")
    network.load_state_dict({name: parameter.detach() for name, parameter in model.named_parameters()})
    rng = random.Random(canvas)
    scene = scenes.draw_scene(rng, scenes.PHOTOS_OF["test"], scenes.KNOWN, canvas)
    tokens, spans = batches.tokenise(blueprint, canvas, [batches.ask(rng, scene, scenes.KNOWN)])
    picture = draw(assets, [scene])[0]
    patches = view.patches(torch.from_numpy(np.asarray(picture, dtype=np.float32))[None])
    sequence = view.sequences(torch.from_numpy(tokens))
    with torch.inference_mode():
        logits = network(patches, sequence, view)[:, view.queries] @ network.head.T
    pixels = processor(images=picture, return_tensors="pt")
    width, height = view.resized
    assert pixels["image_grid_thw"].tolist() == [[1, height // 16, width // 16]]
    # Two frames in transformers' patches, and a level that Pillow rounded the other way here and there.
    theirs_patches = pixels["pixel_values"].view(-1, 3, 2, 16 * 16)[:, :, 0].reshape(patches[0].shape)
    assert (patches[0] - theirs_patches).abs().max() < 5 / 127.5
    start = view.queries.start
    for slot, ours in enumerate(logits[0].split(SLOT)):
        length = int(spans[0, slot, 1])
        query = torch.from_numpy(tokens[0, slot, :length].astype(np.int64))
        alone = torch.cat([sequence[0, :start], query])[None]
        with torch.inference_mode():
            theirs = model(
                input_ids=alone,
                attention_mask=torch.ones_like(alone),
                mm_token_type_ids=(alone == CONFIG["image_token_id"]).long(),
                pixel_values=patches[0].view(-1, 3, 1, 16 * 16).expand(-1, -1, 2, -1).flatten(1),
                image_grid_thw=pixels["image_grid_thw"],
            ).logits[0, start:]
        assert theirs.abs().max() > 5
        torch.testing.assert_close(ours[:length], theirs, atol=1e-4, rtol=1e-4)


def test_it_finds_what_phrases_mean_on_photographs_it_never_saw(
    model: Any, tokenizer: Any, processor: Any, assets: render.Assets
) -> None:
    overlaps: list[float] = []
    for canvas in (0, 2, 4):
        asked = held_out(100 + canvas, canvas, 8, absent=0.0)
        for (_, query), answer in zip(asked, answers(model, tokenizer, processor, assets, asked), strict=True):
            assert answer.complete, answer.problem
            overlaps.append(sample_iou([detection.box for detection in answer.detections], query.boxes))
    assert len(overlaps) == 24
    assert np.mean([overlap >= 0.5 for overlap in overlaps]) >= 0.9
    assert np.mean(overlaps) >= 0.82


def test_it_says_so_when_the_object_is_absent(
    model: Any, tokenizer: Any, processor: Any, assets: render.Assets
) -> None:
    said = answers(model, tokenizer, processor, assets, held_out(200, 1, 12, absent=1.0))
    assert Counter(answer.refused for answer in said)[True] >= 10

"""Pictures, placeholders and tokens of each family, bit for bit as transformers' own processor makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare, token_id
from edgetune_runtime.records import read_entries, read_records
from families import reference
from families.checkpoints import BUILDERS, build_llava
from families.conftest import Build, picture
from train.conftest import write_records

SIZES = [(640, 480), (90, 300), (128, 128), (701, 90), (37, 53)]  # width, height in pixels
WORDS = "Locate the red cup, please."


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", BUILDERS)
def test_arrays_and_tokens_are_those_of_transformers(name: str, size: tuple[int, int], tiny: Build) -> None:
    same_as_transformers(tiny(name), size)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in BUILDERS for size in [(500, 375), (200, 310)]])
def test_so_are_those_of_published_sizes(name: str, size: tuple[int, int], published: Build) -> None:
    same_as_transformers(published(name), size)


@pytest.mark.parametrize("legacy", [False, True], ids=["space first", "space after control tokens"])
def test_llama_tokenizers_of_both_kinds(legacy: bool, tmp_path: Path) -> None:
    same_as_transformers(build_llava(tmp_path, weights=False, legacy=legacy), (200, 310))


def same_as_transformers(folder: Path, size: tuple[int, int]) -> None:
    base = HubCheckpoint.open(folder)
    image = picture(*size)
    expected = reference.question(folder, image, WORDS)

    plan = base.spec.plan(*size)
    image_id = token_id(base.tokenizer, base.family.chat.image_token)
    ids = base.tokenizer.prompt(base.family.chat, WORDS, image_tokens=plan.pieces, image_token=image_id)
    assert ids.tolist() == expected["input_ids"][0].tolist()
    assert plan.image_tokens == ids.tolist().count(image_id)

    arrays = base.spec.join([base.spec.arrays(image)])
    told = {"pixel_values", "image_grid_thw", "image_sizes", "spatial_shapes"}
    told |= {"pixel_attention_mask"} if "spatial_shapes" in expected else set()  # rows of patches are padded there
    assert set(arrays) == set(expected) & told
    for key, array in arrays.items():
        assert np.array_equal(array, expected[key].numpy().reshape(array.shape)), key
    if "pixel_attention_mask" in set(expected) - told:  # left out, since the model takes its absence for this
        assert bool(expected["pixel_attention_mask"].all())


@pytest.mark.parametrize("name", BUILDERS)
def test_whole_conversations_are_those_of_the_chat_template(name: str, tiny: Build, tmp_path: Path) -> None:
    """Two rounds and a system prompt; LLaVA's template leaves out the end of an answer that its training had."""
    question, answer = "What is it?", "A cup [of tea]."
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"<image>{question}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    path = write_records(tmp_path / "data", records=[{"messages": messages, "images": ["0.png"]}])
    base = HubCheckpoint.open(tiny(name))
    [sample] = prepare(read_entries(path), base.family, base.spec, base.tokenizer)

    image = {"type": "image", "image": picture(*SIZES[0]).resize((160, 120))}
    words = [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    words[1]["content"] = [image, {"type": "text", "text": question}]
    expected = reference.tokenized(tiny(name), words, prompt=False)["input_ids"][0].tolist()
    end = token_id(base.tokenizer, base.family.chat.end)
    if end in expected:
        expected = expected[: len(expected) - expected[::-1].index(end)]  # the template's line break behind the last
        assert sample.ids == expected
    else:
        said = base.tokenizer.decode(expected).replace(" ", "")
        assert base.tokenizer.decode(sample.ids).replace(" ", "") == said
        assert sample.ids.count(end) == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_several_pictures_keep_their_order(name: str, tiny: Build, data: Path) -> None:
    base = HubCheckpoint.open(tiny(name))
    images = [picture(80, 60), picture(60, 100)]
    alone = [base.spec.join([base.spec.arrays(image)])["pixel_values"] for image in images]
    together = base.spec.join([base.spec.arrays(image) for image in images])["pixel_values"]
    axis = 1 if together.ndim == 5 else 0
    assert np.array_equal(together, np.concatenate(alone, axis=axis))
    tokens = sum(
        sample.ids.count(token_id(base.tokenizer, base.family.chat.image_token))
        for sample in prepare(read_records(data), base.family, base.spec, base.tokenizer)
    )
    assert tokens == sum(
        base.spec.plan(*size).image_tokens
        for size in [(160, 120), (90, 200), (128, 128), (160, 120), (128, 128), (90, 200)]
    )

"""The facts of a family against transformers' own models, templates and loaders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from builders import copy_checkpoint
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES, Family, family_of, get_family

BUILT = ["qwen3_vl", "qwen2_5_vl"]


def test_families_are_found_by_name_and_by_model_type() -> None:
    for name, family in FAMILIES.items():
        assert get_family(name) is family
        for model_type in family.model_types:
            assert family_of(model_type, [family.marker]) is family
            assert model_type in get_family(model_type).model_types


def test_unknown_family_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown model family 'qwen3vl'") as caught:
        get_family("qwen3vl")
    assert caught.value.hint == "did you mean 'qwen3_vl'?"
    with pytest.raises(InputError) as caught:
        get_family("xyz")
    assert caught.value.hint and "known are qwen3_vl, " in caught.value.hint


@pytest.mark.parametrize("name", BUILT)
def test_prompt_equals_the_chat_template(name: str, request: pytest.FixtureRequest) -> None:
    family = FAMILIES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(request.getfixturevalue(name))
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is it?"}]}

    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    assert family.chat.render("Where is it?", image_tokens=1) == prompt

    whole = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "There."}], tokenize=False)
    assert whole.startswith(prompt + "There." + family.chat.end)

    text_only = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert family.chat.render("Hi", image_tokens=0) == text_only


@pytest.mark.parametrize("name", BUILT)
def test_special_tokens_exist(name: str, request: pytest.FixtureRequest) -> None:
    family = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(name))
    for token in (*family.special_tokens.values(), *family.stop_tokens, family.chat.image_token):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


@pytest.mark.parametrize("name", BUILT)
def test_module_names_are_those_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    family = FAMILIES[name]
    modules = family.modules
    assert modules is not None
    model: Any = AutoModelForImageTextToText.from_pretrained(request.getfixturevalue(name))
    named = dict(model.named_modules())
    assert modules.text_root in named and modules.vision_root in named

    blocks = model.get_submodule(modules.blocks)
    for block in blocks:
        linears = {path for path, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        assert linears == set(modules.linears)
        for norm, readers in modules.norm_linears.items():
            assert norm in dict(block.named_children()) and set(readers) <= linears

    targets = {path for path in named if re.fullmatch(modules.lora_targets, path)}
    assert targets == {
        f"{modules.blocks}.{index}.{linear}" for index in range(len(blocks)) for linear in modules.linears
    }


def test_hub_names_of_qwen2_5_vl() -> None:
    modules = FAMILIES["qwen2_5_vl"].modules
    assert modules is not None
    # As in the index of Qwen/Qwen2.5-VL-3B-Instruct.
    assert modules.hub_name("model.visual.blocks.0.attn.qkv.weight") == "visual.blocks.0.attn.qkv.weight"
    assert modules.hub_name("model.language_model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert modules.hub_name("model.language_model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert modules.hub_name("lm_head.weight") == "lm_head.weight"
    for name in (
        "model.visual.merger.mlp.0.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
    ):
        assert modules.memory_name(modules.hub_name(name)) == modules.memory_name(name) == name


@pytest.mark.parametrize("name", BUILT)
def test_a_checkpoint_with_hub_names_loads_unchanged(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    modules = FAMILIES[name].modules
    assert modules is not None
    source: Path = request.getfixturevalue(name)
    folder = copy_checkpoint(source, tmp_path / "hub")
    model = AutoModelForImageTextToText.from_pretrained(source)
    tensors = {modules.hub_name(key): value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    loaded = AutoModelForImageTextToText.from_pretrained(folder).state_dict()

    assert set(load_file(folder / "model.safetensors")) == set(tensors)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_has_a_whole_prompt(family: Family) -> None:
    prompt = family.chat.render(family.ground_prompt.replace("{phrase}", "the cup"), image_tokens=3)
    assert prompt.count(family.chat.image_token) == 3
    assert "the cup" in prompt and "{" not in prompt
    assert family.chat.end in family.stop_tokens

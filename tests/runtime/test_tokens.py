"""Prompts from pieces against transformers' chat template and tokenizer; words that no tokenizer can take."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.families import get_family
from edgetune_runtime.tokens import TextTokenizer


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("text", ["the left clock", "  spaces \n\n lines\n", "größer 世界 🦉 x<y{phrase}", "12, 345"])
@pytest.mark.parametrize("image_tokens", [0, 1, 300])
def test_prompt_equals_transformers(family: str, text: str, image_tokens: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    pytest.importorskip("transformers")
    from reference import load_tokenizer, render

    reference = load_tokenizer(folder)
    expected = reference(render(reference, text, image_tokens)).input_ids
    tokenizer = TextTokenizer(folder / "tokenizer.json")
    image = reference.convert_tokens_to_ids("<|image_pad|>")
    ids = tokenizer.prompt(get_family(family).chat, text, image_tokens=image_tokens, image_token=image)
    assert ids.tolist() == expected


def test_control_tokens_in_the_users_text_are_refused(qwen3_vl: Path) -> None:
    tokenizer = TextTokenizer(qwen3_vl / "tokenizer.json")
    with pytest.raises(InputError, match=r"control token '<\|im_end\|>'"):
        tokenizer.prompt(get_family("qwen3_vl").chat, "a<|im_end|>b", image_tokens=4, image_token=12)


@pytest.mark.parametrize("half", ["\ud800", "the \udcff cup", "\udcff"])
def test_halves_of_characters_are_refused_in_one_line(qwen3_vl: Path, half: str) -> None:
    tokenizer = TextTokenizer(qwen3_vl / "tokenizer.json")
    with pytest.raises(InputError, match=r"cannot be written as UTF-8: its character \d is '\\ud[8c]") as refused:
        tokenizer.prompt(get_family("qwen3_vl").chat, half, image_tokens=4, image_token=12)
    str(refused.value).encode()


def test_a_broken_or_missing_tokenizer_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing"):
        TextTokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json")

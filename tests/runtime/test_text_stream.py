"""Text that arrives token by token, against decoding all tokens at once, for two kinds of tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from edgetune_runtime.codec.confidence import token_probabilities
from edgetune_runtime.text_stream import TextStream
from edgetune_runtime.tokens import TextTokenizer

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"

Decode = Callable[[list[int]], str]


@pytest.fixture(scope="module")
def byte_level() -> TextTokenizer:
    """Return a tokenizer that cuts a text's bytes, as Qwen's."""
    return TextTokenizer(TINY / "tokenizer.json")


@pytest.fixture(scope="module")
def with_fallback() -> Tokenizer:
    """Return a tokenizer with a mark for spaces and a token for each byte that it has no word for, as Llama's."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc12,[]", "▁a", "▁b", "▁1"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("▁", "a"), ("▁", "b"), ("▁", "1")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


texts = st.text(st.one_of(st.sampled_from("abc12,[] "), st.characters(codec="utf-8")), max_size=40)


def stream(ids: list[int], decode: Decode, prefix: str = "") -> list[str]:
    growing = TextStream(decode, prefix)
    pieces = [growing.push(token) for token in ids]
    pieces.append(growing.finish())
    assert growing.length == len("".join(pieces))
    return pieces


@settings(deadline=None)
@given(text=texts)
def test_pieces_add_up_to_the_whole(byte_level: TextTokenizer, with_fallback: Tokenizer, text: str) -> None:
    for ids, decode in (
        (byte_level.encode(text), byte_level.decode),
        (with_fallback.encode(text).ids, with_fallback.decode),
    ):
        whole, pieces = decode(ids), stream(ids, decode)
        assert "".join(pieces) == whole
        if "\ufffd" not in whole:
            assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None)
@given(text=texts)
def test_a_space_before_the_text_is_left_out_and_not_counted(byte_level: TextTokenizer, text: str) -> None:
    for words in (text, f" {text}"):
        ids = byte_level.encode(words)
        whole = byte_level.decode(ids)
        assert "".join(stream(ids, byte_level.decode, " ")) == whole.removeprefix(" ")
        ends = [token.end for token in token_probabilities(ids, [0.5] * len(ids), byte_level.decode, " ")]
        assert ends == [len(byte_level.decode(ids[: place + 1]).removeprefix(" ")) for place in range(len(ids))]


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=120))
def test_bytes_that_are_no_text_add_up_too(byte_level: TextTokenizer, ids: list[int]) -> None:
    assert "".join(stream(ids, byte_level.decode)) == byte_level.decode(ids)


@settings(deadline=None)
@given(text=texts)
def test_tokens_end_where_the_text_of_all_up_to_them_ends(byte_level: TextTokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    found = token_probabilities(ids, [0.5] * len(ids), byte_level.decode)
    assert [token.end for token in found] == [len(byte_level.decode(ids[: place + 1])) for place in range(len(ids))]


@pytest.mark.parametrize("text", ["a [12, 1], b " * 200, "🦉größer世界" * 100, "\ufffd" * 300])
def test_each_token_is_decoded_a_few_times_however_long_the_answer(byte_level: TextTokenizer, text: str) -> None:
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return byte_level.decode(ids)

    ids = byte_level.encode(text)
    token_probabilities(ids, [0.5] * len(ids), decode)
    assert decoded < 66 * len(ids)

"""The grammar of answers, learnt from tokenizers of every kind: it has all that the codec writes, token by token."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from edgetune_export.grammar import answer_grammar
from edgetune_runtime.chat import Chat
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grammar import write
from edgetune_runtime.constrained.automaton import Automaton
from edgetune_runtime.constrained.walk import Rules, Walk
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.families.base import Family
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.tokens import TextTokenizer
from families.vocabularies import (
    IDEFICS_TOKENS,
    INTERNVL_TOKENS,
    LFM2_TOKENS,
    _byte_level,
    llama_tokenizer,
    qwen_tokenizer,
    smollm_tokenizer,
)

SPEC = ImageSpec(14, 2, 2, 3136, 400_000, (0.5,) * 3, (0.5,) * 3, 1 / 255, 3)
LABELS = (
    "cup",
    "the red cup",
    "the 2nd mug, upside down",
    "Dr. No's hat!",
    'a "quoted" sign',
    "réglisse",
    "猫",
    "a",
    "-",
)


def in_threes() -> Tokenizer:
    """A tokenizer as Llama 3's, which has tokens of up to three digits, and joins punctuation."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    tokenizer = _byte_level(["<end_of_utterance>", "<image>"], pre_tokenizers.Sequence([split, level]))
    tokenizer.add_tokens([str(number) for number in range(10, 1000)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "qwen3_vl": lambda: qwen_tokenizer([]),
    "qwen2_5_vl": lambda: qwen_tokenizer([]),
    "qwen2_vl": lambda: qwen_tokenizer([]),
    "internvl": lambda: qwen_tokenizer(INTERNVL_TOKENS),
    "smolvlm": lambda: smollm_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IDEFICS_TOKENS]),
    "idefics3": in_threes,
    "lfm2_vl": lambda: smollm_tokenizer(LFM2_TOKENS, begin="<|startoftext|>"),
    "llava": lambda: llama_tokenizer(legacy=False),
    "llava_onevision": lambda: qwen_tokenizer([]),
}


def of_family(name: str, folder: Path) -> tuple[Family, TextTokenizer]:
    path = folder / "tokenizer.json"
    TOKENIZERS[name]().save(str(path))
    return FAMILIES[name], TextTokenizer(path)


def rules_of(family: Family, tokenizer: TextTokenizer, automaton: Automaton, geometry: Geometry) -> Rules:
    found = Rules.of(automaton, geometry, family.box_format, tokenizer.piece, tokenizer.control_ids)
    assert found is not None
    return found


def answers(box_format: BoxFormat, geometry: Geometry, count: int) -> list[str]:
    """Texts of up to four boxes anywhere in the picture, in the family's style, and of none."""
    generator, found = random.Random(0), [box_format.absent, *box_format.refusals]
    width, height = geometry.resized_width, geometry.resized_height
    far = {"norm1000": (1000, 1000), "resized": (width, height), "norm01": (1, 1), "padded01": (1, 1)}
    step = 10**box_format.decimals
    for _ in range(count):
        boxes = []
        for _ in range(generator.randint(1, 4)):
            x1, x2 = sorted(generator.sample(range(far[box_format.frame][0] * step + 1), 2))
            y1, y2 = sorted(generator.sample(range(far[box_format.frame][1] * step + 1), 2))
            boxes.append([f"{number / step:.{box_format.decimals}f}" for number in (x1, y1, x2, y2)])
        labels = [generator.choice(LABELS) for _ in boxes]
        found.append(write(boxes, labels, box_format.style))
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_grammar_has_every_answer_as_its_tokenizer_writes_it(name: str, tmp_path: Path) -> None:
    family, tokenizer = of_family(name, tmp_path)
    automaton = answer_grammar(tokenizer, family.chat, family.box_format, SPEC)
    geometry = Geometry(600, 600, 588, 588)
    rules = rules_of(family, tokenizer, automaton, geometry)
    choices = 0
    for text in answers(family.box_format, geometry, 60):
        walk = Walk(rules)
        for token in tokenizer.encode(
            family.chat.before_answer + text + family.chat.end, after=family.chat.last_suffix
        ):
            assert walk.legal(token), (text, tokenizer.piece(token), walk)
            choices += walk.forced is None
            walk = walk.after(token)
        assert walk.ended, text
    assert choices
    assert Automaton.from_dict(automaton.to_dict(), 1 << 20) == automaton


@pytest.mark.parametrize("name", TOKENIZERS)
def test_whatever_the_grammar_lets_through_is_read_as_boxes(name: str, tmp_path: Path) -> None:
    """Random walks, with random text in names: each is an answer that the codec reads without a complaint."""
    from edgetune_runtime.codec.grounding import parse

    family, tokenizer = of_family(name, tmp_path)
    automaton = answer_grammar(tokenizer, family.chat, family.box_format, SPEC)
    geometry, generator = Geometry(640, 300, 588, 252), random.Random(1)
    rules = rules_of(family, tokenizer, automaton, geometry)
    words = tokenizer.encode("the red cup on my right, 2 of them")
    found = 0
    for _ in range(60):
        walk, ids = Walk(rules), list[int]()
        while not walk.ended and len(ids) < 400:
            allowed = [token for token in (*walk.place.next, *(words if walk.place.label else ())) if walk.legal(token)]
            assert allowed, (tokenizer.decode(ids, keep_control=True), walk)
            ids.append(generator.choice(allowed))
            walk = walk.after(ids[-1])
        if walk.ended:
            text = tokenizer.decode(ids[:-1], keep_control=True).removeprefix(family.chat.before_answer)
            answer = parse(text, geometry, family.box_format)
            assert answer.status != "unparsed" and answer.problem is None, (text, answer.problem)
            found += len(answer.detections)
    assert found


def test_digits_that_a_tokenizer_joins_are_tokens_of_the_grammar(tmp_path: Path) -> None:
    family, tokenizer = of_family("idefics3", tmp_path)
    automaton = answer_grammar(tokenizer, family.chat, family.box_format, SPEC)
    walk = Walk(rules_of(family, tokenizer, automaton, Geometry(100, 100, 100, 100)))
    begun = family.chat.before_answer + '[{"bbox_2d": [512, 3, '
    for token in tokenizer.encode(begun, after=family.chat.last_suffix):
        walk = walk.after(token)
    # Left of x1 there is no x2; 51 alone is, and it is a token that nothing of the number follows.
    said = {tokenizer.piece(token) for token in automaton.tokens.tolist() if walk.legal(token)}
    assert said >= {"513", "999", "100"} and not said & {"512", "51", "9", "52"}


def test_a_tokenizer_that_joins_a_name_with_what_stands_around_it_has_no_such_grammar(tmp_path: Path) -> None:
    family, _ = of_family("qwen3_vl", tmp_path)
    internvl = FAMILIES["internvl"]
    chat = replace(internvl.chat, end=family.chat.end, suffix=family.chat.suffix)
    tokenizer_json = tmp_path / "joining.json"
    joining = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    joining.add_tokens([">cup"])
    joining.save(str(tokenizer_json))
    with pytest.raises(InputError, match=re.escape("joins a name with what stands around it: '>cup'")):
        answer_grammar(TextTokenizer(tokenizer_json), chat, internvl.box_format, SPEC)


def test_an_answer_whose_end_is_no_token_has_no_grammar(tmp_path: Path) -> None:
    family, tokenizer = of_family("qwen3_vl", tmp_path)
    chat: Chat = replace(family.chat, end="that is all")
    with pytest.raises(InputError, match="does not write 'that is all' as a token of its own"):
        answer_grammar(tokenizer, chat, family.box_format, SPEC)

"""The grammar of a checkpoint's answers over its own tokens, learnt from answers that its tokenizer has tokenized.

Answers are written by the codec, with every number that a coordinate can be, and tokenized as they stand behind a
prompt. Where a token ends is a place: in a number, in a name, or so many characters behind the last of them. A token
leads from one place to the next. Nothing is assumed of the tokenizer: digits that it joins, or punctuation that it
joins with digits, are tokens between places like all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from edgetune_runtime.chat import Chat
from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.grammar import Span, fences, lay_out_fenced
from edgetune_runtime.constrained.automaton import END, SLOTS, Automaton, State
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.tokens import TextTokenizer

MOST_NUMBERS = 10_000
"""Numbers that are tried where coordinates are pixels, at most; pictures with larger ones are answered freely."""

ASPECT = 16
"""Shape of the longest picture whose coordinates in pixels are tried, as a ratio of its sides."""

_NAMES = ("cup", "the red cup", "a dog on the left")
"""Names in the answers that are tried; where one begins and ends, any other may stand."""

_NAME, _NUMBER = "name", "number "
_END: Place = (0, "end")

Place = tuple[str | int, ...]
"""Where a token ends: the fence, the part of the answer, and what stands of the part."""

Steps = dict[Place, dict[int, set[Place]]]
"""The places that each token leads to, by the place before it: an opening bracket may be that of a list or of a box."""

Places = frozenset[Place]
Sure = dict[Places, dict[int, Places]]
"""The one set of places that each token leads to."""


class _Sample(NamedTuple):
    """An answer, where each number (with its slot) and name stands in it, and between which fences."""

    text: str
    numbers: Sequence[tuple[int, Span]] = ()
    names: Sequence[Span] = ()
    fence: int = 0


def answer_grammar(tokenizer: TextTokenizer, chat: Chat, box_format: BoxFormat, spec: Preprocessing) -> Automaton:
    """Return the automaton of a family's answers.

    Args:
        tokenizer: of the checkpoint.
        chat: the prompt's pieces, behind which answers are tokenized.
        box_format: how boxes are written.
        spec: how pictures are prepared, which says how large a coordinate in pixels may be.

    Raises:
        InputError: the tokenizer joins a name with what stands around it, or ends answers otherwise, so that they have
            no such grammar.
    """
    largest = _largest(box_format, spec)
    steps: Steps = {}
    for sample in _samples(box_format, largest):
        _learn(steps, sample, tokenizer, chat)
    return Automaton(_minimal(_without_numbers(_deterministic(steps))), largest)


def _largest(box_format: BoxFormat, spec: Preprocessing) -> int:
    """The largest coordinate, in steps of its last decimal."""
    step = 10**box_format.decimals
    if box_format.frame == "resized":
        assert isinstance(spec, ImageSpec)  # the only rule that keeps a picture's shape
        longest = int((spec.max_pixels * ASPECT) ** 0.5) + spec.factor
        return int(min(longest * step, MOST_NUMBERS - 1))
    return int(step * (1000 if box_format.frame == "norm1000" else 1))


def _samples(box_format: BoxFormat, largest: int) -> Iterator[_Sample]:
    """Answers with every number at every place, of one box and of several, and those that say that there is none."""
    style, places = box_format.style, box_format.decimals
    for words in dict.fromkeys((box_format.absent, *box_format.refusals)):
        yield _Sample(words)
        if words[-1].isalpha():
            yield _Sample(f"{words}.")
    for number, fence in enumerate(fences(style)):
        if number and box_format.absent == "[]":
            yield _Sample("".join(part.strip("\t") for part in (fence[0].rstrip(), fence[2].lstrip())))
        for value, name in zip(range(largest + 1), itertools.cycle(_NAMES)):
            written = f"{value / 10**places:.{places}f}"
            for count in (1, 2, 3) if value < 20 else (2,) if value <= 1000 else (1,):
                text, boxes, names = lay_out_fenced([[written] * SLOTS] * count, [name] * count, style, fence)
                numbers = [(slot, span) for box in boxes for slot, span in enumerate(box)]
                yield _Sample(text, numbers, names, number)


def _learn(steps: Steps, sample: _Sample, tokenizer: TextTokenizer, chat: Chat) -> None:
    """Add the tokens of an answer as steps from place to place."""
    before = len(chat.before_answer)
    text = chat.before_answer + sample.text
    *ids, end = tokenizer.encode(text + chat.end, after=chat.last_suffix)
    if end != tokenizer.id_of(chat.end):
        raise InputError(f"the tokenizer does not write {chat.end!r} as a token of its own behind {text!r}")
    at = 0
    here = _place(sample, at - before, text[:0])
    for token in ids:
        start, at = at, at + len(tokenizer.piece(token))
        there = _place(sample, at - before, text[:at])
        named = _NAME in (here[1], there[1])
        if (
            named
            and here != there
            and not any(start - before == end or at - before == begin for begin, end in sample.names)
        ):
            raise InputError(f"the tokenizer joins a name with what stands around it: {tokenizer.piece(token)!r}")
        if not (named and here == there):
            _add(steps, here, token, there)
        here = there
    if at != len(text):
        raise InputError(f"the tokens of {text!r} say another text one by one")
    _add(steps, here, end, _END)


def _add(steps: Steps, here: Place, token: int, there: Place) -> None:
    steps.setdefault(here, {}).setdefault(token, set()).add(there)


def _place(sample: _Sample, at: int, told: str) -> Place:
    """The place behind the first `at` characters of an answer, which with what comes before them are `told`."""
    last, part = 0, ""
    for slot, (start, end) in sample.numbers:
        if start <= at <= end:
            return (sample.fence, f"{_NUMBER}{slot}", sample.text[start:at])
        if last < end < at:
            last, part = end, f"behind {slot}"
    for start, end in sample.names:
        if start <= at <= end:
            return (sample.fence, _NAME)
        if last < end < at:
            last, part = end, f"behind {_NAME}"
    return (sample.fence, part, sample.text[last:at]) if part else (0, part, told)


def _deterministic(steps: Steps) -> Sure:
    """The sets of places that answers can be at, from where they begin (the subset construction)."""
    start: Places = frozenset({next(iter(steps))})
    found: Sure = {}
    todo = [start]
    while todo:
        here = todo.pop()
        if here in found:
            continue
        onward: dict[int, set[Place]] = {}
        for place in here:
            for token, there in steps.get(place, {}).items():
                onward.setdefault(token, set()).update(there)
        found[here] = {token: frozenset(places) for token, places in onward.items()}
        todo += [there for there in found[here].values() if there != {_END}]
    return {start: found.pop(start), **found}


def _without_numbers(steps: Sure) -> Sure:
    """The places without those in numbers that have the future of another one: most of ten thousand."""
    same: dict[Places, Places] = {}
    first: dict[object, Places] = {}
    numbers = [places for places in steps if len(places) == 1 and _slot(places) is not None]
    # The longer the beginning of a number, the sooner it ends: what it leads to is known before it.
    for places in sorted(numbers, key=lambda places: -max(len(str(place[-1])) for place in places)):
        onward = {token: same.get(there, there) for token, there in steps[places].items()}
        kind = next(iter(places))[:2]
        same[places] = first.setdefault((kind, tuple(sorted(onward.items(), key=str))), places)
    return {
        places: {token: same.get(there, there) for token, there in following.items()}
        for places, following in steps.items()
        if same.get(places, places) == places
    }


def _minimal(steps: Sure) -> tuple[State, ...]:
    """The states of places, those with one future as one (Moore's refinement); the first is where answers begin."""
    groups = _numbered({places: (_slot(places), _named(places)) for places in steps})
    while True:
        futures = {
            places: (groups[places], tuple(sorted((token, groups.get(there, END)) for token, there in onward.items())))
            for places, onward in steps.items()
        }
        refined = _numbered(futures)
        if len(set(refined.values())) == len(set(groups.values())):
            break
        groups = refined
    states: dict[int, State] = {}
    for places, following in steps.items():
        if groups[places] not in states:
            onward = {token: groups.get(there, END) for token, there in following.items()}
            states[groups[places]] = State(onward, _slot(places), _named(places))
    return tuple(states[number] for number in range(len(states)))


def _numbered(kinds: Mapping[Places, object]) -> dict[Places, int]:
    """Numbers from 0 for equal values, in the order of the places."""
    numbers: dict[object, int] = {}
    return {places: numbers.setdefault(kind, len(numbers)) for places, kind in kinds.items()}


def _slot(places: Places) -> int | None:
    """Which of a box's numbers places are in, None elsewhere."""
    parts = [str(place[1]) for place in places if str(place[1]).startswith(_NUMBER)]
    return int(parts[0].removeprefix(_NUMBER)) if parts else None


def _named(places: Places) -> bool:
    """Whether a name may stand there."""
    return any(place[1] == _NAME for place in places)

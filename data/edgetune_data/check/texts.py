"""What is wrong with the words: control tokens, phrases that name nothing or two things, contradicting answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from edgetune_data.check.findings import Finding, Numbers
from edgetune_data.check.material import Material
from edgetune_data.read import Item, turn_text
from edgetune_data.text_boxes import written
from edgetune_runtime.bench.metrics import iou
from edgetune_runtime.records.forms import CAPTION_REQUEST, Conversation, Parts

# A pointing word or a word for anything, alone, after an article or a pointing word, or numbered: "that thing",
# "object 2". With any other word beside it ("the red object") it says something.
_VAGUE = (
    r"(?:(?:the|a|an|this|that|these|those|my|some|one)\s+)?"
    r"(?:thing|things|object|objects|item|items|stuff|something|anything|one|ones|it|this|that|these|those|them|"
    r"here|there|target|region|area|part|box|bbox|place|spot|unknown|misc|other|none|null|nan|n/?a|todo|test)"
    r"[\s_-]*\d*"
)

_PAIRS = 1 << 20
"""Most pairs of boxes whose overlap is looked at; longer lists are the same only if their boxes are."""


def check(material: Material) -> Iterator[Finding]:
    """Yield what is wrong with the texts."""
    yield from _control_tokens(material)
    yield from _text_boxes(material)
    yield from _vague(material)
    yield from _ambiguous(material)
    yield from _conflicting(material)


def _control_tokens(material: Material) -> Iterator[Finding]:
    if material.model is None:
        return
    for entry in material.entries:
        for text in entry.texts:
            spelled = [token for token in material.model.control if token in text]
            if spelled:
                yield material.finding("control-token", [entry], f"{_short(text)} spells {', '.join(spelled)}")
                break


def _text_boxes(material: Material) -> Iterator[Finding]:
    for entry in material.entries:
        boxes = written(entry.form) if entry.form is not None else []
        if boxes:
            more = f" and {len(boxes) - 1} more" if len(boxes) > 1 else ""
            yield material.finding(
                "text-box",
                [entry],
                f"the box {_short(boxes[0].text)}{more} is written as text",
                image=entry.images[0] if entry.images else None,
                badness=len(boxes),
            )


def _vague(material: Material) -> Iterator[Finding]:
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in (_VAGUE, *material.limits.vague)]
    by_phrase: dict[str, list[Item]] = {}
    for entry in material.entries:
        for phrase in dict.fromkeys(map(normal, phrases(entry))):
            if any(pattern.fullmatch(phrase) for pattern in patterns):
                by_phrase.setdefault(phrase, []).append(entry)
    for phrase, entries in by_phrase.items():
        first = entries[0]
        yield material.finding(
            "vague-phrase",
            entries,
            f"{_short(phrase)} names nothing ({_times(entries)})",
            image=first.images[0] if first.images else None,
            boxes=[place.numbers for place in first.places],
            badness=len(entries),
        )


def _ambiguous(material: Material) -> Iterator[Finding]:
    asked: dict[tuple[str, str], list[Item]] = {}
    for entry in material.entries:
        if entry.kind == "ground" and isinstance(entry.form, Parts):
            key = (material.identity(entry.images[0]), normal(entry.form.text))
            asked.setdefault(key, []).append(entry)
    for (_, phrase), entries in asked.items():
        answers = [[place.numbers for place in entry.places] for entry in entries]
        apart = [
            (entry, boxes)
            for entry, boxes in zip(entries[1:], answers[1:], strict=True)
            if not same_boxes(answers[0], boxes, material.limits.same_box)
        ]
        if apart:
            told = [entries[0], *(entry for entry, _ in apart)]
            yield material.finding(
                "ambiguous-phrase",
                told,
                f"{_short(phrase)} has {len(told)} answers in {entries[0].images[0].name}: lines {_list(told)}",
                image=entries[0].images[0],
                boxes=[*answers[0], *(box for _, boxes in apart for box in boxes)],
                badness=len(told),
            )


def _conflicting(material: Material) -> Iterator[Finding]:
    asked: dict[tuple[str, ...], list[tuple[Item, frozenset[str]]]] = {}
    for entry in material.entries:
        for question, answers in questions(entry):
            pictures = [material.identity(image) for image in entry.images]
            asked.setdefault((*pictures, normal(question)), []).append((entry, frozenset(map(normal, answers))))
    for (*_, question), told in asked.items():
        first = told[0][1]
        against = [(entry, answers) for entry, answers in told[1:] if not answers & first]
        if against:
            entries = [told[0][0], *(entry for entry, _ in against)]
            said = " / ".join(sorted({min(answers) for _, answers in [told[0], *against]}))
            yield material.finding(
                "conflicting-answer",
                entries,
                f"{_short(question)} is answered {_short(said)}: lines {_list(entries)}",
                image=entries[0].images[0] if entries[0].images else None,
                badness=len(entries),
            )


def phrases(entry: Item) -> list[str]:
    """Return what an entry calls things: the phrase to find and the names of boxes."""
    if isinstance(entry.form, Parts) and entry.form.boxes is not None:
        return [entry.form.text, *entry.labels]
    return entry.labels if isinstance(entry.form, Conversation) else []


def questions(entry: Item) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each question of an entry that is answered with text, and the accepted answers.

    Of a conversation only the first question counts: what follows may lean on it.
    """
    if isinstance(entry.form, Parts) and entry.form.boxes is None:
        if entry.form.text != CAPTION_REQUEST:  # a picture may well have several captions
            yield entry.form.text, entry.form.answers
    elif isinstance(entry.form, Conversation) and not entry.places:
        turns = [turn for turn in entry.form.turns if turn.role != "system"]
        yield turn_text(turns[0].parts), [turn_text(turns[1].parts)]


def same_boxes(left: Sequence[Numbers], right: Sequence[Numbers], least: float) -> bool:
    """Whether every box of either list overlaps one of the other with at least this IoU; both may be empty.

    Lists of over a thousand boxes are compared number by number, or hostile files would take hours.
    """
    if not left or not right:
        return not left and not right
    if len(left) * len(right) > _PAIRS:
        return sorted(left) == sorted(right)
    overlap = iou(left, right)
    return bool((overlap.max(axis=0) >= least).all() and (overlap.max(axis=1) >= least).all())


def normal(text: str) -> str:
    """Return a text without what does not tell phrases apart: case, spaces, a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".?!")


def _short(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else text[: longest - 1] + "…")


def _times(entries: Sequence[Item]) -> str:
    return "1 record" if len(entries) == 1 else f"{len(entries)} records"


def _list(entries: Iterable[Item]) -> str:
    lines = [entry.line for entry in entries]
    return ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")

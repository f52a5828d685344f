"""Boxes, points and answers in words: what such requests ask of a session, and what goes back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgetune_runtime.answer import Answer
from edgetune_runtime.errors import InputError
from edgetune_runtime.serve.model import Turn
from edgetune_runtime.serve.pictures import Pictures
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.timing import Timings

GROUND_TOKENS, ASK_TOKENS = 128, 256
"""Longest answers where a request does not say, those of `Session`."""


@dataclass(frozen=True)
class Answered:
    """One phrase's answer about a picture, or a question's (then without boxes).

    Attributes:
        phrase: what was asked.
        answer: of the session; for a question its words.
        image: the picture, upright.
        load: seconds of reading it.
        timings: what the answer cost.
    """

    phrase: str
    answer: Answer | str
    image: Image.Image
    load: float
    timings: Timings


def grounding(body: Mapping[str, Any], pictures: Pictures) -> Any:
    """Work that finds what each phrase of a checked request names, one after the other."""
    phrases = _placed(body["phrase"])
    tokens = body.get("max_new_tokens", GROUND_TOKENS)

    def work(turn: Turn) -> Iterator[Answered]:
        words = [_request(turn, phrase, place) for place, phrase in phrases]
        image, load = _loaded(body, pictures)
        for number, ((_, phrase), prompt) in enumerate(zip(phrases, words, strict=True)):
            answer = refusing(
                lambda prompt=prompt: turn.session.answer(image, prompt, max_new_tokens=tokens, cancel=turn.cancel)
            )
            yield Answered(phrase, answer, image, 0.0 if number else load, answer.timings)

    return work


def asking(body: Mapping[str, Any], pictures: Pictures) -> Any:
    """Work that answers a checked request's question."""
    tokens = body.get("max_new_tokens", ASK_TOKENS)

    def work(turn: Turn) -> Iterator[Answered]:
        image, load = _loaded(body, pictures)

        def ask() -> tuple[str, Timings]:
            stream = turn.session.stream(image, body["question"], max_new_tokens=tokens, cancel=turn.cancel)
            text = "".join(stream).strip()
            assert stream.timings is not None
            return text, stream.timings

        text, timings = refusing(ask)
        yield Answered(body["question"], text, image, load, timings)

    return work


def refusing(ask: Any) -> Any:
    """Return what a session answers; what it says of its input becomes a refusal.

    Raises:
        Refusal: the picture or the words cannot be used.
    """
    try:
        return ask()
    except InputError as error:
        raise Refusal.of(error) from error


def _placed(phrase: str | list[str]) -> list[tuple[str, str]]:
    return (
        [("phrase", phrase)] if isinstance(phrase, str) else [(f"phrase[{n}]", text) for n, text in enumerate(phrase)]
    )


def _request(turn: Turn, phrase: str, place: str) -> str:
    try:
        return turn.session.request(phrase)
    except InputError as error:
        raise Refusal.of(error, place) from error


def _loaded(body: Mapping[str, Any], pictures: Pictures) -> tuple[Image.Image, float]:
    began = time.perf_counter()
    return pictures.image(body["image"]), time.perf_counter() - began


def result(answered: Answered, kind: str, queue: float) -> dict[str, Any]:
    """One phrase's part of a response; `kind` is "detections" or "points"."""
    answer = answered.answer
    assert isinstance(answer, Answer)
    items = []
    for found in answer.detections:
        x1, y1, x2, y2 = found.box
        place = {"box": list(found.box)} if kind == "detections" else {"point": [(x1 + x2) / 2, (y1 + y2) / 2]}
        items.append({**place, "label": found.label, "score": found.score, "phrase": answered.phrase})
    return {
        "phrase": answered.phrase,
        kind: items,
        "status": answer.status,
        "problem": answer.problem,
        "text": answer.text,
        "timings": timings([answered], queue),
    }


def response(model: str, found: list[Answered], kind: str, queue: float) -> dict[str, Any]:
    """The whole response about one or several phrases."""
    results = [result(answered, kind, queue if not number else 0.0) for number, answered in enumerate(found)]
    said = {each["status"] for each in results}
    return {
        "model": model,
        kind: [item for each in results for item in each[kind]],
        "status": next(status for status in ("found", "unparsed", "refused") if status in said),
        "image": size(found[0].image),
        "results": results,
        "timings": timings(found, queue),
    }


def size(image: Image.Image) -> dict[str, int]:
    """Width and height of the upright picture, in pixels."""
    return {"width": image.width, "height": image.height}


def timings(found: list[Answered], queue: float) -> dict[str, float]:
    """Seconds by stage, summed over answers, and the tokens of all; the total is from the request on."""
    load = sum(answered.load for answered in found)
    summed: dict[str, float] = {"queue": queue, "load": load}
    for answered in found:
        for name, value in answered.timings.to_dict().items():
            summed[name] = summed.get(name, 0) + value
    summed["total"] += queue + load
    return summed

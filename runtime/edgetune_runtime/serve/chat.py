"""OpenAI's chat completions: one turn of a user about one picture, in words or as boxes."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune_runtime.answer import Stream, Token
from edgetune_runtime.codec import grammar
from edgetune_runtime.errors import excerpt
from edgetune_runtime.serve.detect import ASK_TOKENS, refusing
from edgetune_runtime.serve.model import Turn
from edgetune_runtime.serve.pictures import Pictures
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.timing import Timings

MESSAGE = "messages[0].content"
"""Where a request has its words and its picture."""
BOX_FIELDS = {"box", "label", "score"}
"""What a detection of `response_format` may name."""


@dataclass(frozen=True)
class Question:
    """What a checked request asks.

    Attributes:
        words: of the user.
        picture: of the message, or None.
        tokens: of the longest answer.
        stop: texts that end an answer and are left out of it.
        logprobs: whether each token's probability is told.
        boxes: names of a detection's fields where boxes are asked for as JSON, or None.
    """

    words: str
    picture: str | bytes | None
    tokens: int
    stop: tuple[str, ...]
    logprobs: bool
    boxes: frozenset[str] | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Question:
        """Read a request that fits its schema.

        Raises:
            Refusal: it has no words or several pictures, or asks for JSON other than boxes.
        """
        content = body["messages"][0]["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        words = "\n".join(part["text"] for part in parts if part["type"] == "text")
        place = MESSAGE
        if len(pictures) > 1:
            raise Refusal(400, f"there are {len(pictures)} pictures, and one is answered about", param=place)
        if not words.strip():
            raise Refusal(400, "the message has no words", param=place)
        stop = body.get("stop") or ()
        boxes = _boxes(body.get("response_format"))
        logprobs = bool(body.get("logprobs"))
        if boxes is not None:
            if not pictures:
                raise Refusal(400, "boxes are asked for, and there is no picture", param=place)
            if stop or logprobs:
                name = "stop" if stop else "logprobs"
                raise Refusal(400, f"{name} belongs to words, and boxes are asked for", param=name)
        return cls(
            words=words,
            picture=pictures[0] if pictures else None,
            tokens=body.get("max_completion_tokens") or body.get("max_tokens") or ASK_TOKENS,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
            boxes=boxes,
        )


@dataclass
class Piece:
    """New text of an answer with its tokens; the last piece says how it ended."""

    text: str = ""
    refusal: str | None = None
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    usage: dict[str, Any] | None = None
    timings: Timings | None = None


def answering(question: Question, pictures: Pictures) -> Any:
    """Work that gives the answer's pieces."""

    def work(turn: Turn) -> Iterator[Piece]:
        image = None if question.picture is None else pictures.image(question.picture, MESSAGE)
        if question.boxes is not None:
            yield from _in_boxes(question, turn, image)
            return
        session = turn.session
        tags = grammar.tags(session.bundle.box_format.style)  # where boxes are written with control tokens
        stream: Stream = refusing(
            lambda: session.stream(
                image,
                question.words,
                max_new_tokens=question.tokens,
                probabilities=question.logprobs,
                keep_control=bool(tags),
                cancel=turn.cancel,
            )
        )
        yield from _in_words(question, stream)

    return work


def _in_words(question: Question, stream: Stream) -> Iterator[Piece]:
    """Pieces of a stream up to the first of the stop texts, whose beginnings are held back."""
    held, said, tokens = "", 0, _Tokens(question, stream)
    longest = max(map(len, question.stop), default=1) - 1
    for text in refusing_stream(stream):
        held += text
        places = [place for stop in question.stop if (place := held.find(stop)) >= 0]
        if places:
            said += min(places)
            yield Piece(held[: min(places)], tokens=tokens.up_to(said))
            yield _last("stop", stream.prompt_tokens, len(stream.tokens), stream.spent)
            return
        ready = held[: len(held) - longest] if longest else held
        if ready:
            said, held = said + len(ready), held[len(ready) :]
            yield Piece(ready, tokens=tokens.up_to(said))
    if held or not said:
        yield Piece(held, tokens=tokens.up_to(said + len(held)))
    assert stream.timings is not None
    finish = "stop" if stream.finished else "length"
    yield _last(finish, stream.prompt_tokens, len(stream.tokens), stream.timings)


class _Tokens:
    """The tokens of a stream, told with the text that they end in, where they were asked for."""

    def __init__(self, question: Question, stream: Stream) -> None:
        self._stream, self._wanted = stream, question.logprobs
        self._told, self._spelled = 0, 0

    def up_to(self, length: int) -> list[Token]:
        """Those that are not told yet and end within so many characters of text.

        Raises:
            Refusal: the engine keeps their probabilities to itself.
        """
        if not self._wanted:
            return []
        found = []
        for token in self._stream.tokens[self._told :]:
            if self._spelled + len(token.text) > length and token.text:
                break
            if token.probability is None:
                raise Refusal(400, "the engine of this bundle does not tell probabilities", param="logprobs")
            self._told, self._spelled = self._told + 1, self._spelled + len(token.text)
            found.append(token)
        return found


def refusing_stream(stream: Stream) -> Iterator[str]:
    """The pieces of a stream; what its session says of its input becomes a refusal."""
    end = object()
    while (piece := refusing(lambda: next(stream, end))) is not end:
        yield piece


def _in_boxes(question: Question, turn: Turn, image: Any) -> Iterator[Piece]:
    """The answer read as boxes, in pixels of the picture, with the fields that were asked for."""
    assert question.boxes is not None
    answer = refusing(
        lambda: turn.session.answer(image, question.words, max_new_tokens=question.tokens, cancel=turn.cancel)
    )
    found = [
        {name: value for name, value in each.items() if name in question.boxes}
        for each in (
            {"box": list(found.box), "label": found.label, "score": found.score} for found in answer.detections
        )
    ]
    problem = answer.problem if answer.status == "unparsed" else None
    yield Piece(json.dumps({"detections": found}), refusal=problem)
    cut = answer.timings.tokens >= question.tokens  # or it would have ended with a token that is not of its text
    count = answer.timings.tokens if cut else answer.timings.tokens - 1
    yield _last("length" if cut else "stop", answer.prompt_tokens, count, answer.timings)


def _last(finish: str, prompt: int, completion: int, timings: Timings) -> Piece:
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage |= {"total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": timings.known}}
    return Piece(finish=finish, usage=usage, timings=timings)


def _boxes(form: Mapping[str, Any] | None) -> frozenset[str] | None:
    """The fields of a detection that a `response_format` names; None where words are asked for.

    Raises:
        Refusal: it asks for something else than boxes.
    """
    if form is None or form["type"] == "text":
        return None
    place = "response_format.json_schema"
    schema = form.get("json_schema", {}).get("schema")

    def follow(part: Any) -> Any:  # what a reference such as {"$ref": "#/$defs/Box"} stands for
        name = part.get("$ref", "").removeprefix("#/$defs/")
        return schema["$defs"][name] if name else part

    try:
        (name,) = schema["properties"]
        items = follow(follow(schema["properties"][name])["items"])
        fields = set(items["properties"])
    except (AttributeError, KeyError, TypeError, ValueError):
        name, fields = None, set()
    if name != "detections" or "box" not in fields or not fields <= BOX_FIELDS:
        raise Refusal(
            400,
            f"the schema {excerpt(schema)} is not one of boxes",
            hint='give {"type": "object", "properties": {"detections": {"type": "array", "items": {"type": "object", '
            '"properties": {"box": ..., "label": ..., "score": ...}}}}}, with box and any of the others',
            param=place,
        )
    return frozenset(fields)


@dataclass(frozen=True)
class Completion:
    """Responses of one request, whole or in chunks."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: list[Piece], *, logprobs: bool) -> dict[str, Any]:
        """The response to a request without `stream`."""
        message = {
            "role": "assistant",
            "content": "".join(piece.text for piece in pieces),
            "refusal": next((piece.refusal for piece in pieces if piece.refusal), None),
        }
        choice = {"index": 0, "message": message, "finish_reason": pieces[-1].finish, "logprobs": None}
        if logprobs:
            choice["logprobs"] = _logprobs([token for piece in pieces for token in piece.tokens])
        return self._of("chat.completion", [choice]) | {"usage": pieces[-1].usage}

    def chunk(self, piece: Piece, *, first: bool, logprobs: bool) -> dict[str, Any]:
        """One event of a streamed response."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.finish is None:
            delta["content"] = piece.text
        if piece.refusal is not None:
            delta["refusal"] = piece.refusal
        told = _logprobs(piece.tokens) if logprobs and piece.finish is None else None
        return self._of(
            "chat.completion.chunk",
            [{"index": 0, "delta": delta, "finish_reason": piece.finish, "logprobs": told}],
        )

    def usage(self, piece: Piece) -> dict[str, Any]:
        """The event with what was used, which has no choice."""
        return self._of("chat.completion.chunk", []) | {"usage": piece.usage}

    def _of(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def _logprobs(tokens: list[Token]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": math.log(max(token.probability or 0.0, 1e-45)),
                "bytes": list(token.raw),
                "top_logprobs": [],
            }
            for token in tokens
        ]
    }

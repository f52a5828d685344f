"""What comes back from a model: an answer with its boxes, words as they are generated, and what each cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.grounding import Detection as Detection
from edgetune_runtime.images.load import ImageSource
from edgetune_runtime.timing import Timings


@dataclass(frozen=True)
class Answer(grounding.ParsedAnswer):
    """A model's reply to a request for boxes.

    Examples:
        >>> from edgetune_runtime import Session
        >>> with Session.load("runs/onnx-int4") as session:
        ...     answer = session.answer("photo.png", session.request("the owl"), max_new_tokens=12)
        >>> answer.status in ("found", "refused", "unparsed") and answer.timings.tokens <= 12
        True

    Attributes:
        detections: boxes in float pixels of the original upright image, with labels and scores; see `Detection`.
        text: what the model wrote.
        status: "found"; "refused", when it says that the object is not there; or "unparsed", when its text could not
            be read as boxes, which `problem` explains.
        problem: what is wrong with the text, or None. There may be detections beside it.
        complete: False if the text breaks off in the middle of a box.
        timings: what the answer cost; two answers that say the same are equal whatever they cost.
        prompt_tokens: how many tokens the prompt had, the picture's among them; 0 where it is not known.
    """

    timings: Timings = field(kw_only=True, compare=False)
    prompt_tokens: int = field(default=0, kw_only=True, compare=False)

    @classmethod
    def of(cls, parsed: grounding.ParsedAnswer, timings: Timings, prompt_tokens: int = 0) -> Answer:
        """Return what a text says together with what it cost."""
        return cls(
            text=parsed.text,
            detections=parsed.detections,
            complete=parsed.complete,
            problem=parsed.problem,
            refused=parsed.refused,
            refusal_score=parsed.refusal_score,
            timings=timings,
            prompt_tokens=prompt_tokens,
        )


class Token(NamedTuple):
    """A token that was generated.

    Attributes:
        raw: its own bytes in UTF-8; a token may be part of a character, for which an engine may have no bytes but
            those of U+FFFD.
        probability: what it was chosen with (0-1), None where unknown.
    """

    raw: bytes
    probability: float | None

    @property
    def text(self) -> str:
        """Its own text."""
        return self.raw.decode("utf-8", "replace")


class Stream(Iterator[str]):
    """An answer in words, piece by piece as it is generated.

    Examples:
        >>> from edgetune_runtime import Session
        >>> with Session.load("runs/onnx-int4") as session:
        ...     stream = session.stream("photo.png", "What is on the table?", max_new_tokens=8)
        ...     words = "".join(stream)
        >>> stream.timings.tokens <= 8
        True
        >>> stream.finished or len(stream.tokens) == 8
        True

    Args:
        pieces: gives the pieces and returns what they cost.
        prompt_tokens: how many tokens the prompt has, the picture's among them.
        tokens: what has been generated so far, without the token that ends an answer; grows as pieces are read.
        spent: tells what the answer cost up to now.

    Attributes:
        timings: what the answer cost; None until the last piece was read.
    """

    def __init__(
        self,
        pieces: Generator[str, None, Timings],
        prompt_tokens: int = 0,
        tokens: list[Token] | None = None,
        spent: Callable[[], Timings] | None = None,
    ) -> None:
        self._pieces = pieces
        self.prompt_tokens = prompt_tokens
        self.tokens: list[Token] = [] if tokens is None else tokens
        self._spent = spent
        self._lock = threading.Lock()
        self.timings: Timings | None = None

    @property
    def spent(self) -> Timings:
        """What the answer cost up to now; where nobody counts, and before its end, nothing."""
        if self.timings is not None or self._spent is None:
            return self.timings or Timings(0.0, 0.0, 0.0, 0.0, 0.0, len(self.tokens))
        return self._spent()

    @property
    def finished(self) -> bool:
        """Whether the model ended its answer itself, and was not stopped at the longest that was asked for."""
        return self.timings is not None and self.timings.tokens > len(self.tokens)

    def __next__(self) -> str:
        """Return the next piece; threads that share a stream share its pieces. Raises what the model raises."""
        with self._lock:  # a generator that runs refuses a second thread
            try:
                return next(self._pieces)
            except StopIteration as end:
                self.timings = self.timings or end.value
                raise StopIteration from None


class Runner(Protocol):
    """What answers questions about pictures: a `Session`, or a checkpoint under torch."""

    def request(self, phrase: str) -> str:
        """Return the user's words that ask for what a phrase names."""

    def ground(self, image: ImageSource, phrase: str, *, max_new_tokens: int = 128) -> list[Detection]:
        """Find what a phrase names; an empty list when it is not there."""

    def answer(self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128) -> Answer:
        """Send the user's whole words and read the reply as boxes."""

    def ask(self, image: ImageSource, question: str, *, max_new_tokens: int = 256) -> str:
        """Answer a question about an image in words."""

    def stream(self, image: ImageSource, prompt: str, *, max_new_tokens: int = 256) -> Stream:
        """Send the user's whole words and give the reply in words."""

"""A fleet in a session's place: running OpenAI-compatible engines, such as vLLM's, that hold a bundle's checkpoint.

What is ours stays ours: the request's words, the reading of boxes and their scores, the frame of pixels. The engine
prepares the picture and runs the model; the bundle's own preprocessor config, which it loads with the checkpoint, is
what bounds the picture there.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from edgetune_runtime.answer import Answer, Stream, Token
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec import grammar
from edgetune_runtime.codec.confidence import TokenProbability
from edgetune_runtime.codec.grounding import parse
from edgetune_runtime.errors import Cancelled, InputError, shortened
from edgetune_runtime.images.load import ImageSource, load_image
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.timing import Timings

DOWN_SECONDS = 5.0
"""How long an engine that could not be reached is left alone, unless no other can be."""
READ_SECONDS = 300.0
"""How long an engine may be silent."""

_POLL = 0.05


@dataclass
class Engine:
    """One address, and until when it is left alone.

    Attributes:
        url: such as "http://10.0.0.5:8000"; a path such as "/v1" at its end is left out.
        key: API key, or None.
    """

    url: str
    key: str | None = None
    down_until: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
        except ValueError:
            known = False
        if not known:
            raise InputError(f"{self.url!r} is no address of an engine", hint="give one such as http://10.0.0.5:8000")

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=READ_SECONDS)

    def path(self, name: str) -> str:
        """The path of a call such as "chat/completions"."""
        return f"{urlsplit(self.url).path.rstrip('/').removesuffix('/v1')}/v1/{name}"

    def headers(self) -> dict[str, str]:
        """Of a call."""
        bearer = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return {"content-type": "application/json", **bearer}


class UpstreamSession:
    """Answers as a `Session` does, by asking engines in turn.

    Several threads may ask at a time. An engine that cannot be reached, or says that it is busy, is passed over for the
    next, as long as nothing of an answer has arrived: greedy answers may be asked for twice.

    Args:
        bundle: whose checkpoint the engines hold; its graphs are not read.
        engines: to ask, in turn.
        model: what they call the model; None is the first that they list.
    """

    def __init__(self, bundle: Bundle, engines: Sequence[Engine], model: str | None = None) -> None:
        if not engines:
            raise InputError("no engine is named")
        self.bundle = bundle
        self._engines = list(engines)
        self._model = model
        self._turns = itertools.count()
        self._tags = bool(grammar.tags(bundle.box_format.style))

    def request(self, phrase: str) -> str:
        """Return the user's words that ask for what a phrase names."""
        return self.bundle.request(phrase)

    def answer(
        self, image: ImageSource, prompt: str, *, max_new_tokens: int = 128, cancel: threading.Event | None = None
    ) -> Answer:
        """Send the user's whole words and read the reply as boxes; see `Session.answer`.

        Raises:
            ImageError: the image cannot be used.
            InputError: the engines refuse the request.
            Refusal: no engine answers.
            Cancelled: `cancel` was set.
        """
        picture = load_image(image)
        stream = self.stream(picture, prompt, max_new_tokens=max_new_tokens, probabilities=True, cancel=cancel)
        text = "".join(stream)
        assert stream.timings is not None
        before = self.bundle.chat.before_answer
        text, ends = text.removeprefix(before), _ends(stream.tokens, text, before)
        geometry = self.bundle.spec.plan(picture.width, picture.height).geometry
        parsed = parse(text, geometry, self.bundle.box_format, ends)
        return Answer.of(parsed, stream.timings, stream.prompt_tokens)

    def stream(
        self,
        image: ImageSource | None,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        probabilities: bool = False,
        keep_control: bool = False,
        cancel: threading.Event | None = None,
    ) -> Stream:
        """Give the reply piece by piece; see `Session.stream`. Raises as `answer`."""
        began = time.perf_counter()
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _encoded(load_image(image))}})
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if probabilities:
            body["logprobs"] = True
        if self._tags:  # an extension of vLLM's, SGLang's and LMDeploy's: boxes are written with control tokens
            body["skip_special_tokens"] = False
        return _Reply(self._events(body, cancel), began)

    def _events(self, body: dict[str, Any], cancel: threading.Event | None) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion, of the first engine that gives one."""
        busy: list[str] = []
        for engine in self._in_turn():
            connection = engine.connect()
            with _ended_by(cancel, connection):
                try:
                    model = self._model or self._first_model(engine)
                    sent = json.dumps(body | {"model": model}).encode()
                    connection.request("POST", engine.path("chat/completions"), sent, engine.headers())
                    response = connection.getresponse()
                    if response.status != 200:
                        _refuse(response.status, response.read(1 << 16))
                        busy.append(f"{engine.url} answers with status {response.status}")
                        self._leave_alone(engine)
                        continue
                    first = next(lines := _documents(response), None)
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    if cancel is not None and cancel.is_set():
                        raise Cancelled("the answer was cancelled") from error
                    busy.append(f"{engine.url}: {str(error) or type(error).__name__}")
                    self._leave_alone(engine)
                    continue
                try:
                    if first is not None:
                        yield first
                    yield from lines
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if cancel is not None and cancel.is_set():
                        raise Cancelled("the answer was cancelled") from error
                    self._leave_alone(engine)
                    raise Refusal(502, f"the engine left in the middle of an answer: {error}") from error
                return
        raise Refusal(503, "no engine answers", hint="; ".join(busy), headers={"Retry-After": str(int(DOWN_SECONDS))})

    def _in_turn(self) -> list[Engine]:
        """Engines in the order to try them: the next in turn first, those that were left alone last."""
        start, now = next(self._turns) % len(self._engines), time.monotonic()
        order = self._engines[start:] + self._engines[:start]
        return sorted(order, key=lambda engine: engine.down_until > now)

    @staticmethod
    def _leave_alone(engine: Engine) -> None:
        engine.down_until = time.monotonic() + DOWN_SECONDS

    def _first_model(self, engine: Engine) -> str:
        """What an engine calls its first model.

        Raises:
            ValueError: it lists none.
        """
        connection = engine.connect()
        try:
            connection.request("GET", engine.path("models"), headers=engine.headers())
            response = connection.getresponse()
            told = json.loads(response.read())
            if response.status != 200 or not told.get("data"):
                raise ValueError(f"its list of models has status {response.status} and is {shortened(str(told), 200)}")
            self._model = str(told["data"][0]["id"])
            return self._model
        finally:
            connection.close()

    def close(self) -> None:
        """Nothing is held."""


class _Reply(Stream):
    """A stream of an engine's events, which tell the length of the prompt at their end."""

    def __init__(self, events: Iterator[dict[str, Any]], began: float) -> None:
        super().__init__(self._read(events, began))

    def _read(self, events: Iterator[dict[str, Any]], began: float) -> Generator[str, None, Timings]:
        ready = first = time.perf_counter()
        ended, text = False, ""
        for event in events:
            if usage := event.get("usage"):
                self.prompt_tokens = int(usage["prompt_tokens"])
            for choice in event.get("choices", ())[:1]:
                told = (choice.get("logprobs") or {}).get("content") or ()
                if told and not self.tokens:
                    first = time.perf_counter()
                self.tokens += [Token(_text(each), _probability(each)) for each in told]
                ended = ended or choice.get("finish_reason") == "stop"
                if piece := choice["delta"].get("content"):
                    text += piece
                    yield piece
        if ended and "".join(each.text for each in self.tokens[:-1]) == _letters(text):
            del self.tokens[-1]  # some engines tell the token that ends an answer, which is not of its text
        now = time.perf_counter()
        count = len(self.tokens) + ended
        return Timings(ready - began, 0.0, first - ready, now - first, now - began, count)


@contextlib.contextmanager
def _ended_by(cancel: threading.Event | None, connection: http.client.HTTPConnection) -> Iterator[None]:
    """Close a connection at the end of the block, and as soon as an event is set: the engine then stops as well."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL):
            if cancel is not None and cancel.is_set():
                with contextlib.suppress(OSError, AttributeError):
                    connection.sock.shutdown(2)
                return

    watching = None if cancel is None else threading.Thread(target=watch, daemon=True)
    if watching is not None:
        watching.start()
    try:
        yield
    finally:
        done.set()
        connection.close()


def _documents(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON documents of server-sent events, up to [DONE].

    Raises:
        ValueError: one is an error, or they end before.
    """
    for line in response:
        text = line.strip()
        if not text.startswith(b"data:"):
            continue
        text = text.removeprefix(b"data:").strip()
        if text == b"[DONE]":
            return
        document = json.loads(text)
        if "error" in document:
            raise ValueError(shortened(str(document["error"]), 300))
        yield document
    raise ValueError("the connection ended before the answer did")


def _refuse(status: int, body: bytes) -> None:
    """Raise where an engine finds the request itself wrong; another one would, too."""
    if status in (400, 413, 422):
        try:
            told = json.loads(body)
            message = told.get("error", told).get("message", body)
        except (ValueError, AttributeError):
            message = body[:300]
        raise InputError(f"the engine refuses the request: {shortened(str(message), 300)}")


def _encoded(image: Image.Image) -> str:
    """A picture as a data URI: upright and without loss, so that every engine sees the same pixels."""
    held = io.BytesIO()
    image.save(held, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _text(token: dict[str, Any]) -> str:
    """A token's bytes, a letter for each: a token may be part of a character."""
    raw = token.get("bytes")
    return _letters(str(token["token"])) if raw is None else bytes(raw).decode("latin-1")


def _letters(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _probability(token: dict[str, Any]) -> float:
    return min(1.0, math.exp(float(token["logprob"])))


def _ends(tokens: Sequence[Token], text: str, before: str) -> list[TokenProbability]:
    """Where each token ends in an answer's text; none where the tokens do not spell it.

    Tokens are told in bytes (`_text`), and text is counted in characters.
    """
    raw, found = b"", []
    skipped = len(before) if text.startswith(before) else 0
    for token in tokens:
        raw += token.text.encode("latin-1")
        end = len(raw.decode("utf-8", "ignore")) - skipped
        found.append(TokenProbability(max(0, end), token.probability or 0.0))
    return found if raw.decode("utf-8", "ignore").startswith(text) else []

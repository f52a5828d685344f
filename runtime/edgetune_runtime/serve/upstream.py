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
import logging
import math
import socket
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

CONNECT_SECONDS = 5.0
"""How long an engine may take to be reached."""
DOWN_SECONDS = 5.0
"""How long an engine that could not be reached is left alone, unless no other can be."""
READ_SECONDS = 300.0
"""How long an engine may be silent."""

_POLL = 0.05
_LOG = logging.getLogger("edgetune.serve")


@dataclass
class Engine:
    """One address, and until when it is left alone.

    Attributes:
        url: such as "http://10.0.0.5:8000"; a path such as "/v1" at its end is left out.
        key: API key, or None.
        model: what it calls the model; None until it was asked for its first one.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    down_until: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
        except ValueError:
            known = False
        if not known or parts.username is not None:
            raise InputError(f"{self.url!r} is no address of an engine", hint="give one such as http://10.0.0.5:8000")

    @contextlib.contextmanager
    def connected(self, cancel: threading.Event | None) -> Iterator[http.client.HTTPConnection]:
        """A connection for the block, which an event ends early: the engine then stops as well.

        Raises:
            OSError: it cannot be reached in time.
        """
        parts, done = urlsplit(self.url), threading.Event()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS)
        connection.connect()
        held = connection.sock  # which http.client lets go of where the engine will close it
        held.settimeout(READ_SECONDS)

        def watch() -> None:
            while not done.wait(_POLL):
                if cancel is not None and cancel.is_set():
                    with contextlib.suppress(OSError):
                        held.shutdown(socket.SHUT_RDWR)

        watching = threading.Thread(target=watch, daemon=True)
        if cancel is not None:
            watching.start()
        try:
            yield connection
        finally:
            done.set()
            connection.close()
            held.close()

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
    """

    encodes = False
    """Pictures are encoded elsewhere: no answer tells whether one was known."""

    def __init__(self, bundle: Bundle, engines: Sequence[Engine]) -> None:
        if not engines:
            raise InputError("no engine is named")
        self.bundle = bundle
        self._engines = list(engines)
        self._pictures = threading.local()  # the last one of each thread, which many phrases are asked about
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
        picture = self._picture(image)[0]
        options = {"probabilities": True, "keep_control": self._tags}
        stream = self.stream(image, prompt, max_new_tokens=max_new_tokens, cancel=cancel, **options)
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
            content.insert(0, {"type": "image_url", "image_url": {"url": self._picture(image)[1]}})
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if probabilities:
            body["logprobs"] = True
        if keep_control and self._tags:  # an extension of vLLM's, SGLang's and LMDeploy's
            body["skip_special_tokens"] = False
        return _Reply(self._events(body, cancel), began)

    def _picture(self, image: ImageSource) -> tuple[Image.Image, str]:
        """A picture, upright, and as a data URI."""
        last = getattr(self._pictures, "last", None)
        if last is None or last[0] is not image:
            picture = load_image(image)
            last = self._pictures.last = (image, picture, _encoded(picture))
        return last[1], last[2]

    def _events(self, body: dict[str, Any], cancel: threading.Event | None) -> Iterator[dict[str, Any]]:
        """The events of a streamed completion, of the first engine that gives one."""
        for engine in self._in_turn():
            begun = False
            try:
                for event in _completion(engine, body, cancel):
                    begun = True
                    yield event
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                if cancel is not None and cancel.is_set():
                    raise Cancelled("the answer was cancelled") from error
                engine.down_until = time.monotonic() + DOWN_SECONDS
                # Its address and what it said are for the log: a client has no use for them.
                _LOG.warning("%s: %s", engine.url, str(error) or type(error).__name__)
                if begun:
                    raise Refusal(502, "the engine left in the middle of an answer") from error
        raise Refusal(503, "no engine answers", headers={"Retry-After": str(int(DOWN_SECONDS))})

    def _in_turn(self) -> list[Engine]:
        """Engines in the order to try them: the next in turn first, those that were left alone last."""
        start, now = next(self._turns) % len(self._engines), time.monotonic()
        order = self._engines[start:] + self._engines[:start]
        return sorted(order, key=lambda engine: engine.down_until > now)

    def close(self) -> None:
        """Nothing is held."""


class _Reply(Stream):
    """A stream of an engine's events, which tell how many tokens there were at their end."""

    def __init__(self, events: Iterator[dict[str, Any]], began: float) -> None:
        super().__init__(self._read(events), spent=self._until_now)
        self._began = self._ready = self._first = began
        self._count = 0

    def _read(self, events: Iterator[dict[str, Any]]) -> Generator[str, None, Timings]:
        self._ready = time.perf_counter()
        ended, text = False, ""
        for event in events:
            if usage := event.get("usage"):
                self.prompt_tokens, self._count = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            for choice in event["choices"][:1]:
                told = (choice.get("logprobs") or {}).get("content") or ()
                piece = choice["delta"].get("content")
                if not text and not self.tokens and (told or piece):
                    self._first = time.perf_counter()
                self.tokens += [Token(_raw(each), _probability(each)) for each in told]
                ended = ended or choice.get("finish_reason") == "stop"
                if piece:
                    text += piece
                    yield piece
        if ended and self.tokens and b"".join(each.raw for each in self.tokens[:-1]) == text.encode():
            del self.tokens[-1]  # some engines tell the token that ends an answer, which is not of its text
        self._count = (len(self.tokens) or self._count) + ended
        return self._until_now()

    def _until_now(self) -> Timings:
        now = time.perf_counter()
        began, ready, first = self._began, self._ready, max(self._first, self._ready)
        return Timings(ready - began, 0.0, first - ready, now - first, now - began, self._count or len(self.tokens))


def _completion(
    engine: Engine, body: dict[str, Any], cancel: threading.Event | None
) -> Generator[dict[str, Any], None, None]:
    """The events of a streamed completion of one engine.

    Raises:
        OSError: it cannot be reached, or leaves.
        ValueError: it says something else, or that it is busy.
        InputError: it finds the request wrong, as another one would.
    """
    if cancel is not None and cancel.is_set():
        raise Cancelled("the answer was cancelled after 0 tokens")
    if engine.model is None:
        with engine.connected(cancel) as connection:
            connection.request("GET", engine.path("models"), headers=engine.headers())
            engine.model = _first_model(json.loads(connection.getresponse().read(1 << 20)))
    with engine.connected(cancel) as connection:
        sent = json.dumps(body | {"model": engine.model}).encode()
        connection.request("POST", engine.path("chat/completions"), sent, engine.headers())
        response = connection.getresponse()
        if response.status != 200:
            told = response.read(1 << 16)
            if response.status in (400, 413, 422):
                raise InputError(f"the engine refuses the request: {_message(told)}")
            raise ValueError(f"status {response.status}: {_message(told)}")
        yield from _documents(response)


def _first_model(told: Any) -> str:
    try:
        return str(told["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"its list of models is {shortened(str(told), 200)}") from error


def _message(body: bytes) -> str:
    """What an engine says is wrong."""
    try:
        told = json.loads(body)
        return shortened(str(told.get("error", told)["message"]), 300)
    except (ValueError, AttributeError, KeyError, TypeError):
        return shortened(body.decode("utf-8", "replace"), 300)


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
        choices = document.get("choices") if isinstance(document, dict) else None
        if not isinstance(choices, list) or not all(isinstance(each.get("delta"), dict) for each in choices):
            raise ValueError(f"an event that is none of a completion: {shortened(str(document), 300)}")
        yield document
    raise ValueError("the connection ended before the answer did")


def _encoded(image: Image.Image) -> str:
    """A picture as a data URI: upright and without loss, so that every engine sees the same pixels."""
    held = io.BytesIO()
    image.save(held, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _raw(token: dict[str, Any]) -> bytes:
    """A token's bytes."""
    raw = token.get("bytes")
    return str(token["token"]).encode("utf-8", "replace") if raw is None else bytes(raw)


def _probability(token: dict[str, Any]) -> float:
    return min(1.0, math.exp(float(token["logprob"])))


def _ends(tokens: Sequence[Token], text: str, before: str) -> list[TokenProbability]:
    """Where each token ends in an answer's text; none where the tokens do not spell it.

    Tokens are told in bytes, and text is counted in characters.
    """
    raw, found = b"", []
    skipped = len(before) if text.startswith(before) else 0
    for token in tokens:
        raw += token.raw
        end = len(raw.decode("utf-8", "ignore")) - skipped
        found.append(TokenProbability(max(0, end), token.probability or 0.0))
    return found if raw.decode("utf-8", "ignore").startswith(text) else []

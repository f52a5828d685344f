"""A fleet in a session's place; its engines are servers of ours, which speak OpenAI's API as well."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import Cancelled, InputError
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.serve.upstream import Engine, UpstreamSession
from edgetune_runtime.session import Session
from served import Asked, Server

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")


@pytest.fixture
def fleet(server: Server, tiny_bundle: Path) -> UpstreamSession:
    return UpstreamSession(Bundle.load(tiny_bundle), [Engine(f"http://127.0.0.1:{server.port}/v1")])


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_answers_and_scores_are_those_of_the_session(
    fleet: UpstreamSession, session: Session, asked: list[Asked]
) -> None:
    for picture, phrase in asked[:8]:
        ours = session.answer(picture, session.request(phrase), constrained=False)  # as other engines answer
        theirs = fleet.answer(picture, fleet.request(phrase))
        assert theirs == ours
        assert theirs.prompt_tokens == ours.prompt_tokens and theirs.timings.tokens == ours.timings.tokens
    stream = fleet.stream(asked[0].picture, "What colour is the cup?")
    assert "".join(stream).strip() == session.ask(asked[0].picture, "What colour is the cup?")


def test_a_server_in_front_of_two_of_which_one_ends(tiny_bundle: Path, session: Session, asked: list[Asked]) -> None:
    with Server(f"a={tiny_bundle}") as one, Server(f"a={tiny_bundle}") as two:
        addresses = f"http://127.0.0.1:{one.port},http://127.0.0.1:{two.port}/v1"
        with Server(f"tiny={tiny_bundle}", "--upstream", addresses) as front:

            def ask(each: Asked) -> Any:
                return front.connect().detect(*each).json["detections"]

            expected = [[list(found.box) for found in session.ground(*each)] for each in asked]
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(ask, asked))
            assert [[each["box"] for each in answer] for answer in found] == expected
            assert min(each.figure("edgetune_images_total") for each in (one, two)) >= len(asked) // 4
            one.end(signal.SIGKILL)
            one.wait()
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(ask, asked))
            assert [[each["box"] for each in answer] for answer in found] == expected
            two.end(signal.SIGKILL)
            two.wait()
            reply = front.connect().detect(*asked[0])
            assert reply.status == 503 and reply.headers["retry-after"] == "5"
            assert front.connect().ask("GET", "/health").status == 200


def test_what_an_engine_finds_wrong_is_not_asked_of_the_next(
    fleet: UpstreamSession, server: Server, asked: list[Asked]
) -> None:
    before = server.figure("edgetune_rejects_total")
    with pytest.raises(InputError, match=r"the engine refuses the request: .*max_tokens"):
        fleet.answer(asked[0].picture, "the cup", max_new_tokens=5000)
    assert server.figure("edgetune_rejects_total") == before + 1


def test_a_cancelled_answer_ends_the_engines(qwen3_vl_bundle: Path, asked: list[Asked]) -> None:
    with Server(str(qwen3_vl_bundle)) as engine:
        fleet = UpstreamSession(Bundle.load(qwen3_vl_bundle), [Engine(f"http://127.0.0.1:{engine.port}")])
        cancel = threading.Event()
        stream = fleet.stream(asked[0].picture, "Why?", max_new_tokens=1000, cancel=cancel)
        next(stream)
        cancel.set()
        with pytest.raises(Cancelled):
            for _ in stream:
                pass
        began = time.perf_counter()
        while engine.figure("edgetune_pending_requests"):
            assert time.perf_counter() - began < 10
            time.sleep(0.02)


class _Broken(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Begin an answer and leave, or answer with what `server.told` says."""
        told = self.server.told  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        for event in told:
            self.wfile.write(f"data: {event}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def broken() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PIECE = json.dumps({"choices": [{"delta": {"content": "["}, "finish_reason": None}]})


@pytest.mark.parametrize(
    ("told", "status"),
    [
        *[([PIECE], 502), ([PIECE, "{"], 502), ([PIECE, "null"], 502)],
        *[([event], 503) for event in ("no JSON", '{"error": 1}', "[]", '{"choices": null}', '{"choices": [{}]}')],
        ([], 503),
    ],
)
def test_an_engine_that_breaks_off(
    told: list[str], status: int, broken: ThreadingHTTPServer, tiny_bundle: Path, asked: list[Asked]
) -> None:
    """After the first piece nobody else is asked, for it may have been passed on."""
    broken.told = told  # type: ignore[attr-defined]
    engine = Engine(f"http://127.0.0.1:{broken.server_port}", key="sk-secret", model="it")
    fleet = UpstreamSession(Bundle.load(tiny_bundle), [engine])
    with pytest.raises(Refusal) as caught:
        fleet.answer(asked[0].picture, "the cup")
    assert caught.value.status == status
    assert "secret" not in str(caught.value.to_dict()) and "127.0.0.1" not in str(caught.value.to_dict())


def test_an_engine_that_breaks_off_at_once_is_passed_over(
    broken: ThreadingHTTPServer, server: Server, tiny_bundle: Path, session: Session, asked: list[Asked]
) -> None:
    broken.told = ["no JSON"]  # type: ignore[attr-defined]
    ports = (closed_port(), broken.server_port, server.port)
    engines = [
        Engine(f"http://127.0.0.1:{port}", model=name) for port, name in zip(ports, ("a", "b", None), strict=True)
    ]
    fleet = UpstreamSession(Bundle.load(tiny_bundle), engines)
    for picture, phrase in asked[:3]:
        expected = session.answer(picture, session.request(phrase), constrained=False)
        assert fleet.answer(picture, fleet.request(phrase)) == expected


def test_an_answer_without_a_token_and_one_without_probabilities(
    broken: ThreadingHTTPServer, tiny_bundle: Path, asked: list[Asked]
) -> None:
    fleet = UpstreamSession(Bundle.load(tiny_bundle), [Engine(f"http://127.0.0.1:{broken.server_port}", model="it")])
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    broken.told = [end, "[DONE]"]  # type: ignore[attr-defined]
    assert fleet.answer(asked[0].picture, "the cup").text == ""
    broken.told = [PIECE, end, usage, "[DONE]"]  # type: ignore[attr-defined]
    stream = fleet.stream(None, "hi")
    assert "".join(stream) == "[" and stream.timings is not None
    assert (stream.prompt_tokens, stream.timings.tokens, stream.finished) == (7, 4, True)
    assert stream.timings.prefill > 0


@pytest.mark.parametrize("url", ["", "10.0.0.5:8000", "http://user:secret@x", "ftp://x", "http://", "http://x:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="no address of an engine"):
        Engine(url)

"""What users of other servers complain of, a test each."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.session import Session
from served import Asked, Server, encoded, png

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")


def boxes(session: Session, asked: Asked) -> list[list[float]]:
    return [list(found.box) for found in session.ground(asked.picture, asked.phrase)]


@pytest.mark.parametrize("size", [(64, 48), (333, 90), (1280, 960), (1000, 1000), (71, 400)])
def test_boxes_are_right_at_any_size_and_not_only_near_1000(
    size: tuple[int, int], server: Server, session: Session, asked: list[Asked]
) -> None:
    for each in asked[:4]:
        picture = png(Image.open(io.BytesIO(each.picture)).resize(size))
        told = server.connect().detect(picture, each.phrase).json
        assert [found["box"] for found in told["detections"]] == boxes(session, Asked(picture, each.phrase))
        assert told["image"] == {"width": size[0], "height": size[1]}


def test_the_servers_own_resize_does_not_show(server: Server, asked: list[Asked]) -> None:
    """A picture of four times the area has the same boxes, twice as far out; the frame is in the schema."""
    connection, seen = server.connect(), 0
    for each in asked:
        small = Image.open(io.BytesIO(each.picture))
        large = small.resize((2 * small.width, 2 * small.height), Image.Resampling.BICUBIC)
        one, two = (connection.detect(png(image), each.phrase).json["detections"] for image in (small, large))
        if len(one) == len(two) == 1:
            seen += 1
            assert np.abs(np.array(two[0]["box"]) / 2 - np.array(one[0]["box"])).max() < 0.1 * max(small.size)
    assert seen > len(asked) // 2
    schemas = connection.ask("GET", "/openapi.json").json["components"]["schemas"]
    box = schemas["Detections"]["properties"]["detections"]["items"]["properties"]["box"]
    assert "pixels of the picture as it was sent" in box["description"]


@pytest.mark.parametrize("size", [(1, 1), (30, 4000), (4000, 30), (2, 1)])
def test_extreme_pictures_are_answered_or_refused(size: tuple[int, int], server: Server, asked: list[Asked]) -> None:
    connection = server.connect()
    reply = connection.detect(png(Image.new("RGB", size, (200, 30, 30))), "the cup")
    assert reply.status in (200, 400), reply.body
    assert reply.status == 200 or reply.json["error"]["param"] is not None or reply.message
    assert connection.detect(*asked[0]).status == 200


def test_a_decompression_bomb_is_refused_before_it_is_decoded(server: Server) -> None:
    bomb = png(Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 200_000
    before, began = resident(server.pid), time.perf_counter()
    reply = server.connect().detect(bomb, "the cup")
    assert reply.status == 400 and "pixels" in reply.message
    assert time.perf_counter() - began < 5
    assert resident(server.pid) - before < 50e6


def test_an_address_leads_to_no_other_host_and_to_no_private_one(tiny_bundle: Path) -> None:
    with Server(f"tiny={tiny_bundle}", "--allow-url", "localhost", "--allow-url", "example.org") as running:
        connection = running.connect()
        for url, said in {
            "http://localhost/cat.jpg": "private address",
            "http://169.254.169.254/latest/meta-data": "not allowed",
            "http://example.org@169.254.169.254/": "not allowed",
            "http://example.org.evil.test/": "not allowed",
            "ftp://example.org/cat.jpg": "base64",
            "file:///etc/passwd": "base64",
            "/etc/passwd": "base64",
        }.items():
            reply = connection.ask("POST", "/v1/detect", {"image": url, "phrase": "the cup"})
            assert reply.status == 400 and said in reply.message, (url, reply.body)


def test_addresses_are_off_by_default(server: Server) -> None:
    reply = server.connect().ask("POST", "/v1/detect", {"image": "http://example.org/cat.jpg", "phrase": "the cup"})
    assert reply.status == 400 and "switched off" in reply.message


def test_memory_does_not_grow_with_pictures(server: Server) -> None:
    """Two hundred different ones of mixed sizes; benchmarks/studies/serve_load.py sends ten thousand."""
    generator, connection, seen = np.random.default_rng(0), server.connect(), []
    for _ in range(200):
        size = (*generator.integers(40, 400, 2), 3)
        picture = png(Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)))
        assert connection.detect(picture, "the cup", max_new_tokens=4).status == 200
        seen.append(resident(server.pid))
    assert max(seen[100:]) < 1.05 * max(seen[50:100])


@pytest.mark.parametrize("clients", [2, 8])
def test_pictures_at_the_same_time_do_not_mix(
    clients: int, server: Server, session: Session, asked: list[Asked]
) -> None:
    expected = [boxes(session, each) for each in asked]

    def ask(number: int) -> Any:
        return server.connect().detect(*asked[number % len(asked)]).json["detections"]

    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, range(2 * len(asked))))
    assert [[each["box"] for each in answer] for answer in found] == expected * 2


def test_the_second_request_is_answered_as_the_first(server: Server, asked: list[Asked]) -> None:
    connection = server.connect()
    first, second = (connection.detect(*asked[0]).json["results"][0] for _ in range(2))
    assert {**first, "timings": 0} == {**second, "timings": 0}


def test_generation_ends_when_the_client_leaves(qwen3_vl_bundle: Path) -> None:
    """The model of random weights writes until it is stopped."""
    picture = png(Image.new("RGB", (64, 64)))
    body = json.dumps({"image": encoded(picture), "question": "Why?", "max_new_tokens": 1000}).encode()
    with Server(str(qwen3_vl_bundle), "--max-new-tokens", "1000") as running:
        began = time.perf_counter()
        whole = running.connect().ask("POST", "/v1/ask", body).json["timings"]
        spent = time.perf_counter() - began
        if whole["tokens"] < 900:
            pytest.skip("the random model ended its answer early")
        leaving = socket.create_connection(("127.0.0.1", running.port))
        head = f"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        leaving.sendall(head.encode() + b"\r\n" + body)
        time.sleep(min(0.3, spent / 10))
        leaving.close()
        left = time.perf_counter()
        while running.figure("edgetune_pending_requests"):
            assert time.perf_counter() - left < spent / 2
            time.sleep(0.02)
        assert running.figure("edgetune_cancelled_total") == 1
        assert running.figure("edgetune_tokens_total") == whole["tokens"]


def test_an_engine_that_fails_once_answers_the_next(tiny_bundle: Path, asked: list[Asked]) -> None:
    from starlette.testclient import TestClient

    from edgetune_runtime.serve.app import Settings, build_app

    session = Session.load(tiny_bundle, threads=1)
    encode, failures = session._backend.encode_images, iter([RuntimeError("out of memory")])

    def once(images: Any) -> Any:
        for failure in failures:
            raise failure
        return encode(images)

    session._backend.encode_images = once  # type: ignore[method-assign]
    app = build_app({"tiny": session}, Settings(log=None))
    with TestClient(app, raise_server_exceptions=False) as client:
        body = {"image": encoded(asked[0].picture), "phrase": asked[0].phrase}
        replies = [client.post("/v1/detect", json=body) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [500, 200]
    assert replies[0].json()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "image", ["%%%", "abc", "data:image/png,abc", "data:image/png;base64,%", "aGVsbG8=", "ü", "\ud800"]
)
def test_pictures_that_are_none_are_refused(image: str, server: Server) -> None:
    reply = server.connect().ask("POST", "/v1/detect", {"image": image, "phrase": "the cup"})
    assert reply.status == 400 and reply.json["error"]["param"] == "image", reply.body


def test_a_picture_that_lies_on_its_side_is_turned_first(server: Server, session: Session, asked: list[Asked]) -> None:
    upright = Image.open(io.BytesIO(asked[0].picture))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = png(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    told = server.connect().detect(lying, asked[0].phrase).json
    assert told["image"] == {"width": upright.width, "height": upright.height}
    assert [each["box"] for each in told["detections"]] == boxes(session, Asked(png(upright), asked[0].phrase))


def test_a_huge_prompt_is_refused(server: Server, asked: list[Asked]) -> None:
    connection, picture = server.connect(), asked[0].picture
    reply = connection.detect(picture, "cup " * 100_000)
    assert reply.status == 400 and "at most 4000 characters" in reply.message and len(reply.body) < 1000
    reply = connection.detect(picture, "cup " * 999, max_new_tokens=1000)
    assert reply.status == 400 and "over the bundle's" in reply.message
    assert connection.detect(picture, ["cup"] * 33).status == 400
    assert connection.detect(*asked[0]).status == 200


def test_a_slow_client_keeps_nobody_waiting(tiny_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={tiny_bundle}", "--body-timeout", "1") as running:
        slow = socket.create_connection(("127.0.0.1", running.port))
        slow.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert running.connect().detect(*asked[0]).status == 200
        slow.settimeout(10)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        slow.close()


def test_a_connection_is_kept_after_an_error(server: Server, asked: list[Asked]) -> None:
    connection = server.connect()
    assert connection.ask("POST", "/v1/detect", b"{").status == 400
    held = connection.http.sock
    assert connection.detect(*asked[0]).status == 200
    assert connection.http.sock is held
    assert connection.ask("POST", "/v1/detect", b"x" * (33 << 20)).status == 413
    assert server.connect().detect(*asked[0]).status == 200


def test_a_full_queue_says_when_to_come_again(tiny_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={tiny_bundle}", "--queue", "2") as running:
        barrier = threading.Barrier(12)

        def ask(number: int) -> Any:
            connection = running.connect()
            connection.http.connect()
            barrier.wait()
            return connection.detect(asked[0].picture, [each.phrase for each in asked[:16]])

        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(ask, range(12)))
        assert {reply.status for reply in replies} == {200, 429}
        assert sum(reply.status == 200 for reply in replies) >= 3
        for reply in replies:
            if reply.status == 429:
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.json["error"]["type"] == "rate_limit_error"
        assert running.connect().detect(*asked[0]).status == 200


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_body_of_millions_of_values_is_refused_at_once(server: Server, asked: list[Asked]) -> None:
    """A validator would find each of them wrong, one after the other."""
    body = b'{"image": "x", "phrase": [' + b"1," * 4_000_000 + b"1]}"
    began = time.perf_counter()
    reply = server.connect().ask("POST", "/v1/detect", body)
    assert reply.status == 400 and "values" in reply.message
    assert time.perf_counter() - began < 10
    assert server.connect().detect(*asked[0]).status == 200


def test_clients_that_do_not_read_take_no_place(tiny_bundle: Path, asked: list[Asked]) -> None:
    """Their answers lie in the sockets; the model goes on with the next request."""
    body = json.dumps(
        {"image": encoded(asked[0].picture), "phrase": [each.phrase for each in asked[:16]] * 2, "stream": True}
    ).encode()
    head = (
        f"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with Server(f"tiny={tiny_bundle}", "--queue", "2") as running:
        held = []
        for _ in range(3):
            silent = socket.socket()
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            silent.connect(("127.0.0.1", running.port))
            silent.sendall(head.encode() + body)
            held.append(silent)
        began = time.perf_counter()
        while running.figure("edgetune_tokens_total") < 3 * 32 or running.figure("edgetune_pending_requests"):
            assert time.perf_counter() - began < 60
            time.sleep(0.1)
        assert running.connect().detect(*asked[0]).status == 200
        for silent in held:
            silent.close()

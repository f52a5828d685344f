"""Pictures come as paths, data URIs, base64, bytes or addresses; what was inside the data lies beside data.jsonl."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from data.converting import convert, lines, write_json, write_lines
from edgetune_data.download import fetch
from edgetune_data.pictures import Pictures
from edgetune_data.read import load
from edgetune_runtime.errors import ImageError, InputError


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "green").save(stream, kind)
    return stream.getvalue()


PNG, JPEG = encoded("PNG"), encoded("JPEG")
TEXT = base64.b64encode(JPEG).decode()


def asked(image: Any) -> dict[str, Any]:
    return {"query": "<image>What?", "response": "Green.", "image": image}


@pytest.mark.parametrize(
    ("reference", "data"),
    [
        (f"data:image/png;base64,{base64.b64encode(PNG).decode()}", PNG),
        (f"data:;base64,{TEXT}", JPEG),
        (TEXT, JPEG),
        ("\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)), JPEG),
        ({"bytes": None, "path": "a.png"}, PNG),
        ("a.png", PNG),
    ],
)
def test_a_picture_is_found_however_it_is_given(tmp_path: Path, reference: Any, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    path = write_json(tmp_path / "input.json", [asked(reference)])
    assert convert(path, tmp_path / "out").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    [name] = line["images"]
    assert (tmp_path / "out" / name).read_bytes() == data
    inside = f"images/{hashlib.sha256(data).hexdigest()[:16]}.{'png' if data == PNG else 'jpg'}"
    assert name == ("../a.png" if "a.png" in str(reference) else inside)


def test_read_in_place_a_picture_inside_the_data_lives_as_long_as_the_process(tmp_path: Path) -> None:
    [entry] = load(write_json(tmp_path / "input.json", [asked(TEXT)]))
    assert entry.images[0].read_bytes() == JPEG
    assert tmp_path not in entry.images[0].parents


def test_all_pictures_are_copied_on_request_and_found_under_another_root(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.PNG").write_bytes(PNG)
    path = write_json(tmp_path / "input.json", [asked("a.PNG")])
    options = ("--image-root", str(tmp_path / "pictures"), "--copy-images")
    assert convert(path, tmp_path / "out", *options).exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert line["images"] == [f"images/{hashlib.sha256(PNG).hexdigest()[:16]}.png"]
    (tmp_path / "out").rename(tmp_path / "moved")
    assert load(tmp_path / "moved")[0].images[0].read_bytes() == PNG


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "a picture is a path, a data URI or bytes, got 3"),
        ("data:image/png,abc", "a data URI must be data:image/...;base64,..., got 'data:image/png,abc'"),
        ("data:image/png;base64,abc", "a picture's base64 text is broken: "),
        ("data:image/png;base64,aGVsbG8=", "the data URI: not an image, or in a format that Pillow cannot read"),
        ("aGVsbG8gd29y" * 8, "the base64 text: not an image, or in a format that Pillow cannot read"),
        ("b.png", "b.png: no such image file"),
        ("https://example.org/a.png", "the picture is at https://example.org/a.png, and nothing is fetched"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, reference: Any, message: str) -> None:
    path = write_json(tmp_path / "input.json", [asked(reference)])
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}#0: ")
    assert message in result.stderr


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a picture, a text, redirects to the picture, to ftp and to another host, and a byte now and then."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        inside = f"http://localhost:{str(self.headers['Host']).rpartition(':')[2]}/a.jpg"
        goal = {"/there": "/a.jpg", "/away": "ftp://127.0.0.1/a.jpg", "/inside": inside}.get(self.path)
        if self.path == "/drip":
            self.drip()
            return
        body = {"/a.jpg": JPEG, "/a.txt": b"hello"}.get(self.path)
        self.send_response(302 if goal else 200 if body else 404)
        if goal:
            self.send_header("Location", goal)
        self.end_headers()
        self.wfile.write(body or b"")

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b".")
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses_are_fetched_once_and_only_on_request(tmp_path: Path, address: str) -> None:
    path = write_json(tmp_path / "input.json", [asked(f"{address}/a.jpg"), asked(f"{address}/a.jpg")])
    refused = convert(path, tmp_path / "out")
    assert (refused.exit_code, Server.asked) == (2, [])
    assert "hint: edgetune data convert --allow-download" in refused.stderr
    assert convert(path, tmp_path / "out", "--allow-download").exit_code == 0
    assert Server.asked == ["/a.jpg"]
    for line in lines(tmp_path / "out" / "data.jsonl"):
        assert (tmp_path / "out" / line["images"][0]).read_bytes() == JPEG


def test_a_redirect_is_followed_to_web_addresses_only(address: str) -> None:
    assert fetch(f"{address}/there") == JPEG
    with pytest.raises(ImageError, match=r"leads to ftp://127\.0\.0\.1/a\.jpg, which is no web address"):
        fetch(f"{address}/away")


def test_a_redirect_to_another_host_of_a_private_network_is_refused(address: str) -> None:
    with pytest.raises(ImageError, match=r"/inside: leads to http://localhost:\d+/a\.jpg, which is inside a private"):
        fetch(f"{address}/inside")
    assert Server.asked == ["/inside"]


def test_a_server_that_never_ends_is_given_up_on(address: str) -> None:
    with pytest.raises(ImageError, match=r"/drip: not there after 0\.5 s"):
        fetch(f"{address}/drip", deadline_s=0.5)


@pytest.mark.parametrize("malformed", ["http://[::1", "http://", "HTTP://a b/c.jpg", "https://\u0000.org/"])
def test_a_malformed_address_is_told_in_a_line(tmp_path: Path, malformed: str) -> None:
    path = write_json(tmp_path / "input.json", [asked(malformed)])
    result = convert(path, tmp_path / "out", "--allow-download")
    assert (result.exit_code, result.stdout) == (2, "")
    shown = malformed.replace("\0", r"\u0000")  # control characters are told, not sent to the terminal
    assert result.stderr.startswith(f"error: {path}#0: {shown}: cannot be fetched: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_canonical_records_are_fetched_on_request(tmp_path: Path, address: str, scheme: str) -> None:
    record = {"image": address.replace("http", scheme) + "/a.jpg", "question": "What?", "answer": "Noise."}
    path = write_lines(tmp_path / "data.jsonl", record)
    refused = convert(path, tmp_path / "out")
    assert refused.stderr == (
        f"error: {path}:1: the picture is at {record['image']}, and nothing is fetched\n"
        "hint: edgetune data convert --allow-download\n"
    )
    with pytest.raises(InputError, match=r"data\.jsonl:1: the picture is at .*, and nothing is fetched"):
        load(path)
    assert convert(path, tmp_path / "out", "--allow-download").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert (tmp_path / "out" / line["image"]).read_bytes() == JPEG


TURNS = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Noise."}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS, "images": [TEXT]},
        {"image": TEXT, "text": "noise", "bbox": [1, 2, 3, 4]},
        {"image": f"DATA:image/jpeg;base64,{TEXT}", "question": "What?", "answer": "Noise."},
    ],
)
def test_base64_in_any_jsonl_is_a_picture(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "a.jsonl", record)
    assert convert(path, tmp_path / "out").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert (tmp_path / "out" / (line.get("image") or line["images"][0])).read_bytes() == JPEG
    [entry] = load(path)
    assert entry.images[0].read_bytes() == JPEG


def test_what_is_wrong_with_a_picture_inside_the_data_is_told_without_its_text(tmp_path: Path) -> None:
    broken = "aGVsbG8gd29y" * 1000
    path = write_lines(tmp_path / "a.jsonl", {"messages": TURNS, "images": [broken]})
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"error: {path}:1: the base64 text: not an image, or in a format that Pillow cannot read\n"


def test_what_cannot_be_fetched_is_told(address: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="/gone: the server answered 404 Not Found"):
        fetch(f"{address}/gone")
    with pytest.raises(ImageError, match="over the limit of 100 bytes"):
        fetch(f"{address}/a.jpg", max_bytes=100)
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/a.jpg")
    with pytest.raises(InputError, match=r"a\.txt: not an image"):
        Pictures(tmp_path, allow_download=True).path(f"{address}/a.txt")

"""Label Studio's protocol over HTTP; a stand-in gives pictures as Label Studio does.

`make test-label-studio` does the same with Label Studio itself.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from PIL import Image

from edgetune_runtime.session import Session
from served import Asked, Connection, Reply, Server, encoded, png

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

PERSONAL = "head.payload.signature"
LEGACY = "0123456789abcdef"


class _Handler(BaseHTTPRequestHandler):
    """What Label Studio 1.23.2 answers: 401 without a token, 406 to who accepts pictures alone."""

    server: Studio

    def do_GET(self) -> None:
        """Give an upload."""
        asked = self.headers.get("Authorization")
        self.server.seen.append((self.path, asked))
        if self.path.startswith("/data/upload/elsewhere"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/data/upload/0")
            self.end_headers()
        elif asked not in (f"Bearer {self.server.access}", f"Token {LEGACY}"):
            self.send_error(401)
        elif "*/*" not in self.headers.get("Accept", ""):
            self.send_error(406)
        elif (name := self.path.rpartition("/")[2]) in self.server.pictures:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.pictures[name])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Exchange a personal token, which is the one thing that is posted here."""
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, told["refresh"]))
        right = self.path == "/api/token/refresh/" and told["refresh"] == PERSONAL
        self.server.access = f"access-{len(self.server.seen)}" if right else self.server.access
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"access": self.server.access} if right else {"detail": "invalid"}).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Studio(ThreadingHTTPServer):
    """Pictures by name, behind a token that changes."""

    def __init__(self, pictures: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pictures, self.access = pictures, "nobody has this one"
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture(scope="module")
def studio(asked: list[Asked]) -> Iterator[Studio]:
    with Studio({str(number): each.picture for number, each in enumerate(asked)}) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def backend(studio: Studio, tiny_bundle: Path) -> Iterator[Server]:
    with Server(f"tiny={tiny_bundle}", "--label-studio", studio.url, env={"LABEL_STUDIO_API_KEY": PERSONAL}) as running:
        yield running


def config(*labels: dict[str, str], image: str = "$image") -> str:
    """A labelling config with these labels."""
    tags = "".join(
        f"<Label {' '.join(f'{name}={quoteattr(value)}' for name, value in label.items())}/>" for label in labels
    )
    return (
        f'<View><Image name="photo" value="{image}"/><TextArea name="prompt" toName="photo"/>'
        f'<RectangleLabels name="box" toName="photo">{tags}</RectangleLabels>'
        '<Choices name="kind" toName="photo"><Choice value="indoors"/></Choices></View>'
    )


def predict(connection: Connection, references: list[str], text: str, context: Any = None) -> Reply:
    """Ask as Label Studio does (`_prep_prediction_req` in ml/api_connector.py)."""
    tasks = [
        {"id": 7 + number, "data": {"image": reference}, "meta": {}, "annotations": [], "predictions": [], "project": 1}
        for number, reference in enumerate(references)
    ]
    params = {"login": None, "password": None, "context": context}
    body = {"tasks": tasks, "project": "1.1796060990", "label_config": text, "params": params}
    return connection.ask("POST", "/predict", body)


def pixels(region: dict[str, Any]) -> list[float]:
    """A region's box in pixels of the upright picture."""
    value, width, height = region["value"], region["original_width"], region["original_height"]
    x, y = value["x"] * width / 100, value["y"] * height / 100
    return [x, y, x + value["width"] * width / 100, y + value["height"] * height / 100]


def test_it_is_taken_for_an_ml_backend(backend: Server, asked: list[Asked]) -> None:
    connection = backend.connect()
    told = connection.ask("GET", "/health").json
    assert told["status"] == "UP" and isinstance(told["model_class"], str)
    body = {"project": "1.1796060990", "schema": config({"value": "cup"}), "hostname": "http://localhost:8080"}
    told = connection.ask("POST", "/setup", body | {"access_token": "secret", "extra_params": None}).json
    assert told == {
        "model_version": predict(connection, ["/data/upload/0"], body["schema"]).json["results"][0]["model_version"]
    }
    assert "secret" not in backend.log


def test_predictions_are_boxes_of_the_session_in_percent(backend: Server, session: Session, asked: list[Asked]) -> None:
    phrases = list(dict.fromkeys(each.phrase for each in asked[:6]))
    labels = [{"value": f"label {number}", "hint": phrase} for number, phrase in enumerate(phrases)]
    references = [f"/data/upload/{number}" for number in range(6)]
    results = predict(backend.connect(), references, config(*labels)).json["results"]
    assert len(results) == 6 and any(len(each["result"]) for each in results)
    for each, result in zip(asked, results, strict=False):
        expected = [session.ground(each.picture, phrase) for phrase in phrases]  # as the server asks
        found = [
            (f"label {number}", detection) for number, detections in enumerate(expected) for detection in detections
        ]
        assert [region["value"]["rectanglelabels"] for region in result["result"]] == [[label] for label, _ in found]
        size = Image.open(io.BytesIO(each.picture)).size
        for region, (_, detection) in zip(result["result"], found, strict=True):
            assert pixels(region) == pytest.approx(list(detection.box), abs=1e-9)
            assert (region["original_width"], region["original_height"], region["image_rotation"]) == (*size, 0)
            assert (region["type"], region["from_name"], region["to_name"]) == ("rectanglelabels", "box", "photo")
            assert region["score"] == detection.score
        scores = [detection.score for _, detection in found if detection.score is not None]
        assert result["score"] == min(scores, default=None)
    ids = [region["id"] for result in results for region in result["result"]]
    assert len(set(ids)) == len(ids)


def test_percents_are_of_the_upright_picture(backend: Server, session: Session, asked: list[Asked]) -> None:
    upright = Image.open(io.BytesIO(asked[0].picture))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    text = config({"value": asked[0].phrase})
    told = predict(backend.connect(), [f"data:image/png;base64,{encoded(turned)}"], text).json["results"][0]["result"]
    (expected,) = session.ground(png(upright), asked[0].phrase)
    (region,) = told
    assert (region["original_width"], region["original_height"]) == upright.size
    assert pixels(region) == pytest.approx(list(expected.box), abs=1e-9)


def test_what_a_label_asks_and_how_its_boxes_are_called(backend: Server, session: Session, asked: list[Asked]) -> None:
    phrase = asked[0].phrase
    for label, name in (
        ({"value": phrase}, phrase),
        ({"value": "a thing", "hint": phrase}, "a thing"),
        ({"value": "a thing", "hint": "not this", "predicted_values": f"{phrase}, {phrase}"}, "a thing"),
        ({"value": phrase, "alias": "thing_1"}, "thing_1"),
    ):
        regions = predict(backend.connect(), ["/data/upload/0"], config(label)).json["results"][0]["result"]
        expected = session.ground(asked[0].picture, phrase)
        assert len(regions) == len(expected) * (2 if "predicted_values" in label else 1)
        for region in regions:
            assert region["value"]["rectanglelabels"] == [name]
            assert pixels(region) == pytest.approx(list(expected[0].box), abs=1e-9)


def test_a_prompt_is_asked_in_place_of_the_labels(backend: Server, session: Session, asked: list[Asked]) -> None:
    connection, phrase = backend.connect(), asked[0].phrase
    word = phrase.split()[-1]

    def ask(text: str, *labels: str, **more: Any) -> Reply:
        item = {"from_name": "prompt", "to_name": "photo", "type": "textarea", "value": {"text": [text]}} | more
        return predict(
            connection, ["/data/upload/0"], config(*({"value": label} for label in labels)), {"result": [item]}
        )

    (expected,) = session.ground(asked[0].picture, phrase)
    for labels, name in ((("thing",), "thing"), (("thing", word), word), ((word, "right of", phrase), phrase)):
        (region,) = ask(phrase, *labels).json["results"][0]["result"]
        assert region["value"]["rectanglelabels"] == [name]
        assert pixels(region) == pytest.approx(list(expected.box), abs=1e-9)
    assert "names none of the labels" in ask(phrase, "one", "two").message
    assert "no text to look for" in ask(phrase, word, type="rectanglelabels").message
    assert "no text to look for" in ask(" ", word).message
    region = {"id": "a", "type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 2, "height": 2}}
    about = {"id": "a", "to_name": "photo", "type": "textarea", "value": {"text": ["a note on the region"]}}
    context = {"result": [region, about]}
    reply = predict(connection, ["/data/upload/0"], config({"value": word}), context)
    assert "no text to look for" in reply.message
    assert "no RectangleLabels draws on" in ask(phrase, word, to_name="other").message
    assert ask("x" * 5000, word).status == 400


def test_one_picture_that_cannot_be_used_costs_no_other(backend: Server, asked: list[Asked]) -> None:
    text = config({"value": asked[0].phrase})
    reply = predict(backend.connect(), ["/data/upload/0", "/data/upload/missing", "/data/upload/0"], text)
    first, second, third = reply.json["results"]
    assert first["result"] and first["score"] == third["score"]
    assert "result" not in second and "status 404" in second["error"]["message"]
    assert second["error"]["param"] == "tasks[1].data.image"
    entry = [json.loads(line) for line in backend.log.splitlines() if '"/predict"' in line][-1]
    assert (entry["tasks"], entry["tasks_refused"]) == (3, 1) and "status 404" in entry["refusal"]


def test_a_personal_token_is_exchanged_again_when_its_access_ends(
    backend: Server, studio: Studio, asked: list[Asked]
) -> None:
    connection, text = backend.connect(), config({"value": asked[0].phrase})
    predict(connection, ["/data/upload/0"], text)
    studio.seen.clear()
    assert predict(connection, ["/data/upload/1"], text).status == 200
    assert [path for path, _ in studio.seen] == ["/data/upload/1"]
    studio.access = "another one"
    assert predict(connection, ["/data/upload/2"], text).status == 200
    paths = [path for path, _ in studio.seen]
    assert paths[1:] == ["/data/upload/2", "/api/token/refresh/", "/data/upload/2"]


@pytest.mark.parametrize(
    ("key", "said"), [(LEGACY, None), ("wrong", "status 401"), ("a.b.c", "does not take the token")]
)
def test_other_tokens(key: str, said: str | None, studio: Studio, tiny_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={tiny_bundle}", "--label-studio", studio.url, env={"LABEL_STUDIO_API_KEY": key}) as running:
        reply = predict(running.connect(), ["/data/upload/0"], config({"value": asked[0].phrase}))
        assert reply.status == (200 if said is None else 400)
        assert said is None or (said in reply.message and "LABEL_STUDIO_API_KEY" in reply.body.decode())
        assert key not in running.log and key not in reply.body.decode()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("s3://bucket/cup.png", "in a bucket"),
        ("/etc/passwd", "no picture of a Label Studio"),
        ("/storage-data/uploaded/?filepath=x", "no picture of a Label Studio"),
        ("/api/current-user/token", "no picture of a Label Studio"),
        ("/data/../api/current-user/token", "no picture of a Label Studio"),
        ("/data/%2e%2e/api/users", "no picture of a Label Studio"),
        ("//example.org/data/upload/0", "no picture of a Label Studio"),
        ("{url}/api/users", "no picture of a Label Studio"),
        ("{url}@169.254.169.254/data/upload/0", "switched off"),
        ("http://example.org/cup.png", "switched off"),
        ("file:///etc/passwd", "no reference to a picture"),
        ("/data/upload/elsewhere", "not allowed"),
        ("/data/upload/a\r\nX-Header: b", "status 404"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:text/plain,hello", "a data URI is"),
        ("", "no reference to a picture"),
    ],
)
def test_other_references_are_refused(reference: str, said: str, backend: Server, studio: Studio) -> None:
    studio.seen.clear()
    reply = predict(backend.connect(), [reference.format(url=studio.url)], config({"value": "cup"}))
    assert reply.status == 400 and said in reply.message, reply.body
    assert reply.json["error"]["param"] == "tasks[0].data.image"
    assert not any(path.startswith("/api/users") or "etc" in path for path, _ in studio.seen)
    assert len([path for path, _ in studio.seen if "elsewhere" in path]) == (1 if "elsewhere" in reference else 0)


def test_a_label_studio_below_a_path(studio: Studio, asked: list[Asked]) -> None:
    from edgetune_runtime.serve.label_studio_files import LabelStudioFiles

    files = LabelStudioFiles(f"{studio.url}/tool/", LEGACY, 1 << 20)
    studio.seen.clear()
    for reference in ("/data/upload/0", "/tool/data/upload/0", f"{studio.url}/tool/data/upload/0"):
        assert files.has(reference) and files.content(reference, "image") == asked[0].picture
    assert [path for path, _ in studio.seen] == ["/tool/data/upload/0"] * 3


def test_without_a_label_studio_its_paths_are_refused(server: Server) -> None:
    reply = predict(server.connect(), ["/data/upload/0"], config({"value": "cup"}))
    assert reply.status == 400 and "--label-studio" in reply.json["error"]["hint"]


BOMB = '<!DOCTYPE x [<!ENTITY a "cup"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><View>&b;</View>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must not be empty"),
        ("cups", "is no XML"),
        ("<View>", "is no XML"),
        ("\ud800", "is no XML"),
        (BOMB, "document type"),
        ("<View/>", "no RectangleLabels"),
        ("<View>" * 5000 + "</View>" * 5000, "no RectangleLabels"),
        (config(), "no RectangleLabels with a Label"),
        (config({"background": "red"}), "a Label has no value"),
        (config({"value": "cup"}, image="$"), "no Image of one picture"),
        (config({"value": "cup"}, image="cup.png"), "no Image of one picture"),
        (config({"value": "cup"}).replace('toName="photo"', ""), "no Image of one picture"),
        (config(*({"value": str(number)} for number in range(33))), "33 phrases"),
        (config({"value": "x" * 5000}), "5000 characters"),
        ("x" * 300_000, "characters"),
    ],
)
def test_configs_for_which_no_boxes_can_be_proposed(text: str, said: str, backend: Server) -> None:
    connection = backend.connect()
    for reply in (predict(connection, ["/data/upload/0"], text), connection.ask("POST", "/setup", {"schema": text})):
        assert reply.status == 400 and said in reply.message, reply.body


def test_a_phrase_with_a_control_token_is_refused(backend: Server) -> None:
    reply = predict(backend.connect(), ["/data/upload/0"], config({"value": "cup<|im_end|>"}))
    assert reply.status == 400 and "control token" in reply.message
    assert reply.json["error"]["param"] == "label_config"


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": []},
        {"tasks": [{}]},
        {"tasks": [{"data": []}]},
        {"tasks": [{"data": {"image": 7}}]},
        {"tasks": [{"data": {"other": "x"}}]},
        {"tasks": [{"data": {"image": "/data/upload/0"}}] * 1001},
        {"tasks": [{"data": {"image": "/data/upload/0", "x": [0] * 300_000}}]},
        {"label_config": None},
        {"params": []},
        {"params": {"context": 7}},
        {"params": {"context": {"result": [7, {"type": "textarea", "value": {"text": [None, {}]}}]}}},
        {"model": "other"},
    ],
)
def test_requests_that_are_wrong_are_refused(change: dict[str, Any], backend: Server) -> None:
    body = {"tasks": [{"data": {"image": "/data/upload/0"}}], "label_config": config({"value": "cup"})}
    reply = backend.connect().ask("POST", "/predict", body | change)
    assert reply.status in (400, 404) and reply.message


def test_many_fields_of_many_tasks_are_no_bulk(backend: Server, asked: list[Asked]) -> None:
    """Label Studio sends all that it knows of a task."""
    tasks = [{"data": {"image": "/data/upload/0"}, "annotations": [{"result": list(range(300))}]}] * 20
    body = {"tasks": tasks, "label_config": config({"value": asked[0].phrase})}
    assert len(backend.connect().ask("POST", "/predict", body).json["results"]) == 20


def test_an_answer_that_cannot_be_read_is_the_least_sure(free_bundle: Path, asked: list[Asked]) -> None:
    """Random weights write no boxes by themselves."""
    with Server(f"random={free_bundle}") as running:
        reference = f"data:image/png;base64,{encoded(asked[0].picture)}"
        assert running.connect().detect(*asked[0]).json["status"] == "unparsed"
        (result,) = predict(running.connect(), [reference], config({"value": asked[0].phrase})).json["results"]
        assert result["result"] == [] and result["score"] == 0.0


def test_events_are_counted_for_who_has_the_key(tiny_bundle: Path) -> None:
    regions = [{"type": "rectanglelabels", "origin": origin} for origin in ("prediction", "prediction", "manual", "x")]
    annotation = {"result": [*regions, {"type": "choices", "origin": "manual"}, 7]}
    with Server(f"tiny={tiny_bundle}", "--api-key", "the key") as running:
        connection = running.connect()
        basic = {"authorization": f"Basic {encoded(b'label-studio:the key')}"}
        assert connection.ask("POST", "/webhook", {"action": "ANNOTATION_CREATED"}).status == 401
        for event in (
            {"action": "ANNOTATION_CREATED", "annotation": annotation, "task": {}, "project": {}},
            {"action": "ANNOTATIONS_CREATED", "annotation": [annotation, {"result": None}, None]},
            {"action": "ANNOTATION_UPDATED", "annotation": annotation},
            {"action": "START_TRAINING", "project": {}},
            {"action": "what is this"},
        ):
            told = connection.ask("POST", "/webhook", event, basic)
            assert told.status == 200 and told.json["status"] == "ok"
        assert connection.ask("POST", "/webhook", {"annotation": annotation}, basic).status == 400
        text = connection.ask("GET", "/metrics", None, basic).body.decode()
    counted = dict(line.split(" ") for line in text.splitlines() if line.startswith("edgetune_label_studio"))
    name = 'edgetune_label_studio_events_total{{action="{}"}}'
    created = {name.format("ANNOTATION_CREATED"): "1.0", name.format("ANNOTATIONS_CREATED"): "1.0"}
    others = {name.format(action): "1.0" for action in ("ANNOTATION_UPDATED", "START_TRAINING", "other")}
    name = 'edgetune_label_studio_regions_total{{origin="{}"}}'
    origins = {name.format("prediction"): "4.0", name.format("manual"): "2.0", name.format("other"): "2.0"}
    assert counted == created | others | origins


def test_a_label_studio_that_leaves_ends_the_work(backend: Server, asked: list[Asked]) -> None:
    connection, before = backend.connect(), backend.figure("edgetune_cancelled_total")
    labels = [{"value": each.phrase} for each in asked[:20]]
    tasks = [{"data": {"image": f"/data/upload/{number % 20}"}} for number in range(40)]
    body = json.dumps({"tasks": tasks, "label_config": config(*labels)})
    connection.http.request("POST", "/predict", body, {"content-type": "application/json"})
    while not backend.figure("edgetune_pending_requests"):
        time.sleep(0.01)
    connection.http.close()
    while backend.figure("edgetune_pending_requests"):
        time.sleep(0.05)
    assert backend.figure("edgetune_cancelled_total") >= before + 1
    assert predict(backend.connect(), ["/data/upload/0"], config({"value": asked[0].phrase})).status == 200


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "http://a:b@host", "http://host/?x=1"])
def test_an_address_that_is_none_is_told_at_the_start(
    url: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetune_runtime.cli import main

    assert main(["serve", str(tiny_bundle), "--label-studio", url]) == 2
    assert "no address of a Label Studio" in capsys.readouterr().err

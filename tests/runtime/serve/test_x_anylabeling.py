"""X-AnyLabeling's protocol: requests as its client (x-anylabeling-cvhub 4.2.1) sends them, and what it reads.

`make test-x-anylabeling` asks with that client itself.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgetune_runtime.session import Session
from served import Asked, Connection, Reply, Server, encoded, png

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

THEIRS = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
"""What the client sends of settings that a user did not touch."""


def predict(connection: Connection, picture: bytes, text: str, key: str = "", **params: Any) -> Reply:
    """Ask as `RemoteServer.predict_shapes` does."""
    prompt = {"text_prompt": text.rstrip(".")} if text else {}
    payload = {
        "model": "tiny",
        "image": f"data:image/jpeg;base64,{encoded(picture)}",
        "params": THEIRS | prompt | params,
    }
    return connection.ask("POST", "/x-anylabeling/v1/predict", payload, {"Token": key})


def test_the_list_of_models_is_theirs_and_openais_is_openais(server: Server) -> None:
    connection = server.connect()
    told = connection.ask("GET", "/x-anylabeling/v1/models", None, {"Token": ""}).json
    assert list(told["data"]) == ["tiny"]
    model = told["data"]["tiny"]
    assert model["batch_processing_mode"] == "text_prompt"
    assert {"edit_text", "button_send"} <= {widget["name"] for widget in model["widgets"]}
    assert [each["id"] for each in connection.ask("GET", "/v1/models").json["data"]] == ["tiny"]


def test_shapes_are_boxes_of_the_session(server: Server, session: Session, asked: list[Asked]) -> None:
    phrases = [each.phrase for each in asked[:5]]
    seen = 0
    for each in asked[:5]:
        told = predict(server.connect(), each.picture, ". ".join(phrases) + ".").json
        expected = [
            (phrase, found)
            for phrase in phrases  # one by one, as the server asks
            for found in session.ground(each.picture, phrase)
        ]
        assert told["success"] is True and told["data"]["description"] == ""
        for shape, (phrase, found) in zip(told["data"]["shapes"], expected, strict=True):
            x1, y1, x2, y2 = found.box
            assert shape["points"] == [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            assert (shape["label"], shape["shape_type"], shape["score"]) == (phrase, "rectangle", found.score)
        seen += len(expected)
    assert seen >= 5


def test_pictures_are_read_upright(server: Server, session: Session, asked: list[Asked]) -> None:
    upright = Image.open(io.BytesIO(asked[0].picture))
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = png(upright.transpose(Image.Transpose.ROTATE_270), exif=exif)
    (shape,) = predict(server.connect(), turned, asked[0].phrase).json["data"]["shapes"]
    (found,) = session.ground(png(upright), asked[0].phrase)
    assert [*shape["points"][0], *shape["points"][2]] == list(found.box)


def test_shapes_under_the_least_score_are_left_out(server: Server, session: Session, asked: list[Asked]) -> None:
    (found,) = session.ground(asked[0].picture, asked[0].phrase)
    assert found.score is not None
    for least, count in ((found.score - 0.01, 1), (found.score, 1), (found.score + 0.01, 0)):
        told = predict(server.connect(), asked[0].picture, asked[0].phrase, conf_threshold=least).json
        assert len(told["data"]["shapes"]) == count


def test_what_could_not_be_read_is_told(free_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={free_bundle}") as running:
        data = predict(running.connect(), *asked[0]).json["data"]
        assert data["shapes"] == [] and list(data["problems"]) == [asked[0].phrase]


def test_the_key_is_their_token(tiny_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={tiny_bundle}", "--api-key", "the key") as running:
        connection = running.connect()
        for key, status in (("", 401), ("the ke", 401), ("the key", 200)):
            assert predict(connection, *asked[0], key).status == status
            assert connection.ask("GET", "/x-anylabeling/v1/models", None, {"Token": key}).status == status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"marks": [{"type": "point", "data": [1, 2], "label": 1}]}, "marks must have at most 0 entries"),
        ({"filter_classes": ["cup"]}, "filter_classes must have at most 0 entries"),
        ({"current_task": "caption"}, "current_task can be"),
        ({"conf_threshold": "high"}, "of type number"),
        ({"text_prompt": ". . "}, "no text to look for"),
        ({"text_prompt": "a." * 33}, "33 phrases"),
        ({"text_prompt": "the cup<|im_end|>"}, "control token"),
        ({"temperature": 1}, "'params.temperature' is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(
    change: dict[str, Any], said: str, server: Server, asked: list[Asked]
) -> None:
    reply = predict(server.connect(), asked[0].picture, "the cup", **change)
    assert reply.status == 400 and said in reply.message, reply.body


def test_a_request_without_a_text_or_picture_is_refused(server: Server, asked: list[Asked]) -> None:
    assert "text_prompt is missing" in predict(server.connect(), asked[0].picture, "").message
    assert predict(server.connect(), b"no picture", "the cup").status == 400
    assert server.connect().ask("POST", "/x-anylabeling/v1/predict", b"[]").status == 400

"""The published schema: valid, true of the answers, and no request of its kind or against it makes the server fail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from served import Asked, Server, encoded

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

EXAMPLES = 150
"""Requests for each of eight paths, and as many against its schema: 2,400 in all."""
PATHS = (
    *("/v1/detect", "/v1/point", "/v1/ask", "/v1/chat/completions"),
    *("/setup", "/predict", "/webhook", "/x-anylabeling/v1/predict"),
)


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("path", PATHS)
def test_no_request_makes_the_server_fail(path: str, mode: str, server: Server) -> None:
    """Requests of the published kind, and requests against it, as schemathesis makes them."""
    operation = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")[path]["POST"]

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a request that fails is told as it is, for each of them takes an answer's time
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call()
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json()["error"]["message"] and len(response.text) < 2500

    ask()


def test_answers_are_as_the_schema_says(server: Server, asked: list[Asked]) -> None:
    from jsonschema import Draft202012Validator

    connection = server.connect()
    reference = f"data:image/jpeg;base64,{encoded(asked[0].picture)}"
    config = (
        '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
        f'<Label value="{asked[0].phrase}"/></RectangleLabels></View>'
    )
    tasks = [{"data": {"image": reference}}, {"data": {}}]
    shapes = {"image": reference, "params": {"text_prompt": asked[0].phrase}}
    document = connection.ask("GET", "/openapi.json").json
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object", name
    replies = {
        "Detections": connection.detect(asked[0].picture, [each.phrase for each in asked[:3]]),
        "Error": connection.ask("POST", "/v1/detect", b"[]"),
        "LabelStudioVersion": connection.ask("POST", "/setup", {"schema": config}),
        "LabelStudioPredictions": connection.ask("POST", "/predict", {"label_config": config, "tasks": tasks}),
        "LabelStudioReceived": connection.ask("POST", "/webhook", {"action": "TASKS_CREATED"}),
        "XAnyLabelingShapes": connection.ask("POST", "/x-anylabeling/v1/predict", shapes),
    }
    for name, reply in replies.items():
        Draft202012Validator(document["components"]["schemas"][name]).validate(reply.json)
    paths = {path for path, methods in document["paths"].items() if "post" in methods}
    assert paths == set(PATHS)

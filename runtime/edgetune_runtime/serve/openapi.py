"""The OpenAPI document: every path with the schemas that its requests are checked against."""

from __future__ import annotations

from edgetune_runtime._version import __version__
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.schema import FRAME, Schema, object_of, responses


def openapi(limits: Limits, bodies: dict[str, Schema], *, keyed: bool) -> Schema:
    """The OpenAPI 3.1 document.

    Args:
        limits: of the server.
        bodies: what `requests` gave for them.
        keyed: whether an API key is asked for.
    """
    refusals = {
        "400": "The request or its picture cannot be used.",
        "408": "The request took too long to arrive.",
        "413": f"The request is over {limits.body_bytes} bytes.",
        "415": "The body is neither JSON nor a form.",
        "404": "There is no such model.",
        "429": "Too many requests wait; Retry-After says when to come again.",
        "500": "The engine failed.",
        "502": "An engine elsewhere left in the middle of an answer.",
        "503": "The server is about to end.",
    } | ({"401": "The API key is missing or wrong."} if keyed else {})
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {code: {"description": text, "content": error} for code, text in refusals.items()}

    def posted(name: str, summary: str, answer: Schema, *, form: bool) -> Schema:
        reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
        content: Schema = {"application/json": reference}
        if form:
            fields = {
                **bodies[name]["properties"],
                "image": {"type": "string", "contentMediaType": "application/octet-stream"},
            }
            content["multipart/form-data"] = {"schema": object_of(fields, bodies[name]["required"])}
        ok = {"200": {"description": "The answer.", "content": answer}}
        return {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": ok | refused,
            }
        }

    def told(summary: str, kind: str, schema: Schema) -> Schema:
        answers = {"200": {"description": "It is.", "content": {kind: {"schema": schema}}}}
        return {
            "get": {
                "summary": summary,
                "responses": answers | {code: refused[code] for code in ("401", "503") if code in refused},
            }
        }

    def json_of(name: str) -> Schema:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    events: Schema = {"text/event-stream": {"schema": {"type": "string"}}}
    anything: Schema = {"type": "object"}
    paths: Schema = {
        "/v1/detect": posted("Detect", "Boxes of what phrases name", json_of("Detections") | events, form=True),
        "/v1/point": posted("Point", "The middle of each such box", json_of("Points") | events, form=True),
        "/v1/ask": posted("Ask", "An answer in words", json_of("Answer"), form=True),
        "/v1/chat/completions": posted(
            "Chat", "As of OpenAI's API", {"application/json": {"schema": anything}} | events, form=False
        ),
        "/setup": posted(
            "LabelStudioSetup",
            "Label Studio: whether a labelling config can be served",
            json_of("LabelStudioVersion"),
            form=False,
        ),
        "/predict": posted(
            "LabelStudioPredict", "Label Studio: boxes for tasks", json_of("LabelStudioPredictions"), form=False
        ),
        "/webhook": posted(
            "LabelStudioWebhook", "Label Studio: an event, which is counted", json_of("LabelStudioReceived"), form=False
        ),
        "/x-anylabeling/v1/predict": posted(
            "XAnyLabelingPredict", "X-AnyLabeling: boxes as shapes", json_of("XAnyLabelingShapes"), form=False
        ),
        "/x-anylabeling/v1/models": told("X-AnyLabeling: the bundles", "application/json", anything),
        "/v1/models": told("The bundles that are served", "application/json", anything),
        "/health": told("Whether the server runs", "application/json", anything),
        "/ready": told("Whether it takes requests", "application/json", anything),
        "/metrics": told("Figures for Prometheus", "text/plain", {"type": "string"}),
    }
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "edgetune", "version": __version__, "description": f"Boxes are {FRAME}."},
        "paths": paths,
        "components": {"schemas": bodies | responses()},
    }
    if keyed:
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic", "description": "The key as password, of any user."},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "token": {"type": "apiKey", "in": "header", "name": "Token", "description": "As X-AnyLabeling sends it."},
        }
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
    return document

"""What requests may hold, as JSON Schema: requests are checked against the same text that /openapi.json publishes."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from edgetune_runtime._version import __version__
from edgetune_runtime.errors import excerpt
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.refusal import Refusal

Schema = dict[str, Any]

MAX_VALUES = 2000
"""Of a body, counting those of its lists and objects: many times what the longest request has."""
FRAME = (
    "xyxy, float pixels of the picture as it was sent, upright (EXIF orientation applied): the server resizes for the "
    "model and maps boxes back"
)


def _object(properties: Schema, required: list[str], **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _text(limits: Limits, description: str) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": limits.text_length, "description": description}


def _only(value: Any, why: str) -> Schema:
    return {"enum": [value, None], "description": why}


def requests(limits: Limits) -> dict[str, Schema]:
    """The schema of each request's body, by name."""
    picture: Schema = {
        "type": "string",
        "minLength": 1,
        "description": "The picture: a data URI, base64 of a picture's file, or an address of an allowed host.",
    }
    model = {"type": "string", "description": "A bundle's name, as in /v1/models; the first one where it is left out."}
    tokens = {
        "type": "integer",
        "minimum": 1,
        "maximum": limits.new_tokens,
        "description": f"Longest answer in tokens, at most {limits.new_tokens}.",
    }
    phrase = _text(limits, 'What to find, such as "the left clock".')
    phrases: Schema = {
        "anyOf": [phrase, {"type": "array", "items": phrase, "minItems": 1, "maxItems": limits.phrases}],
        "description": f"What to find: one phrase, or a list of up to {limits.phrases}; the picture is encoded once.",
    }
    stream = {"type": "boolean", "description": "Send an event as soon as each phrase is answered."}
    detect = _object(
        {"image": picture, "phrase": phrases, "model": model, "max_new_tokens": tokens, "stream": stream},
        ["image", "phrase"],
    )
    ask = _object(
        {
            "image": picture,
            "question": _text(limits, "The question."),
            "model": model,
            "max_new_tokens": tokens,
        },
        ["image", "question"],
    )
    return {"Detect": detect, "Point": detect, "Ask": ask, "Chat": _chat(limits, model, tokens)}


def _chat(limits: Limits, model: Schema, tokens: Schema) -> Schema:
    words: Schema = {"type": "string", "maxLength": limits.text_length}
    text = _object({"type": {"const": "text"}, "text": words}, ["type", "text"])
    url = _object({"url": {"type": "string", "minLength": 1}, "detail": {"enum": ["auto", "low", "high"]}}, ["url"])
    image = _object({"type": {"const": "image_url"}, "image_url": url}, ["type", "image_url"])
    content: Schema = {
        "anyOf": [words, {"type": "array", "minItems": 1, "maxItems": 8, "items": {"anyOf": [text, image]}}]
    }
    message = _object(
        {
            "role": {
                "enum": ["user"],
                "description": "One turn of a user is answered: no system, no earlier turns.",
            },
            "content": content,
            "name": {"type": "string"},
        },
        ["role", "content"],
    )
    stop: Schema = {"type": "string", "minLength": 1, "maxLength": 100}
    greedy = "Answers are greedy, which is temperature 0."
    form = _object(
        {"type": {"enum": ["text", "json_schema"]}, "json_schema": {"type": "object"}},
        ["type"],
        description="json_schema asks for boxes: its schema may name detections with box, label and score.",
    )
    properties: Schema = {
        "model": model,
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": message,
            "description": "One message of a user, with one picture at most.",
        },
        "max_tokens": {"anyOf": [tokens, {"type": "null"}]},
        "max_completion_tokens": {"anyOf": [tokens, {"type": "null"}]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "anyOf": [_object({"include_usage": {"type": "boolean"}}, []), {"type": "null"}],
        },
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": 4}, {"type": "null"}]},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _only(0, "Only the chosen token's probability is told."),
        "response_format": {"anyOf": [form, {"type": "null"}]},
        "temperature": _only(0, greedy),
        "top_p": _only(1, greedy),
        "n": _only(1, "There is one greedy answer."),
        "presence_penalty": _only(0, greedy),
        "frequency_penalty": _only(0, greedy),
        "seed": {"type": ["integer", "null"], "description": "Changes nothing: answers are greedy."},
        "user": {"type": "string", "description": "Not used."},
    }
    return _object(properties, ["messages"])


def check(body: Any, schema: Schema) -> dict[str, Any]:
    """Return a request's body, which fits its schema.

    Raises:
        Refusal: it does not; `param` says where.
    """
    refuse_bulk(body)
    error = best_match(_validator(_Key(schema)).iter_errors(body))
    if error is None:
        found: dict[str, Any] = body
        return found
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path).lstrip(".")
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(name for name in error.instance if name not in known)
        where = f"{place}.{unknown}" if place else unknown
        raise Refusal(
            400, f"{excerpt(where)} is not supported", hint=f"known are {', '.join(known)}", param=where[:100]
        )
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        raise Refusal(400, f"{missing} is missing", param=f"{place}.{missing}" if place else missing)
    shown = {
        "type": f"must be of type {_listed(error.validator_value)}",
        "enum": f"can be {_listed(error.validator_value)}",
        "const": f"can be {excerpt(error.validator_value)}",
        "minimum": f"must be at least {error.validator_value}",
        "maximum": f"must be at most {error.validator_value}",
        "minLength": "must not be empty",
        "maxLength": f"must have at most {error.validator_value} characters",
        "minItems": "must not be empty",
        "maxItems": f"must have at most {error.validator_value} entries",
    }.get(str(error.validator), "does not fit any of the forms that it may have")
    long = error.validator in ("maxLength", "maxItems")
    got = f"and has {len(error.instance)}" if long else f"not {excerpt(error.instance, 60)}"
    why = error.schema.get("description") if isinstance(error.schema, dict) else None
    raise Refusal(400, f"{place or 'the body'} {shown}, {got}", hint=why, param=place or None)


def refuse_bulk(body: Any) -> None:
    """Refuse a body of more values than any request has: a validator would explain each that is wrong.

    Raises:
        Refusal: it is such a body.
    """
    left, rest = MAX_VALUES, [body]
    while rest:
        value = rest.pop()
        inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        left -= 1 + len(inner)
        if left < 0:
            raise Refusal(400, f"the body has more than {MAX_VALUES} values")
        rest += inner


def _listed(values: Any) -> str:
    named = [
        value if isinstance(value, str) else repr(value) for value in (values if isinstance(values, list) else [values])
    ]
    return " or ".join("null" if name == "None" else name for name in named)


class _Key:
    """A schema, as what a validator is kept under: by identity, for schemas are made once."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def __hash__(self) -> int:
        return id(self.schema)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.schema is self.schema


@cache
def _validator(key: _Key) -> Any:
    return Draft202012Validator(key.schema)


_DETECTION = _object(
    {
        "box": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": f"[x1, y1, x2, y2]: {FRAME}.",
        },
        "label": {"type": "string", "description": "As the model wrote it; empty where it writes none."},
        "score": {"type": ["number", "null"], "description": "How sure the model was of the digits, 0 to 1."},
        "phrase": {"type": "string"},
    },
    ["box", "label", "score", "phrase"],
)
_STATUS: Schema = {
    "enum": ["found", "refused", "unparsed"],
    "description": "refused: the model says that it is not there; unparsed: its text could not be read as boxes.",
}
_IMAGE = _object({"width": {"type": "integer"}, "height": {"type": "integer"}}, ["width", "height"])
_TIMINGS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "number"},
    "description": "Seconds of queue, load, preprocess, vision, prefill, decode and total, and tokens.",
}
_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
                "hint": {"type": ["string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}


def _result(kind: str, item: Schema) -> Schema:
    properties: Schema = {
        "phrase": {"type": "string"},
        kind: {"type": "array", "items": item},
        "status": _STATUS,
        "problem": {"type": ["string", "null"]},
        "text": {"type": "string", "description": "What the model wrote."},
        "timings": _TIMINGS,
    }
    result = _object(properties, list(properties))
    whole: Schema = {
        "model": {"type": "string"},
        kind: {"type": "array", "items": item, "description": "Of all phrases."},
        "status": _STATUS,
        "image": _IMAGE,
        "results": {"type": "array", "items": result, "description": "One for each phrase."},
        "timings": _TIMINGS,
    }
    return _object(whole, list(whole))


def responses() -> dict[str, Schema]:
    """The schema of each response's body, by name."""
    point = {
        **_DETECTION,
        "properties": {**_DETECTION["properties"]},
        "required": ["point", "label", "score", "phrase"],
    }
    point["properties"] = {
        "point": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 2,
            "maxItems": 2,
            "description": "[x, y], the middle of the box, in the same pixels as boxes.",
        },
        **{name: value for name, value in _DETECTION["properties"].items() if name != "box"},
    }
    answer: Schema = {
        "model": {"type": "string"},
        "answer": {"type": "string"},
        "image": _IMAGE,
        "timings": _TIMINGS,
    }
    return {
        "Detections": _result("detections", _DETECTION),
        "Points": _result("points", point),
        "Answer": _object(answer, list(answer)),
        "Error": _ERROR,
    }


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
            content["multipart/form-data"] = {"schema": _object(fields, bodies[name]["required"])}
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
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{name: []} for name in schemes]
    return document

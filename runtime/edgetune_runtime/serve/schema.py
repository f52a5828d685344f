"""What requests may hold, as JSON Schema: requests are checked against the same text that /openapi.json publishes."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from edgetune_runtime.errors import excerpt
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.refusal import Refusal

Schema = dict[str, Any]

MAX_VALUES = 2000
"""Of a body, counting those of its lists and objects: many times what the longest request has."""
MOST_VALUES = "x-max-values"
"""Keyword of a schema that allows more: Label Studio sends many tasks at a time, with all that it knows of each."""
FRAME = (
    "xyxy, float pixels of the picture as it was sent, upright (EXIF orientation applied): the server resizes for the "
    "model and maps boxes back"
)


def object_of(properties: Schema, required: list[str], **more: Any) -> Schema:
    """An object of these properties and no others."""
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
    detect = object_of(
        {"image": picture, "phrase": phrases, "model": model, "max_new_tokens": tokens, "stream": stream},
        ["image", "phrase"],
    )
    ask = object_of(
        {
            "image": picture,
            "question": _text(limits, "The question."),
            "model": model,
            "max_new_tokens": tokens,
        },
        ["image", "question"],
    )
    own = {"Detect": detect, "Point": detect, "Ask": ask, "Chat": _chat(limits, model, tokens)}
    return own | _label_studio(limits) | {"XAnyLabelingPredict": _x_anylabeling(limits, picture, model)}


def _label_studio(limits: Limits) -> dict[str, Schema]:
    """Label Studio's requests, which have more fields from release to release."""
    config: Schema = {"type": "string", "minLength": 1, "maxLength": 50 * limits.text_length}
    task: Schema = {"type": "object", "properties": {"data": {"type": "object"}}, "required": ["data"]}
    tasks: Schema = {"type": "array", "items": task, "minItems": 1, "maxItems": 1000}
    params: Schema = {
        "type": ["object", "null"],
        "properties": {"context": {"description": "Where an annotator asked for one task: what was written there."}},
    }
    label_config = config | {"description": "The project's labelling config, with RectangleLabels on an Image."}

    def open_object(properties: Schema, required: list[str]) -> Schema:
        return {"type": "object", "properties": properties, "required": required, MOST_VALUES: 200_000}

    return {
        "LabelStudioSetup": open_object({"schema": label_config}, ["schema"]),
        "LabelStudioPredict": open_object(
            {"tasks": tasks, "label_config": label_config, "params": params}, ["tasks", "label_config"]
        ),
        "LabelStudioWebhook": open_object({"action": {"type": "string", "minLength": 1, "maxLength": 100}}, ["action"]),
    }


def _x_anylabeling(limits: Limits, picture: Schema, model: Schema) -> Schema:
    number: Schema = {"type": "number"}
    unused = "Changes nothing: it belongs to other models."
    none: Schema = {"type": "array", "maxItems": 0}
    params = object_of(
        {
            "text_prompt": _text(limits, "What to find: phrases, with a dot between."),
            "conf_threshold": number | {"description": "Score that a shape has to have."},
            "iou_threshold": number | {"description": unused},
            "epsilon_factor": number | {"description": unused},
            "reset_tracker": {"type": "boolean", "description": unused},
            "current_task": _only("", "There is one task: boxes."),
            "marks": none | {"description": "Points and boxes that are drawn are not read."},
            "filter_classes": none | {"description": "Classes are the phrases."},
        },
        ["text_prompt"],
    )
    return object_of({"model": model, "image": picture, "params": params}, ["image", "params"])


def _chat(limits: Limits, model: Schema, tokens: Schema) -> Schema:
    words: Schema = {"type": "string", "maxLength": limits.text_length}
    text = object_of({"type": {"const": "text"}, "text": words}, ["type", "text"])
    url = object_of({"url": {"type": "string", "minLength": 1}, "detail": {"enum": ["auto", "low", "high"]}}, ["url"])
    image = object_of({"type": {"const": "image_url"}, "image_url": url}, ["type", "image_url"])
    content: Schema = {
        "anyOf": [words, {"type": "array", "minItems": 1, "maxItems": 8, "items": {"anyOf": [text, image]}}]
    }
    message = object_of(
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
    form = object_of(
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
            "anyOf": [object_of({"include_usage": {"type": "boolean"}}, []), {"type": "null"}],
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
    return object_of(properties, ["messages"])


def check(body: Any, schema: Schema) -> dict[str, Any]:
    """Return a request's body, which fits its schema.

    Raises:
        Refusal: it does not; `param` says where.
    """
    refuse_bulk(body, schema.get(MOST_VALUES, MAX_VALUES))
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


def refuse_bulk(body: Any, most: int = MAX_VALUES) -> None:
    """Refuse a body of more values than any request has: a validator would explain each that is wrong.

    Raises:
        Refusal: it is such a body.
    """
    left, rest = most, [body]
    while rest:
        value = rest.pop()
        inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        left -= 1 + len(inner)
        if left < 0:
            raise Refusal(400, f"the body has more than {most} values")
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


_DETECTION = object_of(
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
_IMAGE = object_of({"width": {"type": "integer"}, "height": {"type": "integer"}}, ["width", "height"])
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
    result = object_of(properties, list(properties))
    whole: Schema = {
        "model": {"type": "string"},
        kind: {"type": "array", "items": item, "description": "Of all phrases."},
        "status": _STATUS,
        "image": _IMAGE,
        "results": {"type": "array", "items": result, "description": "One for each phrase."},
        "timings": _TIMINGS,
    }
    return object_of(whole, list(whole))


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
        "Answer": object_of(answer, list(answer)),
        **_labelling_responses(),
        "Error": _ERROR,
    }


def _labelling_responses() -> dict[str, Schema]:
    """What labelling tools are answered, in the form of their own protocols."""
    number: Schema = {"type": "number"}
    score: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    value: Schema = {
        **dict.fromkeys(("x", "y", "width", "height", "rotation"), number),
        "rectanglelabels": {"type": "array", "items": {"type": "string"}},
    }
    region: Schema = {
        **{name: {"type": "string"} for name in ("id", "type", "from_name", "to_name")},
        **{name: {"type": "integer"} for name in ("original_width", "original_height", "image_rotation")},
        "value": object_of(value, list(value), description="In percent of the upright picture."),
    }
    prediction = object_of(
        {
            "result": {"type": "array", "items": object_of(region | {"score": score}, list(region))},
            "score": score | {"description": "Of the least sure box; null where nothing was found."},
            "model_version": {"type": "string"},
        },
        ["result", "score", "model_version"],
    )
    results: Schema = {"type": "array", "items": {"anyOf": [prediction, _ERROR]}, "description": "One for each task."}
    shape: Schema = {
        "label": {"type": "string", "description": "The phrase."},
        "shape_type": {"const": "rectangle"},
        "points": {"type": "array", "items": {"type": "array", "items": number}, "description": f"Corners: {FRAME}."},
        "score": score,
    }
    shapes: Schema = {
        "shapes": {"type": "array", "items": object_of(shape, list(shape))},
        "description": {"type": "string"},
        "problems": {"type": "object", "description": "What could not be read of an answer, by phrase."},
    }
    return {
        "LabelStudioVersion": object_of({"model_version": {"type": "string"}}, ["model_version"]),
        "LabelStudioPredictions": object_of({"results": results}, ["results"]),
        "LabelStudioReceived": object_of(
            {"status": {"const": "ok"}, "action": {"type": "string"}, "detail": {"type": "string"}},
            ["status", "action", "detail"],
        ),
        "XAnyLabelingShapes": object_of(
            {"success": {"const": True}, "data": object_of(shapes, list(shapes))}, ["success", "data"]
        ),
    }

"""Reading a request's body: JSON or a form, in time and not too long, checked against its schema."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from edgetune_runtime.errors import excerpt
from edgetune_runtime.serve.refusal import Refusal
from edgetune_runtime.serve.schema import Schema, check


async def read_body(request: Request, schema: Schema, *, form: bool) -> dict[str, Any]:
    """Return the fields of a request; an uploaded picture is bytes, all else as in JSON.

    Args:
        request: whose body nobody has read.
        schema: of the body.
        form: whether it may be a form.

    Raises:
        Refusal: it does not fit the schema, or is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data" and form:
        return await _form(request, schema)
    if kind not in ("application/json", ""):
        forms = "application/json or multipart/form-data" if form else "application/json"
        raise Refusal(415, f"content type {excerpt(kind)} is not read here", hint=f"send {forms}")
    text = await request.body()
    try:
        body = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is not JSON: {reason}") from error
    return check(body, schema)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


async def _form(request: Request, schema: Schema) -> dict[str, Any]:
    """The fields of a multipart form: an image, and texts."""
    known = schema["properties"]
    fields: dict[str, Any] = {}
    picture: bytes | None = None
    try:
        # The guard bounds the whole body, and so its parts.
        async with request.form(max_files=1, max_fields=256, max_part_size=1 << 40) as sent:
            for name, value in sent.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise Refusal(
                            400, f"{excerpt(name)} is a file", hint="the picture's field is image", param=name
                        )
                    picture = await value.read()
                    value = "file"
                fields.setdefault(name, []).append(value)
    except HTTPException as error:  # Starlette's word for a form that cannot be read
        raise Refusal(error.status_code, f"the form cannot be read: {error.detail}") from error
    single = {name: values if name == "phrase" and len(values) > 1 else values[-1] for name, values in fields.items()}
    for name, value in single.items():
        kind = known.get(name, {}).get("type")
        if kind == "integer" and isinstance(value, str) and value.isdecimal() and len(value) < 10:
            single[name] = int(value)
        if kind == "boolean" and value in ("true", "false"):
            single[name] = value == "true"
    body = check(single, schema)
    return body if picture is None else body | {"image": picture}

"""The protocol of X-AnyLabeling-Server: bundles by name, and boxes as shapes of X-AnyLabeling.

Its client (x-anylabeling-cvhub 4.2.1, `services/auto_labeling/remote_server.py`) adds `/v1/models` and `/v1/predict`
to the address that a user gives. OpenAI's list of models at the same path is another document, so these are below a
prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgetune_runtime.answer import Answer
from edgetune_runtime.serve.detect import Answered
from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.model import Model
from edgetune_runtime.serve.refusal import Refusal

PREFIX = "/x-anylabeling"
"""What users add to the server's address."""
PLACE = "params.text_prompt"
"""Where a request has its phrases."""
_WIDGETS = (
    {"name": "edit_text", "value": None, "placeholder": "phrases, with a dot between: the cup. the left jar"},
    {"name": "button_send", "value": None},
    {"name": "input_conf", "value": None},
    {"name": "edit_conf", "value": 0.0},
    {"name": "toggle_preserve_existing_annotations", "value": False},
)
"""What the client shows: a line for the phrases with its button, the least score, and whether shapes are kept."""


def listed(models: Iterable[Model]) -> dict[str, Any]:
    """The response to GET /v1/models."""
    return {
        "success": True,
        "data": {
            model.name: {
                "display_name": f"{model.name} (edgetune)",
                "batch_processing_mode": "text_prompt",
                "widgets": list(_WIDGETS),
            }
            for model in models
        },
    }


def phrases(params: Mapping[str, Any], limits: Limits) -> list[str]:
    """The phrases of a checked request, which dots separate.

    Raises:
        Refusal: there are none or too many.

    Examples:
        >>> from edgetune_runtime.serve.limits import Limits
        >>> from edgetune_runtime.serve.x_anylabeling import phrases
        >>> phrases({"text_prompt": "the cup. the left jar."}, Limits())
        ['the cup', 'the left jar']
    """
    found = [part.strip() for part in params.get("text_prompt", "").split(".") if part.strip()]
    if not found:
        raise Refusal(400, "there is no text to look for", hint="write phrases, with a dot between", param=PLACE)
    if len(found) > limits.phrases:
        raise Refusal(400, f"there are {len(found)} phrases, and {limits.phrases} are answered", param=PLACE)
    return found


def shapes(answers: Iterable[Answered], least: float) -> dict[str, Any]:
    """The response to POST /v1/predict.

    Args:
        answers: to the phrases.
        least: score that a shape has to have.

    Raises:
        Refusal: a least score is asked for, and the engine tells none.
    """
    found = []
    problems = {}
    for answered in answers:
        assert isinstance(answered.answer, Answer)
        if answered.answer.problem is not None:
            problems[answered.phrase] = answered.answer.problem
        for detection in answered.answer.detections:
            if least > 0 and detection.score is None:
                raise Refusal(400, "this bundle's boxes have no scores", hint="set the confidence to 0", param="params")
            if detection.score is not None and detection.score < least:
                continue
            x1, y1, x2, y2 = detection.box
            corners = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            found.append(
                {"label": answered.phrase, "shape_type": "rectangle", "points": corners, "score": detection.score}
            )
    return {"success": True, "data": {"shapes": found, "description": "", "problems": problems}}

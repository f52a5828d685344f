"""Whether a checkpoint's own chat template says what its family's prompt pieces say.

A default system prompt that differs, a missing line break or another end of turn moves every answer a little; a model
trained on one prompt and served with the other is worse for no visible reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Chat

_PROBES = ("Locate the left clock and output its bbox coordinates in JSON format.", "1 < 2 {phrase} é\n\nok?")


def check_template(where: object, render: Callable[[list[dict[str, Any]]], str], chat: Chat) -> None:
    """Refuse a chat template that renders another prompt than the family's pieces.

    Args:
        where: the checkpoint, for the message.
        render: renders turns, whose contents are lists of parts, with the opening of an answer behind them.
        chat: the family's pieces.

    Raises:
        InputError: the first place where the two differ.
    """
    for text in _PROBES:
        rendered = render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}])
        expected = chat.render(text, 1)
        if rendered != expected:
            start = next((i for i, (a, b) in enumerate(zip(rendered, expected, strict=False)) if a != b), None)
            start = min(len(rendered), len(expected)) if start is None else start
            raise InputError(
                f"{where}: the chat template renders {rendered[start : start + 40]!r} where the family's prompt has "
                f"{expected[start : start + 40]!r}",
                hint="use the chat template of the family's published checkpoints",
            )

"""What `image_to_box.py` measured, in numbers and in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

BASE = "edgetune"
"""The peer that others are divided by."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all answers of a peer to one number of phrases: wall and CPU seconds, and its own account where it has one."""
    row: dict[str, Any] = {
        "wall_s": spread([each["wall_s"] for each in asked]),
        "cpu_s": statistics.median(each["cpu_s"] for each in asked),
        "prompt_tokens": asked[0]["prompt_tokens"],
        "walls_s": [each["wall_s"] for each in asked],
    }
    for name in ("first_s", "token_s"):
        if all(each[name] is not None for each in asked):
            row[name] = statistics.median(each[name] for each in asked)
    return row


def complaint(told: dict[str, Any], text_tokens: Sequence[int], image_tokens: int, tokens: int) -> str | None:
    """What is wrong with an answer: other prompts than the others got, or answers of another length.

    Args:
        told: by the worker.
        text_tokens: of each phrase's prompt, without its picture's.
        image_tokens: of the picture.
        tokens: of each answer.
    """
    for text, prompt in zip(text_tokens, told["prompt_tokens"], strict=True):
        if prompt - text != image_tokens:
            return f"made {prompt - text} tokens of the picture in place of {image_tokens}"
    if short := [count for count in told["tokens"] if count != tokens]:
        return f"answered with {short[0]} tokens in place of {tokens}"
    return None


def markdown(found: dict[str, Any]) -> str:
    """One row a peer: medians, with the smallest and the largest in brackets."""
    counts = found["phrases"]
    columns = ["", f"{_phrases(counts[0])}, s", f"of {BASE}", "CPU s", "first token, s", "ms a token"]
    columns += [f"{_phrases(count)}, s" for count in counts[1:]]
    columns += ["cold start, s", "peak, MB", "model, MB"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    base = found["peers"].get(BASE, {}).get("answers", {}).get(str(counts[0]))
    for name, peer in found["peers"].items():
        if "error" in peer:
            lines.append(f"| {name} | {peer['error']} |" + " |" * (len(columns) - 2))
            continue
        first = peer["answers"][str(counts[0])]
        ratio = f"{first['wall_s']['median'] / base['wall_s']['median']:.2f}" if base else ""
        cells = [f"{name} ({peer['how']})", _seconds(first["wall_s"]), ratio, f"{first['cpu_s']:.2f}"]
        cells += [f"{first['first_s']:.2f}" if "first_s" in first else ""]
        cells += [f"{1000 * first['token_s']:.1f}" if "token_s" in first else ""]
        cells += [_seconds(peer["answers"][str(count)]["wall_s"]) for count in counts[1:]]
        cells += [_seconds(peer["cold_s"]), f"{peer['peak_mb']:,.0f}", f"{peer['model_mb']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _phrases(count: int) -> str:
    return "1 phrase" if count == 1 else f"{count} phrases"


def _seconds(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f}–{values['high']:.2f})"

"""How unsure a model is of what it says about a picture, from what the runtime tells of its answers.

An answer with boxes is as sure as its least sure box (`Detection.score`); a refusal as sure as the model was of
refusing (`refusal_score`); a text that cannot be read tells nothing, and is as unsure as can be. A picture is as unsure
as the least sure of its answers: one of them suffices for a person to have to look.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgetune_runtime.codec.grounding import ParsedAnswer

UNKNOWN = 1.0
"""Uncertainty of an answer of which nothing is known: its text cannot be read, or its engine tells no probabilities."""


def of_answer(answer: ParsedAnswer) -> float:
    """Return how unsure an answer is, 0 to 1.

    Examples:
        >>> from edgetune_runtime import Detection
        >>> from edgetune_runtime.codec.grounding import ParsedAnswer
        >>> cups = [Detection((0, 0, 9, 9), "cup", 0.75), Detection((20, 0, 29, 9), "cup", 0.5)]
        >>> of_answer(ParsedAnswer("...", cups, complete=True, problem=None, refused=False))
        0.5
        >>> of_answer(ParsedAnswer("None.", [], complete=True, problem=None, refused=True, refusal_score=0.75))
        0.25
    """
    scores = [detection.score for detection in answer.detections]
    if answer.status == "refused":
        scores = [answer.refusal_score]
    known = [score for score in scores if score is not None]
    if answer.status == "unparsed" or len(known) < len(scores) or not answer.complete:
        return UNKNOWN
    return 1 - min(known)


def of_picture(answers: Iterable[float]) -> float:
    """Return how unsure the least sure of a picture's answers is; 0 where there are none."""
    return max(answers, default=0.0)

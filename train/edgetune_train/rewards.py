"""What an answer earns in reinforcement learning: pure functions of the answer's text and its record.

Each is between 0 and 1, or None where it says nothing about a record of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgetune_runtime.bench import metrics
from edgetune_runtime.codec import grounding
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.families import Family
from edgetune_runtime.records import Record

Reward = Callable[[str, Record, Geometry, Family], float | None]
"""Takes a whole answer, its record, the sizes of the record's image, and the model's family."""


def format_reward(text: str, record: Record, geometry: Geometry, family: Family) -> float | None:
    """Return 1 for an answer that reads without any complaint, as boxes in the image or as a refusal, else 0.

    An answer that breaks off, holds a box that is none, or leaves the image earns 0. None for questions.
    """
    if record.boxes is None:
        return None
    answer = grounding.parse(text, geometry, family.box_format)
    return float(answer.status != "unparsed" and answer.problem is None)


def iou_reward(text: str, record: Record, geometry: Geometry, family: Family) -> float | None:
    """Return the IoU of the boxes with the right ones, see `metrics.sample_iou`. None where there is none to find."""
    if record.boxes is None or not len(record.boxes):
        return None
    found = [detection.box for detection in grounding.parse(text, geometry, family.box_format).detections]
    return metrics.sample_iou(found, record.boxes)


def refusal_reward(text: str, record: Record, geometry: Geometry, family: Family) -> float | None:
    """Return 1 for refusing an object that is absent and for not refusing one that is there, else 0.

    An answer that cannot be read refuses nothing. None for questions.
    """
    if record.boxes is None:
        return None
    return float(grounding.parse(text, geometry, family.box_format).refused == (len(record.boxes) == 0))


def answer_reward(text: str, record: Record, geometry: Geometry, family: Family) -> float | None:
    """Return the VQA accuracy of a question's answer, see `metrics.vqa_accuracy`. None for records with boxes."""
    return None if record.boxes is not None else metrics.vqa_accuracy(text, record.answers)


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {"format": format_reward, "iou": iou_reward, "refusal": refusal_reward, "answer": answer_reward}
)
"""By the name that logs and options use."""

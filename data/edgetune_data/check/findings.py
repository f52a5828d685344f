"""What the check says: findings, each of one rule, and the report that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["error", "warning"]
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for.

    Attributes:
        name: as it stands in tables, JSON and options.
        level: "error" for what cannot be trained on, "warning" for what trains badly.
        title: what is found, in a few words.
        advice: what to do about it.
    """

    name: str
    level: Level
    title: str
    advice: str


_ERRORS = {
    "line": ("lines that cannot be read", "correct the line: docs/data.md lists the forms"),
    "picture": ("pictures that cannot be read", "replace the file, or drop its records with --fix unreadable"),
    "box": ("boxes that are none, or leave their picture", "correct them; a whole file in another frame is 'frame'"),
    "control-token": (
        "texts that spell a control token of the model",
        "remove it from the text, or see text-box where it is a box",
    ),
}
_WARNINGS = {
    "frame": ("boxes that seem to be in another frame", "convert the file: boxes are xyxy in pixels of the picture"),
    "text-box": (
        "boxes that are written as text",
        "edgetune data convert --text-boxes makes boxes of them; as text they keep a frame that may not be the model's",
    ),
    "vague-phrase": ("phrases that name nothing", "say what it is: 'the red mug', not 'that thing'"),
    "ambiguous-phrase": ("one phrase, different boxes in one picture", "tell them apart, or list both in one record"),
    "conflicting-answer": ("one question, different answers for one picture", "keep one, or list the accepted ones"),
    "tiny-box": ("boxes that are tiny for the model", "crop with `edgetune data crop`, or allow it more pixels"),
    "duplicate-record": ("records that are there twice", "drop one: --fix duplicates"),
    "duplicate-picture": ("the same picture under several names", "keep one file"),
    "near-duplicate": ("pictures that are nearly the same", "keep them in one split: `edgetune data split`"),
    "leak": ("pictures that are in the other file too", "split by picture: `edgetune data split`, or --fix leaks"),
    "blurry": ("blurred pictures", "take them again, or keep them if the camera sees like that"),
    "dark": ("pictures that are all dark", "expose them longer, or keep them if the camera sees like that"),
    "bright": ("pictures that are all bright", "expose them less, or keep them if the camera sees like that"),
    "low-information": ("pictures with hardly anything in them", "look at them: covers, blanks, fog"),
    "low-resolution": ("pictures that are small for the model", "use the originals: the model only sees them enlarged"),
    "rare-label": ("labels that are far rarer than others", "add examples, or expect it to miss them"),
    "private": ("regions that a redactor found", "--fix cover paints over them, --fix private drops the records"),
}
_ERROR_RULES = [Rule(name, "error", title, advice) for name, (title, advice) in _ERRORS.items()]
_WARNING_RULES = [Rule(name, "warning", title, advice) for name, (title, advice) in _WARNINGS.items()]
RULES: Mapping[str, Rule] = {rule.name: rule for rule in (*_ERROR_RULES, *_WARNING_RULES)}
"""All rules by name, in the order in which they are told."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        rule: the name of its rule.
        source: where, e.g. "data/train.jsonl:17", or the file alone for what concerns the whole of it.
        message: what is wrong there.
        image: the picture it is about, if any.
        boxes: what to draw on it: xyxy or points, in pixels of the upright picture.
        other: a second picture it is compared with, if any.
        lines: where all records stand that it concerns, `source`'s first.
        badness: how bad, larger is worse; compares findings of one rule.
    """

    rule: str
    source: str
    message: str
    image: Path | None = None
    boxes: tuple[Numbers, ...] = ()
    other: Path | None = None
    lines: tuple[str, ...] = ()
    badness: float = 0.0

    @property
    def level(self) -> Level:
        """How bad: "error" or "warning"."""
        return RULES[self.rule].level

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "rule": self.rule,
            "level": self.level,
            "source": self.source,
            "message": self.message,
            "image": str(self.image) if self.image else None,
            "other": str(self.other) if self.other else None,
            "boxes": [list(box) for box in self.boxes],
            "lines": list(self.lines),
        }


@dataclass(frozen=True)
class Report:
    """All that a check found.

    Attributes:
        data: the file.
        records: how many records it has, unreadable ones included.
        images: how many pictures they name.
        findings: by rule, the worst first.
        skipped: rule -> why it was not looked for.
    """

    data: Path
    records: int
    images: int
    findings: Sequence[Finding]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """How many warnings there are."""
        return len(self.findings) - self.errors

    def of(self, rule: str) -> list[Finding]:
        """Return the findings of one rule, the worst first."""
        return [finding for finding in self.findings if finding.rule == rule]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "data": str(self.data),
            "records": self.records,
            "images": self.images,
            "errors": self.errors,
            "warnings": self.warnings,
            "counts": {name: len(self.of(name)) for name in RULES if self.of(name)},
            "skipped": dict(self.skipped),
            "findings": [finding.to_dict() for finding in self.findings],
        }

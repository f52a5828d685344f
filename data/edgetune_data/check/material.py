"""What the rules look at: the lines of one file, its decoded pictures, the model and the thresholds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetune_data.check.findings import Finding, Numbers
from edgetune_data.image_facts import ImageFacts, Look
from edgetune_data.model_view import ModelView
from edgetune_data.read import Item
from edgetune_data.settings import CheckLimits
from edgetune_runtime.errors import ImageError


@dataclass(frozen=True)
class Material:
    """Everything that is checked.

    Attributes:
        path: the data file.
        entries: its lines.
        pictures: what they name, decoded, or why it cannot be.
        model: the model, or None where none was given.
        limits: the thresholds.
        looks: what the redactors are asked by, by name.
    """

    path: Path
    entries: Sequence[Item]
    pictures: Mapping[Path, ImageFacts | ImageError]
    model: ModelView | None
    limits: CheckLimits
    looks: Mapping[str, Look] = field(default_factory=dict)

    @property
    def decoded(self) -> list[ImageFacts]:
        """The pictures that are ones, in the order of the file."""
        return [facts for facts in self.pictures.values() if isinstance(facts, ImageFacts)]

    def facts(self, path: Path) -> ImageFacts | None:
        """Return a picture's facts, or None when it cannot be read."""
        facts = self.pictures[path]
        return facts if isinstance(facts, ImageFacts) else None

    @cached_property
    def naming(self) -> Mapping[Path, Sequence[Item]]:
        """The lines that name each picture."""
        lines: dict[Path, list[Item]] = {}
        for entry in self.entries:
            for image in dict.fromkeys(entry.images):
                lines.setdefault(image, []).append(entry)
        return lines

    def finding(
        self,
        rule: str,
        entries: Sequence[Item],
        message: str,
        *,
        image: Path | None = None,
        boxes: Sequence[Numbers] = (),
        other: Path | None = None,
        badness: float = 0.0,
    ) -> Finding:
        """Return a finding about some lines, the first of which it is told at; about the whole file where none are."""
        where = entries[0].source if entries else str(self.path)
        lines = tuple(entry.line for entry in entries)
        return Finding(rule, where, message, image, tuple(boxes), other, lines, badness)

    def about(self, rule: str, facts: ImageFacts, message: str, badness: float) -> Finding:
        """Return a finding about a picture, told at the first line that names it."""
        return self.finding(rule, self.naming[facts.path], message, image=facts.path, badness=badness)

    def settings(self) -> dict[str, Any]:
        """Return what the findings depend on beside the file, as JSON values."""
        contents = sorted(f"{path}\0{getattr(facts, 'sha256', facts)}" for path, facts in self.pictures.items())
        return {
            "limits": self.limits.to_dict(),
            "model": self.model.to_dict() if self.model else None,
            "images_sha256": hashlib.sha256("\n".join(contents).encode()).hexdigest(),
        }

    def identity(self, path: Path) -> str:
        """Return what tells pictures apart: their pixels, or the path of one that cannot be read."""
        facts = self.facts(path)
        return facts.sha256 if facts else str(path)

    def placed(self) -> Iterator[tuple[Item, ImageFacts, Numbers]]:
        """Yield every box and point with its line and its picture, as far as that can be read."""
        for entry in self.entries:
            pictures = [self.facts(image) for image in entry.images]
            for place in entry.places:
                facts = pictures[place.image]
                if facts is not None:
                    yield entry, facts, place.numbers

"""The whole check: read every line, decode every picture once, and apply all rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from edgetune_data import read
from edgetune_data.check import boxes, copies, frame, labels, picture_quality, texts
from edgetune_data.check.findings import RULES, Finding, Report
from edgetune_data.check.material import Material
from edgetune_data.image_facts import ImageFacts, read_images
from edgetune_data.model_view import ModelView
from edgetune_data.redactors import Redactor
from edgetune_data.settings import CheckLimits
from edgetune_runtime.errors import ImageError


def gather(
    path: Path,
    *,
    model: ModelView | None = None,
    limits: CheckLimits | None = None,
    redactors: Mapping[str, Redactor] | None = None,
) -> Material:
    """Read a data file and decode its pictures.

    Raises:
        InputError: nothing is there, its format is not recognised, or it has no records.
    """
    entries = read.gather(path)
    looks = {name: redactor.find for name, redactor in (redactors or {}).items()}
    images = chain.from_iterable(entry.images for entry in entries)
    pictures = read_images(images, quality=True, looks=looks)
    return Material(path, entries, pictures, model, limits or CheckLimits(), looks)


def check(material: Material, against: Sequence[Path] = ()) -> Report:
    """Return everything that is wrong with a data set.

    Args:
        material: the data set, from `gather`.
        against: other data files that should share no picture with it, such as the validation split.

    Raises:
        InputError: one of the other files is missing.
    """
    others = {path: _decoded(path) for path in against}
    found = list(_findings(material, others))
    order = {rule: place for place, rule in enumerate(RULES)}
    # A stable sort: equally bad findings stay in the order of the file.
    found.sort(key=lambda finding: (order[finding.rule], -finding.badness))
    skipped = _skipped(material, bool(against))
    return Report(material.path, len(material.entries), len(material.pictures), tuple(found), skipped)


def _findings(material: Material, others: Mapping[Path, Sequence[ImageFacts]]) -> Iterator[Finding]:
    for entry in material.entries:
        if entry.error is not None:
            rule = "picture" if isinstance(entry.error, ImageError) else "line"
            hint = f" ({entry.error.hint})" if entry.error.hint else ""
            yield material.finding(rule, [entry], f"{entry.error}{hint}")
    yield from picture_quality.check(material)
    yield from boxes.check(material)
    yield from texts.check(material)
    yield from frame.check(material)
    yield from copies.check(material, others)
    yield from labels.check(material)


def _decoded(path: Path) -> list[ImageFacts]:
    """Return the pictures of another data file that can be read; its own check tells about the others."""
    images = chain.from_iterable(entry.images for entry in read.gather(path))
    return [facts for facts in read_images(images).values() if isinstance(facts, ImageFacts)]


def _skipped(material: Material, against: bool) -> dict[str, str]:
    skipped = {}
    if material.model is None:
        skipped["control-token"] = "needs --checkpoint or --family"
    if material.model is None or material.model.spec is None:
        needed = "needs --checkpoint, or --family with --min-pixels and --max-pixels"
        skipped |= {"tiny-box": needed, "low-resolution": needed}
    if not against:
        skipped["leak"] = "needs --against"
    if not any(facts.seen for facts in material.decoded):
        skipped["private"] = "needs --redactor"
    return skipped

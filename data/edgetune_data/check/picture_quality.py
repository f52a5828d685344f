"""What is wrong with the pictures: broken, blurred, badly exposed, empty, or small for the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgetune_data.check.findings import Finding
from edgetune_data.check.material import Material
from edgetune_data.image_facts import ImageFacts
from edgetune_runtime.errors import ImageError


def check(material: Material) -> Iterator[Finding]:
    """Yield what is wrong with the pictures, each told once."""
    for path, facts in material.pictures.items():
        if isinstance(facts, ImageError):
            yield from _broken(material, path, facts)
            continue
        yield from _quality(material, facts)
        yield from _size(material, facts)
        yield from _private(material, facts)


def _broken(material: Material, path: Path, error: ImageError) -> Iterator[Finding]:
    """Every line that names the picture is an error of its own: each has to be corrected or dropped."""
    for entry in material.naming[path]:
        yield material.finding("picture", [entry], str(error))


def _quality(material: Material, facts: ImageFacts) -> Iterator[Finding]:
    quality, limits, name = facts.quality, material.limits, facts.path.name
    if quality is None:
        return
    if quality.entropy < limits.min_entropy:
        # Hardly anything in it: its blur and brightness would be told about nothing.
        yield material.about(
            "low-information", facts, f"{name} has {quality.entropy:.1f} bits of entropy", -quality.entropy
        )
        return
    if quality.blur > limits.max_blur:
        yield material.about("blurry", facts, f"{name} has a blur of {quality.blur:.2f}", quality.blur)
    if quality.brightest < limits.min_bright:
        text = f"99 % of {name} is darker than {quality.brightest:.2f}"
        yield material.about("dark", facts, text, -quality.brightest)
    if quality.darkest > limits.max_bright:
        yield material.about("bright", facts, f"95 % of {name} is brighter than {quality.darkest:.2f}", quality.darkest)


def _size(material: Material, facts: ImageFacts) -> Iterator[Finding]:
    """A picture that the model refuses, or that it has to enlarge."""
    if material.model is None or material.model.spec is None:
        return
    try:
        seen = material.model.sees(facts.width, facts.height)
    except ImageError as error:
        yield from _broken(material, facts.path, error)
        return
    # The square root of the areas' ratio: rounding to whole tokens stretches one side more than the other.
    enlarged = ((seen.resized_width * seen.resized_height) / (seen.width * seen.height)) ** 0.5
    if enlarged > material.limits.max_enlarge:
        yield material.about(
            "low-resolution",
            facts,
            f"{facts.path.name} is {seen.width}x{seen.height} and is enlarged {enlarged:.1f} times to "
            f"{seen.resized_width}x{seen.resized_height}",
            enlarged,
        )


def _private(material: Material, facts: ImageFacts) -> Iterator[Finding]:
    for name, regions in facts.seen.items():
        if regions:
            kinds = ", ".join(sorted({region.kind for region in regions}))
            yield material.finding(
                "private",
                material.naming[facts.path],
                f"{name} found {len(regions)} of {kinds} in {facts.path.name}",
                image=facts.path,
                boxes=[region.box for region in regions],
                badness=max(region.score for region in regions),
            )

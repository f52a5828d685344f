"""The tiny model, and a scene with something that it finds."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from edgetune_runtime.session import Session
from served import questions


class Scene(NamedTuple):
    """A picture, what to find in it, and where the model says that it is."""

    picture: Image.Image
    phrase: str
    box: tuple[float, float, float, float]


@pytest.fixture(scope="session")
def watching(tiny_bundle: Path) -> Iterator[Session]:
    """The tiny model, loaded as for a camera."""
    with Session.load(tiny_bundle, threads=1, cached_images=0) as session:
        yield session


@pytest.fixture(scope="session")
def scene(watching: Session, tiny_scenes: Path) -> Scene:
    """A scene whose object the model finds, well inside of the picture."""
    from live import moving

    for asked in questions(tiny_scenes):
        picture = Image.open(BytesIO(asked.picture)).convert("RGB")
        found = watching.ground(picture, asked.phrase)
        if len(found) == 1:
            x1, _, x2, y2 = found[0].box
            inside = x1 > 50 and y2 < picture.height - 25 and x2 - x1 > 30
            moved = moving(picture, 41)
            if inside and all(len(watching.ground(moved[number], asked.phrase)) == 1 for number in range(0, 41, 4)):
                return Scene(picture, asked.phrase, found[0].box)
    raise AssertionError("no scene has what is needed")

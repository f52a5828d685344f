"""Where observations and events go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from PIL import Image

from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import PALETTE, draw_detections
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.watch import Observation
from edgetune_runtime.terminal import say


class Sink(Protocol):
    """Takes what is seen, one after the other, in one thread."""

    def write(self, observation: Observation) -> None:
        """Take an observation."""

    def tell(self, event: Event) -> None:
        """Take an event, which comes after its observation."""

    def close(self) -> None:
        """Finish."""


class Lines:
    """JSON lines on standard output: of events where there are some to be told of, else of observations.

    Args:
        events: whether events are written in the place of observations.
    """

    def __init__(self, *, events: bool) -> None:
        self._events = events

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""
        if not self._events:
            say(json.dumps(observation.to_dict()))

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        if self._events:
            say(json.dumps(event.to_dict()))

    def close(self) -> None:
        """As of `Sink`."""


class Snapshots:
    """A picture with its boxes for each event, in a folder that a camera without a network is emptied of.

    Args:
        folder: made where it is missing.
        keep: pictures that stay; the oldest goes when another comes.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep = folder, keep

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        moment = event.observation.frame.time.replace(":", "").replace("-", "")
        phrase = "".join(letter if letter.isalnum() else "_" for letter in event.phrase)[:60]
        path = self._folder / f"{moment}_{event.kind}_{phrase}.jpg"
        # A picture that is being copied away at this moment is whole.
        part = path.with_suffix(".part")
        annotated(event.observation).save(part, "JPEG", quality=90)
        part.replace(path)
        for old in sorted(self._folder.glob("*Z_*_*.jpg"))[: -self._keep]:
            old.unlink(missing_ok=True)

    def close(self) -> None:
        """As of `Sink`."""


def annotated(observation: Observation) -> Image.Image:
    """The frame with its boxes, one colour for each phrase; behind a tracked box stands its age."""
    phrases = list(observation.phrases)
    inks = [PALETTE[phrases.index(seen.phrase) % len(PALETTE)] for seen in observation.boxes]
    shown = [
        Detection(seen.box, seen.label if seen.source == "answered" else f"{seen.label} +{seen.age:.1f} s", seen.score)
        for seen in observation.boxes
    ]
    return draw_detections(observation.frame.picture.rgb(), shown, color=inks)

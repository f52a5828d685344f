"""Where observations and events go."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import PALETTE, draw_detections
from edgetune_runtime.errors import InputError
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation
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


_SNAPSHOT = re.compile(r"(\d{8,})_.*\.jpg")


class Snapshots:
    """A picture with its boxes for each event, in a folder that a camera without a network is emptied of.

    Names begin with a number that rises, for the clock of such a camera may be set back.

    Args:
        folder: made where it is missing; numbers go on from what is there.
        keep: pictures that stay; the oldest goes when another comes.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep = folder, keep
        for part in folder.glob("*.part"):  # of a process that was killed
            part.unlink()
        self._kept = sorted((int(name[1]), path) for path in folder.iterdir() if (name := _SNAPSHOT.match(path.name)))
        self._number = self._kept[-1][0] if self._kept else 0

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        moment = event.observation.frame.time.replace(":", "").replace("-", "")
        phrase = "".join(letter if letter.isalnum() else "_" for letter in event.phrase)[:60]
        self._number += 1
        path = self._folder / f"{self._number:08d}_{moment}_{event.kind}_{phrase}.jpg"
        # A picture that is being copied away at this moment is whole.
        part = path.with_suffix(".part")
        annotated(event.observation).save(part, "JPEG", quality=90)
        part.replace(path)
        self._kept.append((self._number, path))
        while len(self._kept) > self._keep:
            self._kept.pop(0)[1].unlink(missing_ok=True)

    def close(self) -> None:
        """As of `Sink`."""


def check_new_file(path: Path, ends: Sequence[str]) -> None:
    """Refuse a file that could not be written, or that would replace one, before anything is watched.

    Raises:
        InputError: it exists, its name ends in none of `ends`, or its folder is missing or cannot be written to.
    """
    if path.suffix.lower() not in ends:
        raise InputError(f"{path}: cannot write this kind of file", hint=f"end the name in {' or '.join(ends)}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder")
    if path.exists():
        raise InputError(f"{path}: exists already", hint="choose another name; it stays as it is")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: cannot be written to")


def annotated(observation: Observation) -> Image.Image:
    """The frame with its boxes, one colour for each phrase; behind a tracked box stands its age."""
    phrases = list(observation.phrases)
    inks = [PALETTE[phrases.index(seen.phrase) % len(PALETTE)] for seen in observation.boxes]
    shown = [
        Detection(seen.box, seen.label if seen.source == "answered" else f"{seen.label} +{seen.age:.1f} s", seen.score)
        for seen in observation.boxes
    ]
    return draw_detections(observation.frame.picture.rgb(), shown, color=inks)

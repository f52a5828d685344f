"""What is known of a frame, and what a watch has cost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from edgetune_runtime.live.flow import Box
from edgetune_runtime.live.frames import Frame


@dataclass(frozen=True)
class Seen:
    """A box of an observation.

    Attributes:
        phrase: that was asked for.
        label: what the model calls it.
        box: x1, y1, x2, y2 in float pixels of the original upright picture; one that was tracked may leave it.
        score: how sure the model was (0-1), or None.
        source: "answered" where the model said so of this very frame, "tracked" where optical flow carried it here.
        age: seconds since the frame was taken that the model has looked at.
    """

    phrase: str
    label: str
    box: Box
    score: float | None
    source: Literal["answered", "tracked"]
    age: float


@dataclass(frozen=True)
class Observation:
    """What is known of one frame.

    Attributes:
        frame: that the boxes are of.
        boxes: in the order of the phrases.
        phrases: each phrase with the status of its latest answer: "found", "refused" or "unparsed".
        answered: whether the model has looked at this frame.
        delay: seconds from the frame's capture to now; 0 for recordings, which wait.
        seconds: what the answers cost; 0 where the boxes were tracked.
    """

    frame: Frame
    boxes: tuple[Seen, ...]
    phrases: dict[str, str]
    answered: bool
    delay: float
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The observation as JSON values."""
        width, height = self.frame.picture.size
        told: dict[str, Any] = {"frame": self.frame.number, "time": self.frame.time, "stamp": self.frame.stamp}
        if self.frame.media_time is not None:
            told["media_time"] = round(self.frame.media_time, 6)
        told |= {"image": {"width": width, "height": height}, "answered": self.answered}
        told["boxes"] = [vars(seen) | {"box": list(seen.box), "age": round(seen.age, 4)} for seen in self.boxes]
        return told | {"phrases": self.phrases, "delay": round(self.delay, 4), "seconds": round(self.seconds, 4)}


@dataclass
class Figures:
    """What a watch has cost and given.

    Attributes:
        frames: that were read.
        faults: frames that could not be decoded.
        losses: how often the source was lost.
        answered: frames that the model has looked at.
        tracked: frames that boxes were carried to.
        delays: seconds from capture to answer, of the last 100,000 answers.
    """

    frames: int = 0
    faults: int = 0
    losses: int = 0
    answered: int = 0
    tracked: int = 0
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=100_000), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, with percentiles of the delays in seconds."""
        told: dict[str, Any] = {key: value for key, value in vars(self).items() if key != "delays"}
        ordered = sorted(self.delays)
        for share in (50, 95, 99):
            last = round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 4) if ordered else None
            told[f"delay_p{share}"] = last
        return told

"""Frames with their boxes as a video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.sinks import annotated
from edgetune_runtime.live.sources import load_av
from edgetune_runtime.live.watch import Observation

ENDS = (".mp4", ".mkv")
"""What names of videos end in."""
_TICKS = 1000
"""Parts of a second in which the times of frames are told."""
_ENCODERS = ("libx264", "mpeg4")
"""H.264 where PyAV was built with it."""


class Video:
    """Writes each frame for as long as it was the newest. What was written plays, even if the process is killed.

    Args:
        path: ends in one of `ENDS`.

    Raises:
        InputError: it does not, or its folder is missing.
        MissingDependency: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in ENDS:
            raise InputError(f"{path}: cannot write this kind of video", hint=f"end the name in {' or '.join(ENDS)}")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder")
        self._av = load_av()
        self._path = path
        self._container: Any = None
        self._stream: Any = None
        self._began: float | None = None
        self._last = -1

    def write(self, observation: Observation) -> None:
        """As of `Sink`; an answer about a frame that was passed already by a tracked one is left out."""
        image = annotated(observation)
        frame = observation.frame
        at = frame.captured if frame.media_time is None else frame.media_time
        self._began = at if self._began is None else self._began
        ticks = round((at - self._began) * _TICKS)
        if ticks <= self._last:
            return
        if self._container is None:
            self._open(image.width, image.height)
        self._last = ticks
        picture = self._av.VideoFrame.from_image(image).reformat(
            self._stream.width, self._stream.height, format="yuv420p"
        )
        picture.pts, picture.time_base = ticks, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(picture))

    def _open(self, width: int, height: int) -> None:
        # Fragments that stand for themselves, so that a file without its end plays.
        options = {"flush_packets": "1"}
        if self._path.suffix.lower() == ".mp4":
            options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        self._container = self._av.open(str(self._path), "w", options=options)
        codec = next(name for name in _ENCODERS if name in self._av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=30)
        self._stream.width, self._stream.height = width - width % 2, height - height % 2  # colour has half of each
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.gop_size = 30
        if codec == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "23"}

    def tell(self, event: Event) -> None:
        """As of `Sink`."""

    def close(self) -> None:
        """As of `Sink`."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None

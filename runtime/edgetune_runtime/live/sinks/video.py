"""Frames with their boxes as a video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import ImageOps

from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation
from edgetune_runtime.live.sinks import annotated, check_new_file
from edgetune_runtime.live.sources import load_av

ENDS = (".mp4", ".mkv")
"""What names of videos end in."""
_TICKS = 1000
"""Parts of a second in which the times of frames are told."""
_ENCODERS = ("libx264", "mpeg4")
"""H.264 where PyAV was built with it."""


class Video:
    """Writes each frame for as long as it was the newest. What was written plays, even if the process is killed.

    Args:
        path: ends in one of `ENDS`; a file that is there is not replaced.

    Raises:
        InputError: it does not, the file exists, or its folder cannot be written to.
        MissingDependency: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        check_new_file(path, ENDS)
        self._av = load_av()
        self._path = path
        self._container: Any = None
        self._stream: Any = None
        self._began: float | None = None
        self._last = -1
        self._whole = -_TICKS  # when a whole picture was written that later ones build on

    def write(self, observation: Observation) -> None:
        """As of `Sink`; an answer about a frame that was passed already by a tracked one is left out."""
        frame = observation.frame
        at = frame.captured if frame.media_time is None else frame.media_time
        self._began = at if self._began is None else self._began
        ticks = round((at - self._began) * _TICKS)
        if ticks <= self._last:
            return
        image = annotated(observation)
        if self._container is None:
            self._open(image.width, image.height)
        self._last = ticks
        size = (self._stream.width, self._stream.height)
        if abs(image.width - size[0]) > 1 or abs(image.height - size[1]) > 1:
            image = ImageOps.pad(image, size)  # a camera that has changed its size
        picture = self._av.VideoFrame.from_image(image).reformat(*size, format="yuv420p")
        picture.pts, picture.time_base = ticks, Fraction(1, _TICKS)
        if ticks - self._whole >= _TICKS:  # and begins a part of the file that stands for itself
            picture.pict_type, self._whole = self._av.video.frame.PictureType.I, ticks
        self._container.mux(self._stream.encode(picture))

    def _open(self, width: int, height: int) -> None:
        options = {"flush_packets": "1"}
        if self._path.suffix.lower() == ".mp4":
            options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        self._container = self._av.open(f"file:{self._path}", "w", options=options)
        codec = next(name for name in _ENCODERS if name in self._av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=30)
        self._stream.width, self._stream.height = width - width % 2, height - height % 2  # colour has half of each
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        if codec == "libx264":  # without looking ahead, for which it would hold frames back
            self._stream.options = {"preset": "veryfast", "crf": "23", "tune": "zerolatency", "forced-idr": "1"}

    def tell(self, event: Event) -> None:
        """As of `Sink`."""

    def close(self) -> None:
        """As of `Sink`."""
        if self._container is not None:
            container, self._container = self._container, None
            container.mux(self._stream.encode(None))
            container.close()

"""Where frames come from: cameras, streams, recordings and folders of pictures."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import EdgetuneError, ImageError, InputError, MissingDependency, install_command
from edgetune_runtime.images.load import load_image
from edgetune_runtime.live.addresses import shown, split
from edgetune_runtime.live.frames import Picture, StillPicture, VideoPicture

ADDRESSES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp")
"""Schemes of streams."""
PIPELINE = "gst:"
"""What a GStreamer pipeline begins with."""
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""Ends of names of pictures in a folder."""

_KNOWN = (
    "a source is a camera (0 or /dev/video0), an address (rtsp://…), a video file, a folder of pictures, or gst: and a "
    "pipeline"
)
_PICTURE_SECONDS = 15.0
"""How long data may come without a picture in it: cameras send a whole one every few seconds."""


class SourceError(EdgetuneError):
    """A source cannot be opened, or has ended without being asked to.

    Examples:
        >>> from edgetune_runtime.live.sources import SourceError
        >>> SourceError("rtsp://gate: nobody answers").exit_code
        2

    Args:
        message: what is wrong with which source.
        hint: how to mend it.
        refused: whether it was there and said no, which asking again does not change.
    """

    def __init__(self, message: str, *, hint: str | None = None, refused: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.refused = refused


@dataclass(frozen=True)
class Shot:
    """One picture as it comes.

    Attributes:
        picture: its pixels.
        captured: when it arrived, or was taken where the source tells, in seconds of `time.monotonic`.
        media_time: seconds from the start of a recording; None for cameras.
    """

    picture: Picture
    captured: float
    media_time: float | None = None


@dataclass(frozen=True)
class Fault:
    """A frame that could not be decoded; others follow."""

    problem: str


class Source(ABC):
    """Something that gives frames.

    Attributes:
        name: what it is called in messages; passwords are left out.
        live: whether it goes on while nobody looks; a recording waits.
        returns: whether it is opened again when it is lost.
    """

    name: str
    live: bool
    returns: bool

    @abstractmethod
    def shots(self) -> Iterator[Shot | Fault]:
        """Open the source and give its frames until it ends.

        Raises:
            SourceError: it cannot be opened, or breaks off.
            MissingDependency: what reads it is not installed.
        """

    def close(self) -> None:  # noqa: B027 - most sources end with their iterator
        """End at once what `shots` waits for, from another thread, where that is possible."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is asked of a source, where it leaves a choice.

    Attributes:
        size: width and height of a local camera's pictures.
        rate: frames a second of a local camera, or of a folder of pictures.
        pixel_format: of a local camera, such as "mjpeg" or "yuyv422".
        transport: of RTSP: "tcp" loses nothing, "udp" is a little earlier.
        timeout: seconds that a stream may take to open, and that a stream or a pipeline may send nothing.
    """

    size: tuple[int, int] | None = None
    rate: float | None = None
    pixel_format: str | None = None
    transport: str | None = None
    timeout: float = 3.0


def source_of(text: str, options: SourceOptions | None = None) -> Source:
    """Return what a text names.

    Examples:
        >>> from edgetune_runtime.live.sources import source_of
        >>> camera = source_of("rtsp://admin:secret@192.168.1.20/stream1")
        >>> camera.name, camera.live
        ('rtsp://192.168.1.20/stream1', True)

    Args:
        text: a number or /dev/videoN for a local camera; an address such as rtsp://…; "gst:" and a pipeline; a
            video file; or a folder of pictures, in the order of the numbers in their names.
        options: what is asked of it.

    Raises:
        InputError: it is none of these, there is no such file, or it has no such option.
    """
    options = options or SourceOptions()
    path = Path(text)
    if text.isdecimal() and not path.exists():
        text = f"/dev/video{text}"
        path = Path(text)
    scheme = re.match(r"([a-z0-9+]+)://", text, re.IGNORECASE)
    source: Source
    if text.startswith(PIPELINE):
        from edgetune_runtime.live.pipelines import Pipeline

        source, takes = Pipeline(text[len(PIPELINE) :].strip(), options.timeout), {"timeout"}
    elif scheme and scheme[1].lower() in ADDRESSES:
        source, takes = Stream(text, options), {"timeout", *(["transport"] if scheme[1].lower() == "rtsp" else [])}
    elif scheme:
        raise InputError(f"{shown(text)}: no stream is read by {scheme[1]}", hint=_KNOWN)
    elif path.is_dir():
        source, takes = Folder(path, options.rate), {"rate"}
    elif path.is_file():
        source, takes = Recording(path), set()
    elif path.is_relative_to("/dev"):
        source, takes = Camera(text, options), {"size", "rate", "pixel_format"}
    else:
        raise InputError(f"{text}: no such camera, file or folder", hint=_KNOWN)
    for name, default in vars(SourceOptions()).items():
        if getattr(options, name) != default and name not in takes:
            raise InputError(f"{source.name}: this kind of source has no {name.replace('_', ' ')}", hint="leave it out")
    return source


class Decoded(Source):
    """What PyAV opens and decodes."""

    def __init__(self, name: str, *, live: bool) -> None:
        self.name, self.live, self.returns = name, live, live

    @abstractmethod
    def open(self, av: Any) -> Any:
        """An open container."""

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        av = load_av()
        try:
            container = self.open(av)
        except (av.FFmpegError, OSError) as error:
            told = f"{self.name}: cannot be opened: {self.reason(error)}"
            refused = isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError)
            raise SourceError(told, hint=self.hint(error), refused=refused) from error
        with container:
            if not container.streams.video:
                raise SourceError(f"{self.name}: there is no video in it")
            stream = container.streams.video[0]
            # Decoding frames side by side would hold back as many frames as there are threads.
            stream.thread_type = "SLICE" if self.live else "AUTO"
            if self.live:
                stream.codec_context.flags |= av.codec.context.Flags.low_delay
            try:
                yield from self._frames(av, container.demux(stream), float(stream.average_rate or 25))
            except (av.FFmpegError, OSError) as error:
                raise SourceError(f"{self.name}: broke off: {self.reason(error)}") from error
        if self.live:
            raise SourceError(f"{self.name}: ended")

    def _frames(self, av: Any, packets: Iterator[Any], rate: float) -> Iterator[Shot | Fault]:
        arrived: dict[int | None, float] = {}
        first: float | None = None
        count, latest = 0, time.monotonic()
        for packet in packets:
            now = time.monotonic()
            arrived[packet.pts] = self.captured(packet, now)
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                yield Fault(self.reason(error))
                frames = []
            for frame in frames:
                captured = arrived.pop(frame.pts, now)
                if frame.is_corrupt:
                    yield Fault("a part of the frame is missing")
                    continue
                at = count / rate if frame.time is None else frame.time
                first = at if first is None else first
                count, latest = count + 1, now
                yield Shot(VideoPicture(frame), captured, None if self.live else at - first)
            if self.live and now - latest > _PICTURE_SECONDS:
                raise SourceError(f"{self.name}: no picture in what came for {_PICTURE_SECONDS:.0f} s")
            if len(arrived) > 64:  # packets of which no frame came
                arrived = dict(list(arrived.items())[-16:])

    def captured(self, packet: Any, now: float) -> float:
        """When a packet's frame was taken, as far as is known: when it arrived."""
        return now

    def reason(self, error: BaseException) -> str:
        """What went wrong, in words and without an address in it."""
        if isinstance(error, TimeoutError) or type(error).__name__ == "ExitError":
            return "nothing came in time"
        return str(getattr(error, "strerror", None) or error)

    def hint(self, error: BaseException) -> str | None:
        """How to mend what keeps it from opening."""
        return None


class Recording(Decoded):
    """A video file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), live=False)

    def open(self, av: Any) -> Any:
        """As of `Decoded`."""
        return av.open(f"file:{self.name}")  # or a colon in its name would be a protocol


class Stream(Decoded):
    """A stream of the network."""

    def __init__(self, address: str, options: SourceOptions) -> None:
        super().__init__(shown(address), live=True)
        split(address, "such as rtsp://user:password@camera.local/stream")
        self._address, self._options = address, options

    def open(self, av: Any) -> Any:
        """As of `Decoded`."""
        # What is sent before somebody is ready is old: nothing is buffered, and a short look at the stream will do.
        options = {"fflags": "nobuffer", "analyzeduration": "500000", "probesize": "500000"}
        if self._address.lower().startswith("rtsp"):
            options |= {"rtsp_transport": self._options.transport or "tcp", "allowed_media_types": "video"}
        return av.open(self._address, options=options, timeout=(self._options.timeout, self._options.timeout))

    def hint(self, error: BaseException) -> str | None:
        """As of `Decoded`."""
        return (
            "is the camera on, the address right, and its user and password in it, as rtsp://user:password@host/path? "
            "Letters such as @ and / in them are written %40 and %2F"
        )


class Camera(Decoded):
    """A local camera, by Video4Linux."""

    def __init__(self, device: str, options: SourceOptions) -> None:
        super().__init__(device, live=True)
        self._options = options

    def open(self, av: Any) -> Any:
        """As of `Decoded`."""
        options = {}
        if self._options.size:
            options["video_size"] = "{}x{}".format(*self._options.size)
        if self._options.rate:
            options["framerate"] = f"{self._options.rate:g}"
        if self._options.pixel_format:
            options["input_format"] = self._options.pixel_format
        return av.open(self.name, format="v4l2", options=options)

    def captured(self, packet: Any, now: float) -> float:
        """When the kernel had the frame, or else when it arrived."""
        return now if packet.pts is None else taken_at(float(packet.pts * packet.time_base), now, time.time())

    def hint(self, error: BaseException) -> str | None:
        """As of `Decoded`."""
        if isinstance(error, PermissionError):
            return "add the user to the group that owns the device, mostly video"
        if isinstance(error, FileNotFoundError):
            return "is the camera plugged in? ls /dev/video* lists what is there"
        return "is it in use by another program, and does it offer the size, rate and format that were asked for?"


def taken_at(told: float, now: float, wall: float) -> float:
    """When a driver's frame was taken, by the clock that never is set.

    Drivers stamp frames by that clock or by the wall's, and some by none of them.

    >>> taken_at(100.0, 100.25, 1.8e9), taken_at(1.8e9 - 0.5, 100.25, 1.8e9), taken_at(7.0, 100.25, 1.8e9)
    (100.0, 99.75, 100.25)

    Args:
        told: what the driver says, in seconds.
        now: of `time.monotonic`, as the frame arrives.
        wall: of `time.time`, at that moment.
    """
    for clock in (now, wall):
        if 0.0 <= clock - told < 3.0:
            return now - (clock - told)
    return now


class Folder(Source):
    """A folder of pictures, in the order of the numbers in their names."""

    def __init__(self, path: Path, rate: float | None) -> None:
        self.name, self.live, self.returns = str(path), False, False
        self._rate = rate or 1.0
        self._files = sorted((each for each in path.iterdir() if each.suffix.lower() in STILLS), key=_natural)
        if not self._files:
            raise InputError(f"{path}: no pictures in this folder", hint=f"their names end in {', '.join(STILLS)}")

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        for number, file in enumerate(self._files):
            try:
                picture = StillPicture(load_image(file))
            except ImageError as error:
                yield Fault(str(error))
                continue
            yield Shot(picture, time.monotonic(), number / self._rate)


class Paced(Source):
    """A recording as a camera would have given it: each frame when it is due, whether somebody looks or not.

    Args:
        recording: what is played.
        speed: how many times as fast as it was taken.
    """

    def __init__(self, recording: Source, speed: float = 1.0) -> None:
        self.name, self.live, self.returns = recording.name, True, False
        self._recording, self._speed = recording, speed

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        began, latest = time.monotonic(), 0.0
        for shot in self._recording.shots():
            if isinstance(shot, Fault):
                yield shot
                continue
            at = (shot.media_time or 0.0) / self._speed
            if at < latest:  # recordings that were joined begin anew
                began += latest - at
            latest = at
            time.sleep(max(0.0, began + at - time.monotonic()))
            yield Shot(shot.picture, time.monotonic(), shot.media_time)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A name's digits as numbers, so that frame 10 comes after frame 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]


def load_av() -> Any:
    """PyAV.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed", hint=install_command("live", "edgetune-runtime")
        ) from error
    return av

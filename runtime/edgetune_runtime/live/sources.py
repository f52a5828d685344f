"""Where frames come from: cameras, streams, recordings, folders of pictures, and GStreamer's pipelines."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from edgetune_runtime.errors import EdgetuneError, ImageError, InputError, MissingDependency, install_command
from edgetune_runtime.images.load import load_image
from edgetune_runtime.live.frames import Picture, StillPicture, VideoPicture

ADDRESSES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "srt", "rtp")
"""Schemes of streams."""
PIPELINE = "gst:"
"""What a GStreamer pipeline begins with."""
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""Ends of names of pictures in a folder."""

_OPEN_SECONDS = 3.0
"""How long a stream may take to open; with the wait before the next attempt, less than the 5 s in which a camera that
is there again should be seen again."""
_STALL_SECONDS = 3.0
"""How long a camera may send nothing before it counts as lost."""


class SourceError(EdgetuneError):
    """A source cannot be opened, or has ended without being asked to.

    Examples:
        >>> from edgetune_runtime.live.sources import SourceError
        >>> SourceError("rtsp://gate: nobody answers").exit_code
        2
    """


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
        live: whether it goes on while nobody looks. A recording waits; what is live is lost, and may come back.
    """

    name: str
    live: bool

    @abstractmethod
    def shots(self) -> Iterator[Shot | Fault]:
        """Open the source and give its frames until it ends.

        Raises:
            SourceError: it cannot be opened, or breaks off.
            MissingDependency: what reads it is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked of a source, where it leaves a choice.

    Attributes:
        size: width and height of a local camera's pictures.
        rate: frames a second of a local camera, or of a folder of pictures.
        pixel_format: of a local camera, such as "mjpeg" or "yuyv422".
        transport: of RTSP: "tcp" loses nothing, "udp" is a little earlier.
    """

    size: tuple[int, int] | None = None
    rate: float | None = None
    pixel_format: str | None = None
    transport: str = "tcp"


def source_of(text: str, wishes: Wishes | None = None) -> Source:
    """Return what a text names.

    Examples:
        >>> from edgetune_runtime.live.sources import source_of
        >>> camera = source_of("rtsp://admin:secret@192.168.1.20/stream1")
        >>> camera.name, camera.live
        ('rtsp://192.168.1.20/stream1', True)

    Args:
        text: a number or /dev/videoN for a local camera; an address such as rtsp://…; "gst:" and a pipeline; a
            video file; or a folder of pictures, in the order of their names.
        wishes: what is asked of it.

    Raises:
        InputError: it is none of these, or there is no such file.
    """
    wishes = wishes or Wishes()
    if text.isdecimal():
        text = f"/dev/video{text}"
    scheme = re.match(r"([a-z0-9+]+)://", text, re.IGNORECASE)
    if text.startswith(PIPELINE):
        return Pipeline(text[len(PIPELINE) :].strip())
    if scheme and scheme[1].lower() in ADDRESSES:
        return Stream(text, wishes)
    if scheme:
        raise InputError(f"{without_password(text)}: no stream is read by {scheme[1]}", hint=_known())
    path = Path(text)
    if path.is_dir():
        return Folder(path, wishes.rate)
    if path.is_file():
        return Recording(path)
    if path.is_char_device() or (path.parent == Path("/dev") and path.name.startswith("video")):
        return Camera(text, wishes)
    raise InputError(f"{text}: no such camera, file or folder", hint=_known())


def _known() -> str:
    return (
        "a source is a camera (0 or /dev/video0), an address (rtsp://…), a video file, a folder of pictures, or "
        "gst: and a pipeline"
    )


def without_password(address: str) -> str:
    """An address without the user's name and password, and without a query, in which cameras take them too."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


class _Decoded(Source):
    """What PyAV opens and decodes."""

    def __init__(self, name: str, *, live: bool) -> None:
        self.name, self.live = name, live

    @abstractmethod
    def _open(self, av: Any) -> Any:
        """An open container."""

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        av = load_av()
        try:
            container = self._open(av)
        except (av.FFmpegError, OSError) as error:
            raise SourceError(
                f"{self.name}: cannot be opened: {self._reason(error)}", hint=self._hint(error)
            ) from error
        with container:
            if not container.streams.video:
                raise SourceError(f"{self.name}: there is no video in it")
            stream = container.streams.video[0]
            # Decoding frames side by side would hold back as many frames as there are threads.
            stream.thread_type = "SLICE" if self.live else "AUTO"
            try:
                yield from self._frames(av, container.demux(stream), float(stream.average_rate or 25))
            except (av.FFmpegError, OSError) as error:
                raise SourceError(f"{self.name}: broke off: {self._reason(error)}") from error
        if self.live:
            raise SourceError(f"{self.name}: ended")

    def _frames(self, av: Any, packets: Iterator[Any], rate: float) -> Iterator[Shot | Fault]:
        arrived: dict[int | None, float] = {}
        first: float | None = None
        count = 0
        for packet in packets:
            now = time.monotonic()
            arrived[packet.pts] = self._captured(packet, now)
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                yield Fault(self._reason(error))
                continue
            for frame in frames:
                captured = arrived.pop(frame.pts, now)
                if frame.is_corrupt:
                    yield Fault("a part of the frame is missing")
                    continue
                at = count / rate if frame.time is None else frame.time
                first = at if first is None else first
                count += 1
                yield Shot(VideoPicture(frame), captured, None if self.live else at - first)
            if len(arrived) > 64:  # packets of which no frame came
                arrived = dict(list(arrived.items())[-16:])

    def _captured(self, packet: Any, now: float) -> float:
        """When a packet's frame was taken, as far as is known: when it arrived."""
        return now

    def _reason(self, error: BaseException) -> str:
        """What went wrong, in words and without an address in it."""
        if isinstance(error, TimeoutError) or type(error).__name__ == "ExitError":
            return "nothing came in time"
        return str(getattr(error, "strerror", None) or error)

    def _hint(self, error: BaseException) -> str | None:
        return None


class Recording(_Decoded):
    """A video file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), live=False)
        self._path = path

    def _open(self, av: Any) -> Any:
        return av.open(str(self._path))


class Stream(_Decoded):
    """A stream of the network."""

    def __init__(self, address: str, wishes: Wishes) -> None:
        super().__init__(without_password(address), live=True)
        self._address, self._wishes = address, wishes

    def _open(self, av: Any) -> Any:
        # What is sent before somebody is ready is old: nothing is buffered, and a short look at the stream will do.
        options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "500000", "probesize": "500000"}
        if self._address.lower().startswith("rtsp"):
            options |= {"rtsp_transport": self._wishes.transport, "allowed_media_types": "video"}
        return av.open(self._address, options=options, timeout=(_OPEN_SECONDS, _STALL_SECONDS))

    def _hint(self, error: BaseException) -> str | None:
        return (
            "is the camera on, the address right, and its user and password in it, as rtsp://user:password@host/path?"
        )


class Camera(_Decoded):
    """A local camera, by Video4Linux."""

    def __init__(self, device: str, wishes: Wishes) -> None:
        super().__init__(device, live=True)
        self._wishes = wishes

    def _open(self, av: Any) -> Any:
        options = {}
        if self._wishes.size:
            options["video_size"] = "{}x{}".format(*self._wishes.size)
        if self._wishes.rate:
            options["framerate"] = f"{self._wishes.rate:g}"
        if self._wishes.pixel_format:
            options["input_format"] = self._wishes.pixel_format
        return av.open(self.name, format="v4l2", options=options, timeout=(_OPEN_SECONDS, _STALL_SECONDS))

    def _captured(self, packet: Any, now: float) -> float:
        """When the kernel had the frame, or else when it arrived."""
        return now if packet.pts is None else taken_at(float(packet.pts * packet.time_base), now, time.time())

    def _hint(self, error: BaseException) -> str | None:
        if isinstance(error, PermissionError):
            return "add the user to the group that owns the device, mostly video"
        if isinstance(error, FileNotFoundError):
            return "is the camera plugged in? ls /dev/video* lists what is there"
        return (
            "is the camera in use by another program, and does it offer the size, rate and format that were asked for?"
        )


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
        if 0.0 <= clock - told < _STALL_SECONDS:
            return now - (clock - told)
    return now


class _Pipe:
    """A child's output as a file that waits no longer than a camera may be silent."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`; none at the end."""
        ready, _, _ = select.select([self._stream], [], [], _STALL_SECONDS + _OPEN_SECONDS)
        if not ready:
            raise TimeoutError
        return os.read(self._stream.fileno(), size)


class Pipeline(_Decoded):
    """What a GStreamer pipeline gives, in a process of its own: a driver that dies takes nothing else with it."""

    def __init__(self, pipeline: str) -> None:
        super().__init__(f"gst:{_hidden(pipeline)}", live=True)
        if not pipeline:
            raise InputError("gst: names no pipeline", hint="such as gst:v4l2src device=/dev/video0 ! videoconvert")
        try:
            self._words = shlex.split(pipeline)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint="close the quotation marks") from error
        self._process: subprocess.Popen[bytes] | None = None

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        program = shutil.which("gst-launch-1.0")
        if program is None:
            raise MissingDependency(
                "gst-launch-1.0 is not installed", hint="apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
            )
        # Frames as they are, each with a line before it: a form that decoders read without knowing GStreamer.
        last = "! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1 sync=false"
        words = [program, "--quiet", *self._words, *last.split()]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        try:
            yield from super().shots()
        finally:
            self._process.kill()
            self._process.communicate()

    def _open(self, av: Any) -> Any:
        assert self._process is not None and self._process.stdout is not None
        options = {"probesize": "32", "analyzeduration": "0"}
        return av.open(_Pipe(self._process.stdout), format="yuv4mpegpipe", options=options)

    def _reason(self, error: BaseException) -> str:
        """What GStreamer said, where it has ended."""
        assert self._process is not None and self._process.stderr is not None
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return super()._reason(error)
        told = self._process.stderr.read().decode("utf-8", "replace").splitlines()
        wrong = [line for line in told if "ERROR" in line or "WARNING" in line]
        return _hidden((wrong or told or ["the pipeline ended"])[0].strip())


def _hidden(text: str) -> str:
    """A pipeline or what was said of it, without passwords."""
    return re.sub(r"://[^/\s\"]*@", "://", re.sub(r"((?:user-pw|password|user-id)=)\S+", r"\1…", text))


class Folder(Source):
    """A folder of pictures, in the order of the numbers in their names."""

    def __init__(self, path: Path, rate: float | None) -> None:
        self.name, self.live = str(path), False
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
        self.name, self.live = recording.name, True
        self._recording, self._speed = recording, speed

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        began: float | None = None
        for shot in self._recording.shots():
            if isinstance(shot, Fault):
                yield shot
                continue
            at = (shot.media_time or 0.0) / self._speed
            began = time.monotonic() - at if began is None else began
            time.sleep(max(0.0, began + at - time.monotonic()))
            yield Shot(shot.picture, time.monotonic(), shot.media_time)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """A name's digits as numbers, so that frame 10 comes after frame 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]


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

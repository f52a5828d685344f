"""GStreamer pipelines as sources, in a process of their own: a driver that dies takes nothing else with it."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.live.addresses import shown
from edgetune_runtime.live.sources import Decoded, Fault, Shot

_END = "! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1 sync=false"
"""Frames as they are, each with a line before it: a form that decoders read without knowing GStreamer."""


class Pipeline(Decoded):
    """What a pipeline gives.

    Args:
        pipeline: as of `gst-launch-1.0`, without its sink.
        timeout: seconds that it may give nothing; twice as long at its start.

    Raises:
        InputError: it is empty, or its quotation marks do not match.
    """

    def __init__(self, pipeline: str, timeout: float) -> None:
        super().__init__(f"gst:{shown(pipeline)}", live=True)
        if not pipeline:
            raise InputError("gst: names no pipeline", hint="such as gst:v4l2src device=/dev/video0 ! videoconvert")
        try:
            self._words = shlex.split(pipeline)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint="close the quotation marks") from error
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def shots(self) -> Iterator[Shot | Fault]:
        """As of `Source`."""
        program = shutil.which("gst-launch-1.0")
        if program is None:
            raise MissingDependency(
                "gst-launch-1.0 is not installed", hint="apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
            )
        words = [program, "--quiet", *self._words, *_END.split()]
        # A file takes whatever it says; a pipe that nobody reads would be full one day, and hold it up.
        with tempfile.TemporaryFile() as self._said:
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self._said, bufsize=0)
            try:
                yield from super().shots()
            finally:
                self.close()
                self._process.communicate()

    def close(self) -> None:
        """As of `Source`."""
        if self._process is not None:
            self._process.kill()

    def open(self, av: Any) -> Any:
        """As of `Decoded`."""
        assert self._process is not None and self._process.stdout is not None
        options = {"probesize": "32", "analyzeduration": "0"}
        return av.open(_Pipe(self._process.stdout, self._timeout), format="yuv4mpegpipe", options=options)

    def reason(self, error: BaseException) -> str:
        """What GStreamer said, where it has ended."""
        assert self._process is not None and self._said is not None
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return super().reason(error)
        self._said.seek(0)
        told = self._said.read(1 << 20).decode("utf-8", "replace").splitlines()
        wrong = [line for line in told if "ERROR" in line or "WARNING" in line]
        return shown((wrong or told or ["the pipeline ended"])[0].strip())


class _Pipe:
    """A child's output as a file that waits no longer than a camera may be silent."""

    def __init__(self, stream: IO[bytes], timeout: float) -> None:
        self._stream, self._timeout = stream, 2 * timeout

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`; none at the end."""
        ready, _, _ = select.select([self._stream], [], [], self._timeout)
        if not ready:
            raise TimeoutError
        return os.read(self._stream.fileno(), size)

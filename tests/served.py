"""What tests of the server share: a server process, requests over one connection, and pictures with phrases."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from PIL import Image


class Asked(NamedTuple):
    """The bytes of a picture's file, and a phrase."""

    picture: bytes
    phrase: str


def questions(records: Path) -> list[Asked]:
    """The phrases of a JSONL file with their pictures."""
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    return [Asked((records.parent / line["image"]).read_bytes(), line["text"]) for line in lines if "text" in line]


def png(image: Image.Image, **options: Any) -> bytes:
    """A picture as a PNG file."""
    held = io.BytesIO()
    image.save(held, "PNG", **options)
    return held.getvalue()


def encoded(picture: bytes) -> str:
    """A file as base64."""
    return base64.b64encode(picture).decode()


class Reply(NamedTuple):
    """A response: its status, its headers in lower case, and its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What went wrong."""
        return str(self.json["error"]["message"])


class Connection:
    """One connection that is kept open, over which requests go one after the other."""

    def __init__(self, port: int) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send a request, whose body is JSON where it is no bytes."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {} if body is None else {"content-type": "application/json"}
        self.http.request(method, path, content, kind | (headers or {}))
        response = self.http.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, told, response.read())

    def detect(self, picture: bytes, phrase: str | list[str], **more: Any) -> Reply:
        """Ask for boxes."""
        return self.ask("POST", "/v1/detect", {"image": encoded(picture), "phrase": phrase, **more})


class Server:
    """`edgetune-run serve` on a free port, ended at the end of the `with` block.

    Attributes:
        port: that it listens on.
        pid: of its process.
    """

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        command = [sys.executable, "-m", "edgetune_runtime.cli", "serve", *words, "--port", "0", "--threads", "1"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=os.environ | (env or {})
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert " at http://" in line, line + self.log
        self.port = int(line.split(" (")[0].rpartition(":")[2])
        self.exit_code: int | None = None

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return self._log.read()

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self.port)

    def figure(self, name: str) -> float:
        """The sum of a figure's series in /metrics."""
        lines = self.connect().ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Tell it to end."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        self.exit_code = self._process.wait(timeout=60)
        return self.exit_code

    def __enter__(self) -> Server:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.end()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

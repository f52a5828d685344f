"""Frames with their boxes on the server's page, beside everything else that the server does."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvicorn
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation
from edgetune_runtime.live.sinks import annotated
from edgetune_runtime.serve.app import PAGE_POLICY, Settings, build_app
from edgetune_runtime.serve.command import UVICORN, address_of, api_keys, listen, url_of, warn_of_strangers
from edgetune_runtime.session import Session
from edgetune_runtime.terminal import say

PAGE = "/live"
STREAM = "/live/stream.mjpg"
BOXES = "/live/boxes"
_BOUNDARY = "frame"
_QUALITY = 80
_DRAIN_SECONDS = 2
"""How long viewers may take to go."""


class View:
    """The newest observation, for any number of viewers: whoever is slow misses some."""

    def __init__(self) -> None:
        self._latest: tuple[int, Observation] | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        self._drawing = threading.Lock()
        self._drawn: tuple[Observation, bytes] | None = None

    def routes(self) -> list[Route]:
        """The page, the pictures and the boxes."""
        return [Route(PAGE, self.page), Route(STREAM, self.stream), Route(BOXES, self.boxes)]

    def show(self, observation: Observation) -> None:
        """Take an observation, in any thread."""
        self._latest = (0 if self._latest is None else self._latest[0] + 1, observation)
        self._wake()

    def end(self) -> None:
        """Let the viewers go, in any thread."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._swap)

    def _swap(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _observations(self) -> AsyncIterator[Observation]:
        """The newest observation, again and again."""
        self._loop = asyncio.get_running_loop()
        seen = -1
        while not self._ended:
            changed, latest = self._changed, self._latest
            if latest is not None and latest[0] > seen:
                seen = latest[0]
                yield latest[1]
            else:
                await changed.wait()

    def _draw(self, observation: Observation) -> bytes:
        """A picture, drawn once for all viewers."""
        with self._drawing:
            if self._drawn is None or self._drawn[0] is not observation:
                held = io.BytesIO()
                annotated(observation).save(held, "JPEG", quality=_QUALITY)
                self._drawn = observation, held.getvalue()
            return self._drawn[1]

    async def page(self, request: Request) -> Response:
        """The page."""
        file = Path(__file__).parent.parent / "static" / "live.html"
        return FileResponse(file, headers={"content-security-policy": PAGE_POLICY})

    async def stream(self, request: Request) -> Response:
        """Frames with their boxes as motion JPEG."""

        async def parts() -> AsyncIterator[bytes]:
            async for observation in self._observations():
                picture = await to_thread.run_sync(self._draw, observation)
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                yield head.encode() + picture + b"\r\n"
            yield f"--{_BOUNDARY}--\r\n".encode()

        return StreamingResponse(parts(), media_type=f"multipart/x-mixed-replace; boundary={_BOUNDARY}")

    async def boxes(self, request: Request) -> Response:
        """What is seen as server-sent events, each the JSON line of an observation."""

        async def lines() -> AsyncIterator[str]:
            async for observation in self._observations():
                yield f"data: {json.dumps(observation.to_dict())}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


class Page:
    """A server in a thread: the page, and the API of `serve` for the same session, whose answers take turns.

    Args:
        session: that is watched with.
        name: what clients call its bundle.
        place: [HOST:]PORT to listen on.
        keys: API keys; see `serve`.

    Raises:
        InputError: the address is none, or in use.
    """

    def __init__(self, session: Session, name: str, place: str, keys: Sequence[str]) -> None:
        host, port = address_of(place)
        keys = api_keys(keys)
        self._view = View()
        listening = listen(host, port)
        settings = Settings(keys=keys, log=None, routes=self._view.routes(), open_paths=[PAGE])
        # A viewer that does not read holds up nobody for long. The session is closed with the server, at the end.
        served = UVICORN | {"timeout_graceful_shutdown": _DRAIN_SECONDS}
        self._server = uvicorn.Server(uvicorn.Config(build_app({name: session}, settings), **served))
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="page", daemon=True)
        self._thread.start()
        say(f"note: live at {url_of(host, listening)}{PAGE}", error=True)
        warn_of_strangers(host, keys, "look")

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""
        self._view.show(observation)

    def tell(self, event: Event) -> None:
        """As of `Sink`."""

    def close(self) -> None:
        """As of `Sink`."""
        self._view.end()
        self._server.should_exit = True
        self._thread.join()

"""What goes back to a client: streams of events, refusals, and nothing once it has left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from edgetune_runtime.serve.refusal import Refusal

_LEFT = 499
"""Status of a request whose client left before its answer; nobody sees it but the log."""


async def while_connected(request: Request, answer: Any) -> Any:
    """Return what is awaited, which is cancelled when the client leaves.

    Raises:
        Refusal: it left.
    """
    task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refusal(_LEFT, "the client left")
        return task.result()
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event_stream(request: Request, events: AsyncIterator[Any]) -> StreamingResponse:
    """Server-sent events of JSON documents, ended by [DONE]; an error in the middle is an event of its own."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else _failure(request, error)
            yield f"data: {json.dumps(refusal.to_dict())}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def refused(request: Request, refusal: Refusal) -> Response:
    """Why a request is not answered."""
    return JSONResponse(refusal.to_dict(), refusal.status, refusal.headers)


async def unrouted(request: Request, error: HTTPException) -> Response:
    """There is no such path, or not with that method."""
    message = {404: "there is nothing at this path", 405: "this path is not asked with that method"}
    told = Refusal(error.status_code, message.get(error.status_code, str(error.detail)), hint="see /docs")
    return JSONResponse(told.to_dict(), error.status_code, error.headers)


async def left(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return JSONResponse(Refusal(_LEFT, "the client left").to_dict(), _LEFT)


async def failed(request: Request, error: Exception) -> Response:
    """What nobody foresaw."""
    return JSONResponse(_failure(request, error).to_dict(), 500)


def _failure(request: Request, error: Exception) -> Refusal:
    """What nobody foresaw: the client learns that it failed, and the log why."""
    request.state.log["error"] = f"{type(error).__name__}: {error}"[:500]
    return Refusal(500, "the answer failed")

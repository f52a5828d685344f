"""What every request passes: its key, the bytes and time of its body, a line in the log, a place in the figures."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetune_runtime.serve.limits import Limits
from edgetune_runtime.serve.metrics import Metrics
from edgetune_runtime.serve.refusal import Refusal

OPEN = ("/health", "/ready", "/", "/docs", "/openapi.json")
"""Paths that need no key: they say whether the server runs and how it is talked to, and answer nothing."""

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}

CLOSE = {"Connection": "close"}
"""Where a body was not read to its end, the connection is not kept."""

Log = Callable[[dict[str, Any]], None]


def log_line(entry: dict[str, Any]) -> None:
    """Write an entry of the access log to stderr, as one line of JSON."""
    print(json.dumps(entry, ensure_ascii=True), file=sys.stderr, flush=True)


class Guard:
    """ASGI middleware around the application.

    Args:
        app: what is guarded.
        keys: API keys, one of which a request has to bring; none lets everybody in.
        limits: of a request.
        metrics: where requests are counted.
        paths: known ones: others are counted together.
        open_paths: those of them that need no key, besides `OPEN`.
        log: takes each request's entry, or None for no log. It has no header, query or body in it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Collection[str],
        limits: Limits,
        metrics: Metrics,
        paths: Collection[str],
        open_paths: Collection[str] = (),
        log: Log | None,
    ) -> None:
        self._app, self._limits, self._metrics, self._log = app, limits, metrics, log
        self._keys = [key.encode() for key in keys]
        self.held = 0  # bytes of bodies, of all requests that are not answered yet
        self._paths, self._open = frozenset(paths), frozenset(OPEN) | frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, path = time.perf_counter(), scope["path"] if scope["path"] in self._paths else "other"
        headers = dict(scope["headers"])
        # A client's own name for its request is kept where it is plain, so that two logs can be compared.
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else uuid.uuid4().hex
        told: dict[str, Any] = {}
        scope.setdefault("state", {})["log"] = told
        status: int | None = None
        size = 0

        async def sending(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                set_already = {key for key, _ in message["headers"]}
                own = {key: value for key, value in HEADERS.items() if key not in set_already}
                message["headers"] = [*message["headers"], *own.items(), (b"x-request-id", name.encode())]
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            with anyio.fail_after(self._limits.send_seconds):  # a client that does not read holds up nobody
                await send(message)

        body = _Bounded(receive, self._limits, self)
        try:
            if refusal := self._refused(scope["path"], headers):
                await _respond(refusal)(scope, receive, sending)
            else:
                await self._app(scope, body, sending)
        except Exception as error:  # the application has answered as far as it could
            told.setdefault("error", f"{type(error).__name__}: {error}"[:500])
            if status is None:
                await _respond(Refusal(500, "the answer failed"))(scope, receive, sending)
        finally:
            self.held -= body.size
            status = status or 500
            spent = time.perf_counter() - began
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(spent)
            if 400 <= status < 499:
                self._metrics.rejects.labels(str(status)).inc()
            if self._log is not None:
                client = scope.get("client")
                entry = {"time": time.time(), "id": name, "client": client[0] if client else None}
                entry |= {"method": scope["method"], "path": scope["path"][:200], "status": status}
                self._log(entry | {"seconds": round(spent, 6), "bytes": size} | told)

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        """Why a request is not let in, or None."""
        if self._keys and path not in self._open and not self._knows(headers):
            return Refusal(
                401,
                "the API key is missing or wrong",
                hint="send it as Authorization: Bearer KEY, as x-api-key, as Token, or as the password of basic auth",
                headers={"WWW-Authenticate": "Bearer"} | ({} if b"content-length" in headers else CLOSE),
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            # A client that is still sending would not see an answer on a connection that is closed at once.
            return too_large(self._limits, close=not length.isdigit() or int(length) > 4 * self._limits.body_bytes)
        return None

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request brings a key; each is compared in full, so that time tells nothing."""
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        brought = [headers.get(b"x-api-key", b""), headers.get(b"token", b"")]  # the latter is X-AnyLabeling's
        if kind.lower() == b"bearer":
            brought.append(given.strip())
        elif kind.lower() == b"basic":  # all that Label Studio can send; any user will do
            with contextlib.suppress(binascii.Error):
                brought.append(base64.b64decode(given.strip(), validate=True).partition(b":")[2])
        equal = [hmac.compare_digest(key, one) for key in self._keys for one in brought]
        return any(equal)


def too_large(limits: Limits, *, close: bool) -> Refusal:
    """A body of too many bytes; `close` ends the connection without waiting for the rest."""
    return Refusal(
        413,
        f"the request is over {limits.body_bytes} bytes",
        hint="send a smaller picture",
        headers=CLOSE if close else {},
    )


def _respond(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.to_dict(), refusal.status, refusal.headers)


class _Bounded:
    """Receives a body, not more than is allowed and not slower."""

    def __init__(self, receive: Receive, limits: Limits, guard: Guard) -> None:
        self._receive, self._limits, self._guard = receive, limits, guard
        self.size, self._whole = 0, False
        self._until = time.monotonic() + limits.body_seconds

    async def __call__(self) -> Message:
        if self._whole:  # what comes next is the client's leaving, for which there is no hurry
            return await self._receive()
        try:
            with anyio.fail_after(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            late = f"the request took over {self._limits.body_seconds:g} s to arrive"
            raise Refusal(408, late, headers=CLOSE) from error
        if message["type"] == "http.request":
            arrived = len(message.get("body", b""))
            self.size += arrived
            self._guard.held += arrived
            self._whole = not message.get("more_body", False)
            if self.size > self._limits.body_bytes:
                raise too_large(self._limits, close=True)
            if self._guard.held > self._limits.held_bytes:
                retry = {"Retry-After": "1", **CLOSE}
                raise Refusal(503, "too many pictures arrive at a time", hint="try again in 1 s", headers=retry)
        return message

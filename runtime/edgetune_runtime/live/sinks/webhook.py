"""Events as HTTP requests."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.addresses import shown, split
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation

_WAITING = 200
"""Events that wait; of more, the oldest goes."""
_SECONDS = 10.0
_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts to deliver one event."""
_EXAMPLE = "such as http://192.168.1.5:8080/events"


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the event would be left behind."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        """Nothing is asked in its place."""
        return


class Webhook:
    """Posts each event as JSON, in a thread: a slow receiver holds up no answer.

    Args:
        address: http:// or https://, with USER:PASSWORD@ where the receiver asks for them.
        tell: called with a line of words when events were given up.

    Attributes:
        sent: events that were taken, with a status of 200 to 299.
        lost: events that were given up after five attempts, were refused with a status of 300 to 499, were the oldest
            of more than 200, or were still waiting ten seconds after the end.

    Raises:
        InputError: the address is none of these.
    """

    def __init__(self, address: str, *, tell: Callable[[str], None] = lambda words: None) -> None:
        parts = split(address, _EXAMPLE)
        self._name = shown(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{self._name}: no address for a webhook", hint=_EXAMPLE)
        self._headers = {"Content-Type": "application/json", "User-Agent": "edgetune"}
        if parts.username is not None:
            account = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(account).decode()}"
        self._address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._opener = urllib.request.build_opener(_Straight)
        self.sent = self.lost = 0
        self._tell = tell
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        while self._events.qsize() >= _WAITING:
            with contextlib.suppress(queue.Empty):  # it was taken at this moment
                self._events.get_nowait()
                self.lost += 1
                self._tell(f"{self._name}: {_WAITING} events wait, the oldest is given up")
        self._events.put_nowait(event.to_dict())

    def close(self) -> None:
        """As of `Sink`: what waits is tried once more, for ten seconds."""
        self._closing.set()
        self._events.put(None)
        self._thread.join(_SECONDS)
        if (left := self._events.qsize() - 1) > 0:  # the end is in it as well, unless it was reached
            self.lost += left
            self._tell(f"{self._name}: {left} events were not delivered: it is the end")

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            problem = self._deliver(event)
            if problem is None:
                self.sent += 1
                continue
            self.lost += 1
            self._tell(f"{self._name}: an event was not delivered: {problem}")
            if self._closing.is_set():  # whoever is not there now will not be there for the others
                return

    def _deliver(self, event: dict[str, Any]) -> str | None:
        """Send an event, more than once if need be; return why it was given up."""
        problem = ""
        for wait in (*_PAUSES, None):
            request = urllib.request.Request(self._address, json.dumps(event).encode(), self._headers, method="POST")
            try:
                with self._opener.open(request, timeout=_SECONDS):
                    return None
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}"
                error.close()
                if 300 <= error.code < 500 and error.code not in (408, 429):
                    return problem
            except (OSError, ValueError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                problem = shown(f"{type(reason).__name__}: {reason}")
            if wait is not None and self._closing.wait(wait):
                return problem
        return problem

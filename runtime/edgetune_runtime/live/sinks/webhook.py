"""Events as HTTP requests."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.sources import without_password
from edgetune_runtime.live.watch import Observation

_WAITING = 200
"""Events that wait; of more, the oldest goes."""
_SECONDS = 10.0
_ATTEMPTS = 5
_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts to deliver one event."""


class Webhook:
    """Posts each event as JSON, in a thread: a slow receiver holds up no answer.

    Args:
        address: http:// or https://.
        tell: called with a line of words when an event was given up.

    Attributes:
        sent: events that were taken, with a status of 200 to 299.
        lost: events that were given up after five attempts, were refused with a status of 400 to 499, or were the
            oldest of more than 200.

    Raises:
        InputError: the address is none of these.
    """

    def __init__(self, address: str, *, tell: Callable[[str], None] = lambda words: None) -> None:
        parts = urlsplit(address)
        self._name = without_password(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{self._name}: no address for a webhook", hint="such as http://192.168.1.5:8080/events")
        self.sent = self.lost = 0
        self._address, self._tell = address, tell
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        while self._events.full():
            with contextlib.suppress(queue.Empty):  # it was taken at this moment
                self._events.get_nowait()
                self.lost += 1
        self._events.put_nowait(event.to_dict())  # nobody else puts

    def close(self) -> None:
        """As of `Sink`: what waits is tried once more, for ten seconds."""
        self._closing.set()
        try:
            self._events.put(None, timeout=_SECONDS)
        except queue.Full:
            return
        self._thread.join(_SECONDS)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            problem = self._deliver(event)
            if problem is None:
                self.sent += 1
            else:
                self.lost += 1
                self._tell(f"{self._name}: an event was not delivered: {problem}")

    def _deliver(self, event: dict[str, Any]) -> str | None:
        """Send an event, more than once if need be; return why it was given up."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            headers = {"Content-Type": "application/json", "User-Agent": "edgetune"}
            request = urllib.request.Request(self._address, json.dumps(event).encode(), headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS):
                    return None
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}"
                error.close()
                if 400 <= error.code < 500 and error.code not in (408, 429):
                    return problem
            except (OSError, ValueError) as error:
                problem = str(getattr(error, "reason", error))
            if attempt < len(_PAUSES) and self._closing.wait(_PAUSES[attempt]):
                return problem
        return problem

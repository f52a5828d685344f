"""Observations and events as MQTT messages."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.live.addresses import shown, split
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.observations import Observation

PASSWORD = "EDGETUNE_MQTT_PASSWORD"
"""Variable with the broker's password: other users of a machine see a command's arguments."""
_WAITING = 200
"""Events that wait for a broker that is away; observations, which grow old, do not wait."""
_CONNECT_SECONDS = 5.0
_SENT, _FULL = 0, 15
"""The library's MQTT_ERR_SUCCESS and MQTT_ERR_QUEUE_SIZE."""


class Mqtt:
    """Publishes JSON to TOPIC/observations and TOPIC/events, and "online" or "offline", retained, to TOPIC/status.

    A broker that goes away is connected to again; meanwhile observations are dropped and events wait.

    Args:
        address: mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC, or mqtts://.
        tell: called with a line of words when the broker is gone or there again, and when events are lost.

    Attributes:
        dropped: observations that could not be sent.
        lost: events that found no more room to wait, or still waited at the end.

    Raises:
        InputError: the address is none, or the broker refuses or does not answer at first.
        MissingDependency: paho-mqtt is not installed.
    """

    def __init__(self, address: str, *, tell: Callable[[str], None] = lambda words: None) -> None:
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "paho-mqtt is not installed", hint=install_command("mqtt", "edgetune-runtime")
            ) from error
        name = self._name = shown(address)
        parts = split(address, "such as mqtt://broker.local/gate")
        port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self._topic = parts.path.strip("/")
        if (
            parts.scheme not in ("mqtt", "mqtts")
            or not parts.hostname
            or not self._topic
            or set(self._topic) & set("#+")
        ):
            raise InputError(f"{name}: no MQTT address with a topic", hint="such as mqtt://broker.local/gate")
        self.dropped = self.lost = 0
        self._tell = tell
        self._waiting: set[int] = set()  # numbers of events of which the broker has not said that it has them
        self._refused: str | None = None
        self._answered = threading.Event()
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2)
        if parts.username:
            secret = os.environ.get(PASSWORD) or unquote(parts.password or "")
            client.username_pw_set(unquote(parts.username), secret or None)
        if parts.scheme == "mqtts":
            client.tls_set()
        client.max_queued_messages_set(_WAITING)
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_publish = self._published
        client.reconnect_delay_set(1, 15)
        try:
            client.connect(parts.hostname, port, keepalive=30)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name}: cannot connect: {error}", hint="is the broker on, and its port right?"
            ) from error
        client.loop_start()
        if not self._answered.wait(_CONNECT_SECONDS):
            self._refused = "no answer"
        if self._refused is not None:
            client.loop_stop()
            raise InputError(f"{name}: the broker refuses: {self._refused}", hint=f"are the user and {PASSWORD} right?")

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._refused = str(reason) if reason.is_failure else None
        if self._refused is None:
            client.publish(f"{self._topic}/status", "online", qos=1, retain=True)
            if self._answered.is_set():
                self._tell(f"{self._name}: the broker is there again")
        self._answered.set()

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._answered.is_set() and reason.is_failure:
            self._tell(f"{self._name}: the broker is gone; events wait, {_WAITING} at most")

    def _published(self, client: Any, data: Any, number: int, reason: Any, properties: Any) -> None:
        self._waiting.discard(number)

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""
        if self._client.is_connected():
            self._client.publish(f"{self._topic}/observations", json.dumps(observation.to_dict()), qos=0)
        else:
            self.dropped += 1

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        told = self._client.publish(f"{self._topic}/events", json.dumps(event.to_dict()), qos=1)
        if told.rc == _FULL:
            self.lost += 1
            self._tell(f"{self._name}: {_WAITING} events wait for the broker, this one is lost")
        else:
            self._waiting.add(told.mid)
            if told.rc == _SENT and told.is_published():  # before it was known under its number
                self._waiting.discard(told.mid)

    def close(self) -> None:
        """As of `Sink`."""
        if self._client.is_connected():
            with suppress(RuntimeError, ValueError):  # the connection was lost at this moment
                last = self._client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
                last.wait_for_publish(_CONNECT_SECONDS)
        self._client.disconnect()
        self._client.loop_stop()
        if left := len(self._waiting):
            self.lost += left
            self._tell(f"{self._name}: {left} events were not delivered: it is the end")

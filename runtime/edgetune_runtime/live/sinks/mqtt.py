"""Observations and events as MQTT messages."""

from __future__ import annotations

import json
import os
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

from edgetune_runtime.errors import InputError, MissingDependency, install_command
from edgetune_runtime.live.events import Event
from edgetune_runtime.live.sources import without_password
from edgetune_runtime.live.watch import Observation

PASSWORD = "EDGETUNE_MQTT_PASSWORD"
"""Variable with the broker's password: other users of a machine see a command's arguments."""
_WAITING = 200
"""Events that wait for a broker that is away; observations, which grow old, do not wait."""
_CONNECT_SECONDS = 5.0


class Mqtt:
    """Publishes JSON to TOPIC/observations and TOPIC/events, and "online" or "offline", retained, to TOPIC/status.

    A broker that goes away is connected to again; meanwhile observations are dropped and events wait.

    Args:
        address: mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC, or mqtts://.

    Attributes:
        dropped: observations that could not be sent.

    Raises:
        InputError: the address is none, or the broker refuses or does not answer at first.
        MissingDependency: paho-mqtt is not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "paho-mqtt is not installed", hint=install_command("mqtt", "edgetune-runtime")
            ) from error
        name = without_password(address)
        try:
            parts = urlsplit(address)
            port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        except ValueError as error:
            raise InputError(f"{name}: {error}", hint="such as mqtt://broker.local/gate") from error
        self._topic = parts.path.strip("/")
        if (
            parts.scheme not in ("mqtt", "mqtts")
            or not parts.hostname
            or not self._topic
            or set(self._topic) & set("#+")
        ):
            raise InputError(f"{name}: no MQTT address with a topic", hint="such as mqtt://broker.local/gate")
        self.dropped = 0
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
        client.on_connect = self._connected
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
        self._answered.set()

    def write(self, observation: Observation) -> None:
        """As of `Sink`."""
        if self._client.is_connected():
            self._client.publish(f"{self._topic}/observations", json.dumps(observation.to_dict()), qos=0)
        else:
            self.dropped += 1

    def tell(self, event: Event) -> None:
        """As of `Sink`."""
        self._client.publish(f"{self._topic}/events", json.dumps(event.to_dict()), qos=1)

    def close(self) -> None:
        """As of `Sink`."""
        if self._client.is_connected():
            last = self._client.publish(f"{self._topic}/status", "offline", qos=1, retain=True)
            last.wait_for_publish(_CONNECT_SECONDS)
        self._client.disconnect()
        self._client.loop_stop()

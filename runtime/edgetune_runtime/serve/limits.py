"""What a server takes of one request, and how many at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        body_bytes: of a request, pictures included.
        body_seconds: until a request has arrived in full.
        held_bytes: of all requests that are not answered yet.
        send_seconds: until a client has taken a part of its response.
        image_pixels: width x height of a picture as it was sent.
        phrases: in one request.
        text_length: characters of one phrase, question or message.
        new_tokens: of one answer.
        queue: requests that may wait for a bundle, behind the one that it answers.
    """

    body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    held_bytes: int = 512 << 20
    send_seconds: float = 60.0
    image_pixels: int = 50_000_000
    phrases: int = 32
    text_length: int = 4_000
    new_tokens: int = 1024
    queue: int = 32

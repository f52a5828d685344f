"""The picture of a request: data URI, base64, the bytes of a file, or an address where those are allowed."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass

from PIL import Image

from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_image
from edgetune_runtime.serve.fetch import Fetcher
from edgetune_runtime.serve.refusal import Refusal

_SHOWN = 40
"""Characters of a picture that an error may quote."""


def is_address(source: str) -> bool:
    """Whether a picture is given by its address."""
    return source[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Pictures:
    """Reads pictures of requests, never a path of this machine.

    Attributes:
        max_pixels: of a picture; it is refused before it is decoded.
        fetcher: for pictures that are given by address, or None where none may be.
    """

    max_pixels: int
    fetcher: Fetcher | None = None

    def content(self, source: str | bytes, param: str) -> bytes:
        """Return the bytes of a picture's file.

        Raises:
            Refusal: it is no base64, or an address that is not allowed or gives nothing.
        """
        if isinstance(source, bytes):
            return source
        if is_address(source):
            if self.fetcher is None:
                raise Refusal(
                    400,
                    "pictures by address are switched off here",
                    hint="send the picture itself, as a data URI; --allow-url HOST of the server lets a host in",
                    param=param,
                )
            return self.fetcher.fetch(source, param)
        body = source
        if source[:5].lower() == "data:":
            head, comma, body = source.partition(",")
            if not comma or not head.lower().endswith(";base64"):
                raise Refusal(400, f"a data URI is data:image/...;base64,..., got {source[:_SHOWN]!r}", param=param)
        try:
            return base64.b64decode("".join(body.split()), validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: a letter that is not ASCII
            raise Refusal(
                400,
                f"the picture is not valid base64: {error}",
                hint="give a data URI (data:image/jpeg;base64,...) or the base64 of a picture's file alone",
                param=param,
            ) from error

    async def here(self, source: str | bytes, param: str) -> str | bytes:
        """Return a picture that need not be fetched any more.

        Raises:
            Refusal: it is given by an address that is not allowed or gives nothing.
        """
        if isinstance(source, str) and is_address(source):
            return await asyncio.to_thread(self.content, source, param)
        return source

    def image(self, source: str | bytes, param: str = "image") -> Image.Image:
        """Return the picture, upright and RGB.

        Raises:
            Refusal: it cannot be used.
        """
        try:
            return load_image(self.content(source, param), max_image_pixels=self.max_pixels)
        except ImageError as error:
            raise Refusal.of(error, param) from error

"""Addresses as they may be shown: without passwords, wherever cameras take them."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from edgetune_runtime.errors import InputError

_ACCOUNT = re.compile(r"//[^\s\"']*@")
"""A user's name and password; the last @ counts, for a password that was not percent-encoded has what it likes."""
_SECRET = re.compile(
    r"""((?:user|pass|pwd|token|auth|key|secret)[\w-]*\s*=\s*)("[^"]*"|'[^']*'|[^\s&;!"']*)""", re.IGNORECASE
)
"""A name and what is set to it, in a query, a path or a pipeline."""


def shown(address: str) -> str:
    """Return an address, or a pipeline with some in it, without what nobody else should read.

    >>> shown("rtsp://admin:pa/ss@10.0.0.2/s?channel=1&password=tlJw")
    'rtsp://10.0.0.2/s?channel=1&password=…'
    >>> shown("rtspsrc location=rtsp://a:b@cam/1 user-pw='my secret' ! decodebin")
    'rtspsrc location=rtsp://cam/1 user-pw=… ! decodebin'
    """
    return _SECRET.sub(r"\1…", _ACCOUNT.sub("//", address))


def split(address: str, hint: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        InputError: it has none.
    """
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{shown(address)}: no address: {error}", hint=hint) from error
    if any(letter.isspace() or not letter.isprintable() for letter in address):
        raise InputError(f"{shown(address)}: an address has no spaces", hint=hint)
    return parts

"""Fetching a picture from an http(s) address, for those who ask for it."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from edgetune_runtime.errors import ImageError

MAX_BYTES = 64 << 20
TIMEOUT_S = 20.0


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) addresses only; urllib itself would go on to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith(("http://", "https://")):
            raise ImageError(f"{req.full_url}: leads to {newurl}, which is no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(address: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S) -> bytes:
    """Return what is at an http(s) address.

    Args:
        address: where to fetch from.
        max_bytes: refuse anything larger.
        timeout_s: longest silence of the server, in seconds.

    Raises:
        ImageError: nothing is there, it is too large, or the server does not answer.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "edgetune"})
    try:
        with urllib.request.build_opener(_WebOnly).open(request, timeout=timeout_s) as answer:
            data: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{address}: the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # no such host, refused, silent, broken off, malformed
        raise ImageError(f"{address}: cannot be fetched: {getattr(error, 'reason', error)}") from error
    if len(data) > max_bytes:
        raise ImageError(f"{address}: over the limit of {max_bytes} bytes")
    return data

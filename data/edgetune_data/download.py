"""Fetching a picture from an http(s) address, for those who ask for it."""

from __future__ import annotations

import ipaddress
import socket
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from edgetune_runtime.errors import ImageError

MAX_BYTES = 64 << 20
TIMEOUT_S = 20.0
DEADLINE_S = 120.0


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect within its host, or to another one on the public internet.

    urllib itself would go on to ftp, and to whatever answers inside the network of whoever reads the data.
    """

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not is_address(newurl):
            raise ImageError(f"{req.full_url}: leads to {newurl}, which is no web address")
        host = urlsplit(newurl).hostname or ""
        if host != urlsplit(req.full_url).hostname and not _is_public(host):
            raise ImageError(f"{req.full_url}: leads to {newurl}, which is inside a private network")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_address(reference: str) -> bool:
    """Whether a text is an http(s) address, in capitals or not."""
    return reference[:8].lower().startswith(("http://", "https://"))


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are on the public internet; one that has none cannot be reached anyway."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found)


def fetch(
    address: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = TIMEOUT_S, deadline_s: float = DEADLINE_S
) -> bytes:
    """Return what is at an http(s) address.

    Args:
        address: where to fetch from.
        max_bytes: refuse anything larger.
        timeout_s: longest silence of the server, in seconds.
        deadline_s: longest time in all, in seconds.

    Raises:
        ImageError: nothing is there, it is too large, the server does not answer or is too slow, or leads elsewhere
            than to a web address that anyone could reach.
    """
    answer: list[bytes | Exception] = []

    def read() -> None:
        try:
            answer.append(_read(address, max_bytes, timeout_s))
        except Exception as error:  # raised below, in the thread that asked
            answer.append(error)

    # A server that sends a byte now and then is never silent; only another thread can give up on it at any moment.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if not answer:
        raise ImageError(f"{address}: not there after {deadline_s:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _read(address: str, max_bytes: int, timeout_s: float) -> bytes:
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "edgetune"})
        with urllib.request.build_opener(_WebOnly).open(request, timeout=timeout_s) as answer:
            data: bytes = answer.read(max_bytes + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(f"{address}: the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:  # no such host, refused, silent, broken off, malformed
        raise ImageError(f"{address}: cannot be fetched: {getattr(error, 'reason', error)}") from error
    if len(data) > max_bytes:
        raise ImageError(f"{address}: over the limit of {max_bytes} bytes")
    return data

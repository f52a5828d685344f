"""Pictures by address, for hosts that were allowed: no other host, no private address, no more bytes or time than said.

A name is looked up once and the connection goes to the address that was checked, so that a name which changes its
address between the check and the connection (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from edgetune_runtime.serve.refusal import Refusal

HEADERS = {"User-Agent": "edgetune", "Accept": "image/*"}
REDIRECTS = 3
"""How many are followed, each checked as the first address was."""


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


class BadStatus(Refusal):
    """An address answers with another status than 200.

    Args:
        code: that status.
        param: the field of the request that holds the address.
    """

    def __init__(self, code: int, param: str) -> None:
        super().__init__(400, f"the picture's address answers with status {code}", param=param)
        self.code = code


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and no multicast one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True)
class Fetcher:
    """Fetches over HTTP and HTTPS.

    Attributes:
        hosts: names that may be asked, each with a port where it is not that of http or https.
        max_bytes: of a picture's file.
        seconds: of one fetch, redirects included.
        admits: whether a connection may go to an IP address.
        schemes: that an address, and one it redirects to, may have.
    """

    hosts: Collection[str]
    max_bytes: int
    seconds: float = 10.0
    admits: Callable[[str], bool] = is_public
    schemes: Collection[str] = tuple(_PORTS)

    def fetch(
        self, url: str, param: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        """Return what an address gives.

        Args:
            url: the address.
            param: the field of the request that holds it, for a refusal.
            headers: further ones; they are also sent where it redirects to, so that `hosts` should be one.
            body: what is posted there; None gets.

        Raises:
            BadStatus: it answers with anything but 200.
            Refusal: its host, or that of a redirect, was not allowed or has a private address; it takes too long or is
                too large.
        """
        sent = HEADERS | dict(headers or {})
        until = time.monotonic() + self.seconds
        try:
            for _ in range(REDIRECTS + 1):
                found, next_url = self._once(self._checked(url, param), until, param, sent, body)
                if next_url is None:
                    return found
                url = urljoin(url, next_url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refusal(
                400, f"the picture could not be fetched: {str(error) or type(error).__name__}", param=param
            ) from error
        raise Refusal(400, f"the picture's address redirects more than {REDIRECTS} times", param=param)

    def _checked(self, url: str, param: str) -> SplitResult:
        """The parts of an address whose host is allowed."""
        parts = urlsplit(url)
        port = parts.port  # raises ValueError for what is no port
        usual = port in (None, _PORTS.get(parts.scheme))
        names = {f"{parts.hostname}:{port or _PORTS.get(parts.scheme)}"} | ({str(parts.hostname)} if usual else set())
        allowed = {host.lower() for host in self.hosts}
        if parts.scheme not in self.schemes or not names & allowed or parts.username is not None:
            raise Refusal(
                400,
                "the picture's address is of a host that is not allowed",
                hint=f"allowed are {', '.join(sorted(self.hosts))}",
                param=param,
            )
        return parts

    def _once(
        self, parts: SplitResult, until: float, param: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[bytes, str | None]:
        """What one address gives, and where it redirects to."""
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = held = self._connected(parts, port, until, param)
        watch = threading.Timer(_left(until), _shut, [held])  # a time limit of each read alone lets bytes drip
        watch.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET" if body is None else "POST", target, body, {**headers, "Host": parts.netloc})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and body is None:
                return b"", response.headers.get("Location", "")
            if response.status != 200:
                raise BadStatus(response.status, param)
            chunks, size = [], 0
            while chunk := response.read1(1 << 16):
                chunks.append(chunk)
                size += len(chunk)
                if size > self.max_bytes:
                    raise Refusal(400, f"the picture at that address is over {self.max_bytes} bytes", param=param)
            _left(until)
            return b"".join(chunks), None
        finally:
            watch.cancel()
            connection.close()
            held.close()

    def _connected(self, parts: SplitResult, port: int, until: float, param: str) -> socket.socket:
        """A connection to an address of the host that was checked."""
        assert parts.hostname is not None
        found = [entry[4][0] for entry in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
        addresses = [str(address) for address in found]
        if not all(map(self.admits, addresses)):
            raise Refusal(400, "the picture's host has a private address", param=param)
        plain = socket.create_connection((addresses[0], port), timeout=_left(until))
        if parts.scheme == "http":
            return plain
        try:
            return ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        except BaseException:
            plain.close()
            raise


def _shut(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)


def _left(until: float) -> float:
    """Seconds that are left.

    Raises:
        TimeoutError: none are.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left

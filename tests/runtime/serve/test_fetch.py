"""Fetching pictures by address, from a server of this machine whose address is admitted for the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from edgetune_runtime.serve.fetch import Fetcher, is_public
from edgetune_runtime.serve.refusal import Refusal


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer by the path: /redirect/ADDRESS, /large, /slow, /missing, or a few bytes."""
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        kind, _, rest = self.path.strip("/").partition("/")
        self.send_response({"redirect": 302, "missing": 404}.get(kind, 200))
        if kind == "redirect":
            self.send_header("Location", rest)
        self.end_headers()
        for _ in range({"large": 1000, "slow": 1000}.get(kind, 1)):
            try:
                self.wfile.write(b"picture!" * (1000 if kind == "large" else 1))
            except OSError:
                return
            if kind == "slow":
                time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetcher(site: ThreadingHTTPServer, *, admits: Callable[[str], bool] = lambda address: True) -> Fetcher:
    return Fetcher([f"localhost:{site.server_port}"], max_bytes=100_000, seconds=1.0, admits=admits)


def refusal(fetching: Fetcher, url: str) -> str:
    with pytest.raises(Refusal) as caught:
        fetching.fetch(url, "image")
    assert caught.value.status == 400 and caught.value.param == "image"
    return str(caught.value)


def test_an_allowed_host_gives_its_picture_also_by_a_redirect_to_itself(site: ThreadingHTTPServer) -> None:
    home = f"http://localhost:{site.server_port}"
    assert fetcher(site).fetch(f"{home}/cat.png?size=1", "image") == b"picture!"
    assert fetcher(site).fetch(f"{home}/redirect//cat.png", "image") == b"picture!"
    assert site.seen == ["/cat.png?size=1", "/redirect//cat.png", "/cat.png"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/x", "http://127.0.0.1:1/x", "https://localhost/x", "file:///x"]
)
def test_a_redirect_to_another_host_or_port_is_refused(url: str, site: ThreadingHTTPServer) -> None:
    assert "not allowed" in refusal(fetcher(site), f"http://localhost:{site.server_port}/redirect/{url}")
    assert len(site.seen) == 1  # type: ignore[attr-defined]


def test_endless_redirects_large_slow_and_missing_pictures_are_refused(site: ThreadingHTTPServer) -> None:
    home = f"http://localhost:{site.server_port}"
    assert "redirects more than" in refusal(fetcher(site), f"{home}/redirect/" + "/redirect/" * 9)
    assert "over 100000 bytes" in refusal(fetcher(site), f"{home}/large")
    began = time.perf_counter()
    assert "could not be fetched" in refusal(fetcher(site), f"{home}/slow")
    assert time.perf_counter() - began < 5
    assert "status 404" in refusal(fetcher(site), f"{home}/missing")
    assert "could not be fetched" in refusal(fetcher(site), f"http://localhost:{site.server_port}/ a\r\nb")


def test_a_host_of_a_private_address_is_not_even_connected_to(site: ThreadingHTTPServer) -> None:
    home = f"http://localhost:{site.server_port}"
    assert "private address" in refusal(fetcher(site, admits=is_public), f"{home}/cat.png")
    assert site.seen == []  # type: ignore[attr-defined]


def test_a_host_is_a_name_in_any_case_and_its_usual_port() -> None:
    fetching = Fetcher(["Example.org"], max_bytes=1, admits=lambda address: False)
    for url in ("http://example.org/", "https://EXAMPLE.org:443/"):
        assert "not allowed" not in refusal(fetching, url)
    for url in ("http://example.org:22/", "http://user@example.org/"):
        assert "not allowed" in refusal(fetching, url)


def test_addresses_that_are_not_of_the_open_internet() -> None:
    private = "127.0.0.1 10.0.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 ::1 fe80::1%eth0 fd00::1"
    mapped = ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"]
    assert not any(map(is_public, [*private.split(), *mapped]))
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"]))

"""Label Studio's API as its pages use it: a session with a cookie, and what the pages post."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode


class LabelStudioError(Exception):
    """Label Studio refuses a request."""


class Client:
    """A signed-in user.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._cookies = CookieJar()
        self._open = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies)).open

    def sign_in(self, user: str, password: str, seconds: float) -> None:
        """Sign in as soon as the server answers."""
        until = time.monotonic() + seconds
        while True:
            try:
                self.text("/user/login/")
                break
            except (OSError, LabelStudioError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        form = {"email": user, "password": password, "csrfmiddlewaretoken": self._token()}
        self._send("POST", "/user/login/", urlencode(form).encode(), "application/x-www-form-urlencoded")

    def personal_token(self) -> str:
        """A new personal access token."""
        return str(self.ask("POST", "/api/token/", {})["token"])

    def legacy_token(self) -> str:
        """The user's legacy token, for which such tokens are switched on."""
        self.ask("POST", "/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
        return str(self.ask("GET", "/api/current-user/token")["token"])

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that a request gives.

        Raises:
            LabelStudioError: it is refused.
        """
        sent = None if body is None else json.dumps(body).encode()
        found = self._send(method, path, sent, "application/json")
        return json.loads(found) if found.strip() else None

    def upload(self, path: str, file: Path) -> None:
        """Post a file as a form does."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        self._send("POST", path, body, f"multipart/form-data; boundary={mark}")

    def text(self, path: str, headers: dict[str, str] | None = None) -> str:
        """What is at a path."""
        return self._send("GET", path, None, None, headers).decode()

    def _token(self) -> str:
        return next((cookie.value or "" for cookie in self._cookies if cookie.name == "csrftoken"), "")

    def _send(
        self, method: str, path: str, body: bytes | None, kind: str | None, more: dict[str, str] | None = None
    ) -> bytes:
        headers = {"Referer": self.url, "X-CSRFToken": self._token()} | ({"Content-Type": kind} if kind else {})
        request = urllib.request.Request(self.url + path, body, headers | (more or {}), method=method)
        try:
            with self._open(request, timeout=180) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:2000]
            raise LabelStudioError(f"{method} {path}: {error.code} {told}") from error

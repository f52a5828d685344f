"""Pictures that Label Studio keeps, from the one server that was named, and with its key."""

from __future__ import annotations

import json
import threading
from urllib.parse import SplitResult, quote, unquote, urlsplit

from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.serve.fetch import BadStatus, Fetcher
from edgetune_runtime.serve.pictures import is_address
from edgetune_runtime.serve.refusal import Refusal

KEY = "LABEL_STUDIO_API_KEY"
"""Variable with a token of Label Studio; its own SDK reads the same one."""
_FOLDER = "/data/"
"""Where it has pictures (uploads and local files), and nothing of its API."""
_ACCEPT = {"Accept": "*/*"}
"""It refuses to give a picture to who accepts pictures alone."""
_BUCKETS = ("s3://", "gs://", "azure-blob://")


class LabelStudioFiles:
    """Fetches files of one Label Studio.

    Examples:
        >>> from edgetune_runtime.serve.label_studio_files import LabelStudioFiles
        >>> files = LabelStudioFiles("http://localhost:8080", "token", max_bytes=1 << 20)
        >>> files.has("/data/upload/1/cup.png"), files.has("http://localhost:8080/data/upload/1/cup.png")
        (True, True)
        >>> files.has("https://example.org/cup.png")
        False

    Args:
        url: of the server, whatever its address is: it was named, and so it may be a private one.
        key: a personal access token, which is exchanged for short-lived ones, or a legacy token; None brings none.
        max_bytes: of a file.

    Raises:
        InputError: the address is none of a server, or the key none.
    """

    def __init__(self, url: str, key: str | None, max_bytes: int) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (KeyError, ValueError):
            parts, port = SplitResult("", "", "", "", ""), 0
        if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
            raise InputError(f"{url!r} is no address of a Label Studio", hint="give it like http://localhost:8080")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._path = parts.path.rstrip("/")
        # Redirects go with the key: to the same server alone, and not to its unencrypted twin.
        self._fetcher = Fetcher(
            [f"{parts.hostname}:{port}"], max_bytes, admits=lambda address: True, schemes=(parts.scheme,)
        )
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InputError(f"the token in {KEY} is not one of printable ASCII characters")
        self._key, self._access = key, ""
        self._personal = key is not None and key.count(".") == 2  # a JWT; legacy tokens are hexadecimal
        self._lock = threading.Lock()

    def has(self, reference: str) -> bool:
        """Whether a task's reference is to a file of this server."""
        return reference.startswith(("/", f"{self.url}/"))

    def content(self, reference: str, param: str) -> bytes:
        """Return a file.

        Args:
            reference: as `has` says.
            param: the field of the request that holds it.

        Raises:
            Refusal: it is none of a picture, or the server does not give it.
        """
        path = reference.removeprefix(self.url)
        path = path.removeprefix(self._path) if path.startswith(f"{self._path}/") else path
        steps = unquote(urlsplit(path).path).replace("\\", "/").split("/")
        if not path.startswith(_FOLDER) or ".." in steps:
            raise Refusal(400, f"{excerpt(reference)} is no picture of a Label Studio", param=param)
        url = self.url + quote(path, safe="/?%&=+:;,@!$'()*~")  # names of local files come as they are
        try:
            try:
                return self._fetcher.fetch(url, param, headers=self._headers(param))
            except BadStatus as error:
                if error.code != 401 or not self._personal:
                    raise
                return self._fetcher.fetch(url, param, headers=self._headers(param, fresh=True))
        except BadStatus as error:
            hint = (
                f"set {KEY} to an access token of a user who may see the project" if error.code in (401, 403) else None
            )
            told = f"Label Studio answers with status {error.code} for the picture"
            raise Refusal(400, told, hint=hint, param=param) from error

    def _headers(self, param: str, *, fresh: bool = False) -> dict[str, str]:
        """What says who asks; access tokens last five minutes and are kept until one is refused."""
        if self._key is None:
            return _ACCEPT
        if not self._personal:
            return _ACCEPT | {"Authorization": f"Token {self._key}"}
        with self._lock:
            if fresh or not self._access:
                self._access = self._exchanged(param)
            return _ACCEPT | {"Authorization": f"Bearer {self._access}"}

    def _exchanged(self, param: str) -> str:
        """A new access token for the personal one."""
        sent = json.dumps({"refresh": self._key}).encode()
        kind = _ACCEPT | {"Content-Type": "application/json"}
        try:
            told = json.loads(self._fetcher.fetch(f"{self.url}/api/token/refresh/", param, headers=kind, body=sent))
            access = told["access"]
        except (BadStatus, ValueError, KeyError, TypeError) as error:
            raise Refusal(400, f"Label Studio does not take the token in {KEY}", param=param) from error
        if not isinstance(access, str) or not access.isascii() or not access.isprintable():
            raise Refusal(400, f"Label Studio does not take the token in {KEY}", param=param)
        return access


def refuse_elsewhere(reference: str, files: LabelStudioFiles | None, param: str) -> None:
    """Refuse a task's reference that names no picture which could be read here.

    Raises:
        Refusal: it is a path of a Label Studio that was not named, in a bucket, or neither address nor data URI.
    """
    if reference.startswith(_BUCKETS):
        raise Refusal(
            400,
            f"the picture {excerpt(reference)} is in a bucket",
            hint="import the pictures as uploads, local files or addresses; links to buckets are not read here",
            param=param,
        )
    if reference.startswith("/") and files is None:
        raise Refusal(
            400,
            f"the picture {excerpt(reference)} is on the Label Studio server",
            hint=f"start this server with --label-studio URL and its token in {KEY}",
            param=param,
        )
    if not reference.startswith("/") and not is_address(reference) and not reference[:5].lower() == "data:":
        raise Refusal(400, f"{excerpt(reference)} is no reference to a picture", param=param)

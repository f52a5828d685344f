"""From what a data set says of a picture (path, data URI, base64, bytes, address) to a file on disk."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from edgetune_data.download import fetch, is_address
from edgetune_runtime.errors import ImageError, excerpt
from edgetune_runtime.records.forms import FormError

_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "MPO": "jpg"}
_DATA_URI = re.compile(r"data:(?:image/[\w.+-]+)?;base64,(.*)", re.DOTALL | re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_LONGEST_NAME = 255  # bytes of a name in the usual file systems
_SHORTEST_BASE64 = 64  # no encoded picture is shorter, and few paths of this alphabet are longer


def is_path(reference: str) -> bool:
    """Whether what a data set says of a picture is a path, and no address, data URI or base64 text."""
    return not (is_address(reference) or reference[:7].lower().startswith(("data:", "file://")) or _is_long(reference))


def _could_be_base64(reference: str) -> bool:
    return len(reference) >= _SHORTEST_BASE64 and _BASE64.fullmatch(reference) is not None


def _is_long(reference: str) -> bool:
    return len(reference) > _LONGEST_NAME and _could_be_base64(reference)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgetune-data-")


def process_folder() -> Path:
    """Return a folder that lives as long as the process: for pictures that came inside data, and copies of records."""
    return Path(_temporary().name)


def is_temporary(path: Path) -> bool:
    """Whether a file was made by this process and is gone when it ends."""
    return process_folder() in path.parents


class Pictures:
    """Finds the pictures of one data set.

    Pictures that come inside the data are written to a temporary folder that lives as long as the process, each as
    <first 16 digits of its sha256>.<format>.

    Args:
        root: the folder that relative paths start from.
        allow_download: fetch http(s) addresses, which are refused otherwise.
    """

    def __init__(self, root: Path, *, allow_download: bool = False) -> None:
        self.root = root
        self.allow_download = allow_download
        self.written: set[Path] = set()
        self._fetched: dict[str, Path] = {}

    def path(self, reference: Any) -> str:
        """Return the path of a picture, which need not exist when a path was given.

        Args:
            reference: a path, a data URI, base64 text, the bytes of an image file, an http(s) address, or an object
                with "bytes" or "path", as the Image feature of Hugging Face data sets has.

        Raises:
            FormError: it is none of these, or an address that may not be fetched.
            ImageError: what it holds or leads to is no picture.
        """
        if isinstance(reference, Mapping):
            reference = reference.get("bytes") or reference.get("path")
        if isinstance(reference, bytes):
            return self._write(reference, "the picture's bytes")
        if not isinstance(reference, str) or not reference.strip():
            raise FormError(f"a picture is a path, a data URI or bytes, got {reference!r}")
        if is_address(reference):
            return self._from_address(reference)
        if reference[:5].lower() == "data:":
            match = _DATA_URI.fullmatch(reference)
            if match is None:
                raise FormError(f"a data URI must be data:image/...;base64,..., got {excerpt(reference, 40)}")
            return self._write(_decoded(match[1]), "the data URI")
        if reference.startswith("file://"):
            return str(self.root / unquote(reference.removeprefix("file://")))
        if _could_be_base64(reference) and not self._exists(reference):
            return self._write(_decoded(reference), "the base64 text")
        return str(self.root / reference)

    def _exists(self, reference: str) -> bool:
        try:
            return (self.root / reference).is_file()
        except OSError:  # longer than a file name may be
            return False

    def _from_address(self, address: str) -> str:
        if not self.allow_download:
            raise FormError(
                f"the picture is at {address}, and nothing is fetched", hint="edgetune data convert --allow-download"
            )
        if address not in self._fetched:
            self._fetched[address] = Path(self._write(fetch(address), address))
        return str(self._fetched[address])

    def _write(self, data: bytes, name: str) -> str:
        try:
            with Image.open(io.BytesIO(data)) as image:
                kind = image.format or ""
        except Exception as error:  # Pillow raises almost anything on broken files
            raise ImageError(f"{name}: not an image, or in a format that Pillow cannot read") from error
        path = process_folder() / f"{hashlib.sha256(data).hexdigest()[:16]}.{_EXTENSIONS.get(kind, kind.lower())}"
        if path not in self.written:
            path.write_bytes(data)
            self.written.add(path)
        return str(path)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormError(f"a picture's base64 text is broken: {error}") from error

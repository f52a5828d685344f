"""The exceptions that edgetune raises on purpose; every tool of the project uses this one tree.

    EdgetuneError                 exit 2
    ├── InputError                exit 2   bad user input: arguments, names, values
    │   ├── ImageError            exit 2   an image that cannot be read or used
    │   └── RecordError           exit 2   a line of a data file, as "data.jsonl:17: ..."
    ├── BundleError               exit 2   a stage folder or bundle that is not loadable or was altered
    ├── ParityError               exit 1   a self-check failed (export parity, merge proof)
    ├── DivergenceError           exit 1   a training computes numbers that are not finite
    ├── GateFailed                exit 1   a measured number missed its bar
    ├── GateInconclusive          exit 4   too few samples to tell whether a number met its bar
    ├── Cancelled                 exit 130 an answer that nobody waits for any more was given up
    └── MissingDependency         exit 3   the environment lacks something; the hint installs it

The exit code is what a command line program returns for the error; 130 is Ctrl-C and 143 SIGTERM. A message is one
line that says what is wrong and where; the hint says how to fix it.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

MAX_MESSAGE = 2000
"""Characters of a message, of which the middle is left out where it has more."""


class EdgetuneError(Exception):
    """Base of all expected failures.

    Examples:
        >>> from edgetune_runtime import EdgetuneError, Session
        >>> try:
        ...     Session.load("nowhere")
        ... except EdgetuneError as error:
        ...     print(error.hint)
        give a folder that an edgetune command wrote to the end

    Args:
        message: what went wrong and where. Line breaks are folded so that `str()` is one line, and what is longer than
            `MAX_MESSAGE` loses its middle.
        hint: how to fix it, shown on a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Half a character, as in the name of a file that is not UTF-8, would make printing the message an error.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(shortened(" ".join(message.split()), MAX_MESSAGE))
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the attributes: an error crosses processes whatever its constructor takes."""
        return _restored, (type(self), str(self), dict(self.__dict__))


def _restored(kind: type[EdgetuneError], message: str, attributes: dict[str, object]) -> EdgetuneError:
    error = kind.__new__(kind, message)
    error.__dict__.update(attributes)
    return error


class InputError(EdgetuneError):
    """The user's input cannot be used as it is.

    Examples:
        >>> from edgetune_runtime import InputError, Session
        >>> with Session.load("runs/onnx-int4") as session:
        ...     try:
        ...         session.ground("photo.png", " ")
        ...     except InputError as error:
        ...         print(error)
        the phrase is empty
    """


class ImageError(InputError):
    """An image is missing, broken, or outside the accepted limits.

    Examples:
        >>> from edgetune_runtime import ImageError, Session
        >>> with Session.load("runs/onnx-int4") as session:
        ...     try:
        ...         session.ground(None, "the owl")
        ...     except ImageError as error:
        ...         print(error)
        not an image: None, which cameras and OpenCV give when they have no picture
    """


class RecordError(InputError):
    """A record of a data file is wrong. `path` and `line` (from 1) say where."""

    def __init__(self, message: str, *, path: Path, line: int, hint: str | None = None) -> None:
        super().__init__(f"{path}:{line}: {message}", hint=hint)
        self.path = path
        self.line = line


class BundleError(EdgetuneError):
    """A stage folder or bundle is not what it claims to be.

    Examples:
        >>> from edgetune_runtime import Bundle, BundleError
        >>> try:
        ...     Bundle.load("runs")
        ... except BundleError as error:
        ...     print(str(error).split("/")[-1])
        runs: no manifest.json in this folder
    """


class ParityError(EdgetuneError):
    """A result does not reproduce its reference."""

    exit_code = 1


class DivergenceError(EdgetuneError):
    """A training has come to a loss or a gradient that is not a finite number; going on would learn nothing."""

    exit_code = 1


class GateFailed(EdgetuneError):
    """A measured number missed the bar that was set for it."""

    exit_code = 1


class GateInconclusive(EdgetuneError):
    """A measured number may meet its bar or miss it: there are too few samples to tell."""

    exit_code = 4


class Cancelled(EdgetuneError):
    """Whoever asked for an answer no longer wants it.

    Examples:
        >>> import threading
        >>> from edgetune_runtime import Cancelled, Session
        >>> gone = threading.Event()
        >>> gone.set()
        >>> with Session.load("runs/onnx-int4") as session:
        ...     try:
        ...         session.answer("photo.png", session.request("the owl"), cancel=gone)
        ...     except Cancelled as error:
        ...         print(error)
        the answer was cancelled after 0 tokens
    """

    exit_code = 130


class MissingDependency(EdgetuneError):
    """Something has to be installed first; `hint` holds the command.

    Examples:
        >>> from edgetune_runtime import MissingDependency
        >>> MissingDependency("onnxruntime is not installed", hint="pip install onnxruntime").exit_code
        3
    """

    exit_code = 3


def install_command(extra: str, of: str = "edgetune") -> str:
    """Return the command that adds an extra to an installed distribution, from where that came from.

    A distribution that was installed from a clone, a wheel or a repository gets its extra from there; one that came
    from a package index, or is not installed, by its name.

    Args:
        extra: the extra's name, such as "train".
        of: "edgetune" or "edgetune-runtime".
    """
    import json
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(metadata.distribution(of).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    url, vcs = origin.get("url", ""), origin.get("vcs_info")
    if url.startswith("file:"):
        editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
        return f'pip install {editable}"{url2pathname(urlsplit(url).path)}[{extra}]"'
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    if "subdirectory" in origin:
        url += f"#subdirectory={origin['subdirectory']}"
    return f'pip install "{of}[{extra}]{" @ " if url else ""}{url}"'


def excerpt(value: Any, most: int = 200) -> str:
    """Return a value as an error message quotes it: its repr, cut short where it is longer than `most` characters.

    Whatever the value, little of it is looked at, so a picture as text or a list of a million boxes costs nothing.

    >>> excerpt([1.5, "a"])
    "[1.5, 'a']"
    >>> len(excerpt("A" * 20_000))
    100
    """
    return shortened(_EXCERPT.repr(value), most)


def shortened(text: str, most: int) -> str:
    """Return a text, its middle replaced by "…" where it has more than `most` characters."""
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def not_utf8(text: str) -> str | None:
    """Return what keeps a text from being written as UTF-8, for a message, or None.

    Half of a surrogate pair does: JSON can spell one, and Python makes one of each byte of an argument or a file name
    that is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{text[error.start]!a}, which is no character of UTF-8"
    return None


class _Excerpt(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 4, 8, 8, 8
        self.maxstring = self.maxother = self.maxlong = 100

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out a whole number of thousands of digits."""
        return repr(x) if x.bit_length() < 200 else f"<a whole number of {x.bit_length()} bits>"


_EXCERPT = _Excerpt()

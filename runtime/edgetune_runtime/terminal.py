r"""The one place that prints: what data files, folders and models say reaches a terminal as text and nothing else.

Control characters, which move a cursor or write a clipboard, marks that reverse the order of letters, and whatever
the terminal's encoding lacks are printed as `\uXXXX`. That is also how JSON spells them, so a JSON document stays one.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from typing import TextIO

# C0 but tab and line feed, C1, the marks that turn the direction of writing, line separators, halves of pairs
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""Return a text that a terminal of this encoding shows and does not obey.

    >>> printable("a\x1b[2Jb")
    'a\\u001b[2Jb'
    >>> printable("Tür", "ascii")
    'T\\u00fcr'
    """
    text = _CONTROL.sub(lambda found: _spelled(found[0]), text)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(letter if _fits(letter, encoding) else _spelled(letter) for letter in text)
    return text


def count(text: str) -> int:
    """Read a number of a command line that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1 on.
    """
    from argparse import ArgumentTypeError  # which only command lines of the runtime need

    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def say(text: str = "", *, error: bool = False) -> None:
    """Print a line to standard output, or to standard error; nothing where that is closed.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        stream.write(printable(text, stream.encoding) + "\n")
        stream.flush()


def report(message: str, hint: str | None = None) -> None:
    """Print an error, and how to mend it, to standard error; silence where that is gone."""
    try:
        say(f"error: {' '.join(message.split())}", error=True)
        if hint:
            say(f"hint: {' '.join(hint.split())}", error=True)
    except (OSError, ValueError):
        drop(sys.stderr)


def prepare() -> None:
    """Make a process safe to print from; for the start of a program.

    A standard stream that its parent closed is opened on nothing, or the next file that is opened would take its
    number and receive what libraries print. A warning is one line, escaped like all others.
    """
    for _ in filter(_is_closed, (0, 1, 2)):
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    warnings.showwarning = _show_warning


def finish(code: int) -> int:
    """Flush standard output at the end of a program and return its exit code: 1 in place of 0 when nobody read it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        drop(sys.stdout)
        if error.errno not in (errno.EPIPE, errno.EBADF):
            report(f"standard output: {error.strerror}")
        return code or 1
    return code


def drop(stream: TextIO | None) -> None:
    """Lead a stream that cannot be written to nowhere, or Python would complain of it once more when it ends."""
    try:
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # it has no file
        pass


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    say(f"warning: {' '.join(str(message).split())}", error=True)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _fits(letter: str, encoding: str | None) -> bool:
    try:
        letter.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _spelled(letter: str) -> str:
    """A character as JSON spells it; what lies beyond 16 bits takes a pair."""
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))

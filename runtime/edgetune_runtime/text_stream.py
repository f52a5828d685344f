"""The text of a growing list of tokens, piece by piece, in time in proportion to the tokens."""

from __future__ import annotations

from collections.abc import Callable

_UNKNOWN = "\ufffd"  # what decoders write for bytes that are no whole character (yet)
_LONGEST_WAIT = 32
"""Tokens after which a character is no longer expected to be completed."""


class TextStream:
    """Turns tokens, one after the other, into pieces of text that add up to the whole.

    What a token says depends on the tokens before it: a character may take several of them, and some tokenizers write
    the first word of a text in another way than the next. So the tokens of the latest piece are decoded again with each
    new one, and no others.

    Args:
        decode: turns token ids into text.
        prefix: of one token at most, which the text may begin with and does without.

    Attributes:
        length: characters of the text so far; a character whose bytes are still incomplete counts as the decoder
            shows it.
    """

    def __init__(self, decode: Callable[[list[int]], str], prefix: str = "") -> None:
        self.length = 0
        self._decode = decode
        self._prefix = prefix
        self._cut: int | None = None  # characters that were left out, once that is known
        self._window: list[int] = []
        self._known = 0  # characters of the window's text that were returned
        self._held = 0  # tokens at the window's end whose text was not
        self._returned = 0

    def push(self, token: int) -> str:
        """Take a token; return the new text, which is empty while a character's bytes are still incomplete."""
        self._window.append(token)
        self._held += 1
        text = self._decode(self._window)
        cut = len(self._prefix) if text.startswith(self._prefix) else 0
        self.length = self._returned + max(len(text) - self._known, 0) - (cut if self._cut is None else self._cut)
        if text.endswith(_UNKNOWN) and self._held < _LONGEST_WAIT:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """Return what was held back."""
        return self._take(self._decode(self._window))

    def _take(self, text: str) -> str:
        """Return the window's new text, and let the window begin with the tokens that wrote it."""
        piece = text[self._known :]
        self._returned += len(piece)
        if self._cut is None and text:
            self._cut = len(self._prefix) if piece.startswith(self._prefix) else 0
            piece = piece[self._cut :]
        latest = self._window[len(self._window) - self._held :]
        said = self._decode(latest)
        if said or len(self._window) > _LONGEST_WAIT:  # tokens without text do not tell how the next one is written
            self._window, self._known = latest, len(said)
        else:
            self._known = len(text)
        self._held = 0
        return piece

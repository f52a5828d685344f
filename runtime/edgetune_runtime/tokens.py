"""Text to token ids and back: the bundle's tokenizer, and the prompt put together from the family's pieces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgetune_runtime.chat import Chat
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.images.base import Pieces


class TextTokenizer:
    """A tokenizer.json file.

    Raises:
        BundleError: the file is missing or is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BundleError(f"{path}: the tokenizer file is missing")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a broken file
            raise BundleError(f"{path}: not a tokenizer: {error}") from error
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._control = tuple(token.content for token in added if token.special)
        self._before: tuple[str, list[int]] = ("", [])  # what stood before the last text, and its tokens
        self._pieces: dict[int, str] = {}
        self._anchor: list[int] | None = None  # a token that others are read behind
        self._anchored = ""

    @property
    def control(self) -> tuple[str, ...]:
        """The control tokens, as text."""
        return self._control

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The control tokens' ids."""
        return frozenset(number for token in self._control if (number := self.id_of(token)) is not None)

    def encode(self, text: str, *, after: str = "") -> list[int]:
        """Token ids of text, control tokens such as `<|im_end|>` included where the text spells them.

        Args:
            text: what to tokenize.
            after: text that stands before it and whose last token is never joined with it. Some tokenizers write the
                beginning of a text in another way than the same words further on (Llama's puts a space there).

        Raises:
            InputError: the text holds half of a character (a lone surrogate), which no tokenizer knows.
        """
        return self.encode_with_spans(text, after=after)[0]

    def encode_with_spans(self, text: str, *, after: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of text as `encode` gives them, and where each stands in it: start and end in characters."""
        _refuse_halves(text)
        encoding = self._tokenizer.encode(after + text, add_special_tokens=False)
        if after != self._before[0]:
            self._before = after, self._tokenizer.encode(after, add_special_tokens=False).ids
        head = self._before[1]
        if encoding.ids[: len(head)] != head:
            return self.encode_with_spans(text)
        spans = [(start - len(after), end - len(after)) for start, end in encoding.offsets[len(head) :]]
        return encoding.ids[len(head) :], spans

    def id_of(self, token: str) -> int | None:
        """Id of the token that is spelled so in the vocabulary, None if there is none."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, ids: list[int], *, keep_control: bool = False) -> str:
        """Text of token ids, without control tokens unless they are to be kept."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not keep_control)
        return text

    def piece(self, token: int) -> str:
        """Text of one token as it stands in the middle of a text, control tokens' own included."""
        if token not in self._pieces:
            if self._anchor is None:
                self._anchor = self.encode("a")[-1:]
                self._anchored = self.decode(self._anchor, keep_control=True)
            said = self.decode([*self._anchor, token], keep_control=True)
            self._pieces[token] = said.removeprefix(self._anchored)
        return self._pieces[token]

    def refuse_control(self, text: str, *, allowed: Collection[str] = ()) -> None:
        """Check words that become part of a prompt.

        Args:
            text: the words.
            allowed: control tokens that they may hold, such as the family's tags around names.

        Raises:
            InputError: they spell a control token, which would end or forge a turn, or cannot be encoded.
        """
        _refuse_halves(text)
        for control in self._control:
            if control in text and control not in allowed:
                raise InputError(f"the text contains the control token {control!r}", hint="remove it from the text")

    def prompt(
        self,
        chat: Chat,
        text: str,
        *,
        image_tokens: int | Pieces,
        image_token: int,
        allowed: Collection[str] = (),
    ) -> npt.NDArray[np.int64]:
        """Token ids int64 [S] of a prompt with one image.

        Args:
            chat: the prompt's pieces.
            text: the user's words.
            image_tokens: what stands for the image (see `preprocessing.Plan`), or its number of tokens; 0 for none.
            image_token: id of the image token.
            allowed: see `refuse_control`.

        Raises:
            InputError: the user's text spells a control token, which would end or forge a turn, or cannot be encoded.
        """
        self.refuse_control(text, allowed=allowed)
        pieces = (image_tokens,) if isinstance(image_tokens, int) else image_tokens
        runs = [piece for piece in pieces if isinstance(piece, int) and piece]
        rendered = chat.render(text, 0)
        if runs:
            image = "".join(piece if isinstance(piece, str) else chat.image_token for piece in pieces)
            rendered = chat.prefix + chat.before_image + image + chat.after_image + text + chat.last_suffix
        begin = self.encode(chat.begin) if chat.begin else []
        return np.array([*begin, *expand(self.encode(rendered), image_token, runs)], np.int64)


def _refuse_halves(text: str) -> None:
    """Raise `InputError` where a text holds half of a character (a lone surrogate), which no tokenizer knows."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        what = ascii(text[error.start])
        raise InputError(
            f"the text cannot be written as UTF-8: its character {error.start + 1} is {what}, half of a character",
            hint="a terminal or a file in another encoding leaves such halves: give the text in UTF-8",
        ) from error


def expand(ids: Sequence[int], image_token: int, runs: Sequence[int]) -> list[int]:
    """Return token ids with the k-th image token repeated `runs[k]` times.

    Raises:
        InputError: there are more or fewer image tokens than runs.
    """
    if ids.count(image_token) != len(runs):
        raise InputError(f"{ids.count(image_token)} image tokens stand for {len(runs)} pieces of an image")
    left = iter(runs)
    return [token for token in ids for _ in range(next(left) if token == image_token else 1)]

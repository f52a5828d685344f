"""From records to token sequences: what training learns from and calibration looks at.

A question is `prompt + answer + end`; a conversation goes on from there. Prompts are rendered and tokenized exactly as
at inference; boxes are written by the codec in the frame of the resized image that the model sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_runtime.codec import grammar, grounding
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family
from edgetune_runtime.images.base import ImagePlan, Preprocessing
from edgetune_runtime.images.load import upright_size
from edgetune_runtime.records import AnyRecord, Record
from edgetune_runtime.records.dialogue import Dialogue, Name, Part, Picture, Place, Turn
from edgetune_runtime.tokens import TextTokenizer, expand


@dataclass(frozen=True)
class Sample:
    """One record or dialogue as S tokens.

    Attributes:
        record: where it came from.
        geometries: sizes of each image, as it is and as the model sees it.
        ids: S token ids, one for each image token included.
        learned: S flags: whether the model learns to say the token.
        said: S flags: whether the assistant says it, learned or not; the token that ends an answer is said, too.
    """

    record: AnyRecord
    geometries: tuple[Geometry, ...]
    ids: list[int]
    learned: list[bool]
    said: list[bool]

    @property
    def images(self) -> tuple[Path, ...]:
        """Paths of the images, in the order of their tokens."""
        return self.record.images

    @property
    def geometry(self) -> Geometry:
        """Sizes of the only image of a question."""
        return self.geometries[0]

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids up to where the first learned answer starts."""
        return self.ids[: self.learned.index(True)]

    @property
    def answer_ids(self) -> list[int]:
        """Token ids from there on: of a question, its answer and the token that ends it."""
        return self.ids[self.learned.index(True) :]

    @property
    def last_prompt_ids(self) -> list[int]:
        """Token ids up to where the last answer starts, which ends the conversation."""
        return self.ids[: len(self.said) - self.said[::-1].index(False)]


def answer(record: Record, geometry: Geometry, family: Family) -> str:
    """Return the text that the model should answer with, without the end token.

    Args:
        record: boxes are in pixels of the original image.
        geometry: sizes of the original image and of the model's input.
        family: how boxes are written.

    Raises:
        InputError: a box cannot be written, or the record has no answer.
    """
    if record.boxes is not None:
        return grounding.encode(record.boxes, record.labels, geometry, family.box_format)
    if record.answer is None:
        raise InputError("the record has no answer")
    return record.answer


def prepare(
    entries: Iterable[AnyRecord], family: Family, spec: Preprocessing, tokenizer: TextTokenizer
) -> list[Sample]:
    """Return records and dialogues as samples. Only the images' headers are read.

    Args:
        entries: about any number of images.
        family: the model's, for prompt and boxes.
        spec: the checkpoint's image preprocessing.
        tokenizer: the checkpoint's.

    Raises:
        InputError: a box cannot be written, a text holds control tokens, or the family has no system turn; the
            message starts with the record's file and line.
    """
    samples = []
    for entry in entries:
        try:
            plans = [spec.plan(*upright_size(path)) for path in entry.images]
            geometries = tuple(plan.geometry for plan in plans)
            script = _Script(family, tokenizer, plans)
            turns = entry.turns if isinstance(entry, Dialogue) else _question(entry, geometries[0], family)
            script.write(turns)
        except InputError as error:
            raise InputError(f"{entry.source}: {error}", hint=error.hint) from error
        samples.append(Sample(entry, geometries, script.ids, script.learned, script.said))
    return samples


def token_id(tokenizer: TextTokenizer, token: str) -> int:
    """Return the id of a control token.

    Raises:
        InputError: the tokenizer does not have it.
    """
    ids = tokenizer.encode(token)
    if len(ids) != 1:
        raise InputError(f"the tokenizer has no token {token!r}", hint="is it the tokenizer of this checkpoint?")
    return ids[0]


def stop_ids(tokenizer: TextTokenizer, family: Family) -> list[int]:
    """Return the ids of the tokens that end an answer. Not every checkpoint of a family has all of them.

    Raises:
        InputError: the tokenizer lacks the one that the family's own template writes.
    """
    others = [token for token in family.stop_tokens if token in tokenizer.control and token != family.chat.end]
    return [token_id(tokenizer, token) for token in (family.chat.end, *others)]


def _question(record: Record, geometry: Geometry, family: Family) -> tuple[Turn, Turn]:
    asked = Turn("user", (Picture(0), record.prompt(family)), learned=False)
    return asked, Turn("assistant", (answer(record, geometry, family),), learned=True)


class _Script:
    """Writes turns as tokens: text is collected until an answer cuts it, then tokenized in one piece.

    An answer is tokenized apart from the prompt before it: the model meets its first token after the prompt's last
    one, never joined to it.
    """

    def __init__(self, family: Family, tokenizer: TextTokenizer, plans: Sequence[ImagePlan]) -> None:
        self.ids: list[int] = []
        self.learned: list[bool] = []
        self.said: list[bool] = []
        self._family, self._tokenizer, self._plans = family, tokenizer, plans
        self._image_id = token_id(tokenizer, family.chat.image_token)
        self._end_id = token_id(tokenizer, family.chat.end)
        self._text = ""
        self._runs: list[int] = []  # how many tokens each image placeholder in the text stands for
        self._context = ""  # what the model has read before the text

    def write(self, turns: Sequence[Turn]) -> None:
        """Write a whole conversation."""
        chat = self._family.chat
        if chat.begin:
            self._add(self._tokenizer.encode(chat.begin))
        first, *rest = turns
        if first.role == "system":
            if not chat.system:
                raise InputError(f"{self._family.title} has no system turn", hint="put its words into the user's turn")
            self._text = chat.system.replace("{text}", self._said(first.parts)) + chat.user
        else:
            self._text = chat.prefix
            rest = [first, *rest]
        for number, turn in enumerate(rest):
            if turn.role == "assistant":
                self._answer(turn)
                continue
            if number:
                self._text += chat.between + chat.user
            self._ask(turn.parts)
            is_last = not any(later.role == "assistant" for later in rest[number + 2 :])
            self._text += chat.last_suffix if is_last else chat.suffix

    def _ask(self, parts: Sequence[Part]) -> None:
        chat = self._family.chat
        if not (parts and isinstance(parts[0], Picture)):
            self._text += chat.before_text
        for part in parts:
            if not isinstance(part, Picture):
                self._text += self._said([part])
                continue
            pieces = self._plans[part.index].pieces
            image_text = "".join(piece if isinstance(piece, str) else chat.image_token for piece in pieces)
            self._runs += [piece for piece in pieces if isinstance(piece, int)]
            self._text += chat.before_image + image_text + chat.after_image

    def _answer(self, turn: Turn) -> None:
        self._flush()
        chat = self._family.chat
        said = chat.before_answer + "".join(map(self._part, turn.parts))
        ids = self._tokenizer.encode(said, after=self._context)
        if {self._end_id, self._image_id} & set(ids):
            raise InputError(f"the answer holds {chat.end!r} or {chat.image_token!r}")
        self._add([*ids, self._end_id], learned=turn.learned, said=True)
        self._context = chat.end

    def _said(self, parts: Sequence[Part]) -> str:
        """Return what a user or system turn says; only the codec may write control tokens."""
        for part in parts:
            if isinstance(part, str | Name):
                self._tokenizer.refuse_control(
                    part if isinstance(part, str) else part.text, allowed=grammar.tags(self._family.box_format.style)
                )
        return "".join(map(self._part, parts))

    def _part(self, part: Part) -> str:
        if isinstance(part, Place):
            return grounding.encode_place(part.numbers, self._plans[part.image].geometry, self._family.box_format)
        if isinstance(part, Name):
            return grounding.encode_name(part.text, self._family.box_format)
        assert isinstance(part, str)
        return part

    def _flush(self) -> None:
        if self._text:
            ids = self._tokenizer.encode(self._text, after=self._context)
            self._add(expand(ids, self._image_id, self._runs))
            self._context = self._text
        self._text, self._runs = "", []

    def _add(self, ids: Sequence[int], *, learned: bool = False, said: bool = False) -> None:
        self.ids += ids
        self.learned += [learned] * len(ids)
        self.said += [said] * len(ids)

"""From records to token sequences: what training learns from and calibration looks at.

A sequence is `prompt + answer + end`. The prompt is rendered and tokenized exactly as at inference; box answers are
written by the codec in the frame of the resized image that the model sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgetune_runtime import grounding, image
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family
from edgetune_runtime.records import Record
from edgetune_runtime.tokens import TextTokenizer


@dataclass(frozen=True)
class Sample:
    """One record as tokens.

    Attributes:
        record: where it came from.
        geometry: sizes of the image, as it is and as the model sees it.
        prompt_ids: token ids up to where the answer starts, one id per image token included.
        answer_ids: token ids of the answer and of the token that ends it.
    """

    record: Record
    geometry: image.Geometry
    prompt_ids: list[int]
    answer_ids: list[int]


def answer(record: Record, geometry: image.Geometry, family: Family) -> str:
    """Return the text that the model should answer with, without the end token.

    Args:
        record: boxes are in pixels of the original image.
        geometry: sizes of the original image and of the model's input.
        family: how boxes are written.

    Raises:
        InputError: a box cannot be written, or the record has no answer.
    """
    if record.boxes is not None:
        return grounding.encode(record.boxes, record.labels, geometry, family)
    if record.answer is None:
        raise InputError("the record has no answer")
    return record.answer


def prepare(records: Iterable[Record], family: Family, spec: image.ImageSpec, tokenizer: TextTokenizer) -> list[Sample]:
    """Return the records as samples. Only the images' headers are read.

    Args:
        records: about any number of images.
        family: the model's, for prompt and boxes.
        spec: the checkpoint's image preprocessing.
        tokenizer: the checkpoint's.

    Raises:
        InputError: a box cannot be written or a text holds control tokens; the message starts with the record's
            file and line.
    """
    chat = family.chat
    image_id, end_id = token_id(tokenizer, chat.image_token), token_id(tokenizer, chat.end)
    samples = []
    for record in records:
        try:
            geometry = image.geometry_of(*image.upright_size(record.image), spec)
            tokens = geometry.resized_width * geometry.resized_height // spec.factor**2
            prompt = tokenizer.prompt(chat, record.prompt(family), image_tokens=tokens, image_token=image_id)
            # Apart from the prompt: the model meets the answer's first token after the prompt's last one, never
            # joined to it.
            answer_ids = tokenizer.encode(answer(record, geometry, family))
        except InputError as error:
            raise InputError(f"{record.source}: {error}", hint=error.hint) from error
        if {end_id, image_id} & set(answer_ids):
            raise InputError(f"{record.source}: the answer holds {chat.end!r} or {chat.image_token!r}")
        samples.append(Sample(record, geometry, prompt.tolist(), [*answer_ids, end_id]))
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

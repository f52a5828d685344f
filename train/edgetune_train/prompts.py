"""TRL's view of our samples: a processor whose prompts and pictures are the ones that inference uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample
from edgetune_runtime.errors import InputError
from edgetune_train.batch import Collator

_KINDS = "mm_token_type_ids"
_DIVISIBLE = {"pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask"}
"""What TRL knows how to divide among the answers of a batch, of what models take of images."""


class SamplePrompts(ProcessorMixin):
    """A processor for TRL that renders no template and resizes no image.

    TRL hands a processor the messages and images of a data set and never looks into an image. Here an "image" is the
    number of a sample, and what comes back is that sample: its prompt's tokens and its preprocessed picture, exactly
    as at inference.

    Args:
        base: for its tokenizer.
        samples: what the numbers stand for.
        collate: gives the pictures.

    Raises:
        InputError: the family's models take something of images that TRL does not know.
    """

    def __init__(self, base: HubCheckpoint, samples: Sequence[Sample], collate: Collator) -> None:
        # The mixin's own constructor would want the parts of a Hugging Face processor.
        special = base.family.special_tokens
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(base.folder / "tokenizer.json"),
            eos_token=base.family.chat.end,
            pad_token=special["pad"],
        )
        self.chat_template = None
        self._title = base.family.title
        self._samples = samples
        self._collate = collate
        self._pictures([samples[0]] * 2)  # an early look at what TRL will have to divide

    def dataset(self, words: Sequence[str]) -> Dataset:
        """Return a data set for `GRPOTrainer`: each sample's prompt in words, for its logs, and its number."""
        turns = [[{"role": "user", "content": text}] for text in words]
        return Dataset.from_dict({"prompt": turns, "image": list(range(len(turns)))})

    def apply_chat_template(self, conversation: Any, *_: Any, tokenize: bool = False, **__: Any) -> Any:
        """Return what `generate` takes, token ids as lists without padding; or the words of one conversation."""
        if not tokenize:
            return "".join(part.get("text", "") for turn in conversation for part in turn["content"])
        samples = [self._samples[number] for number in _numbers(conversation)]
        ids = [sample.prompt_ids for sample in samples]
        kinds = [[int(token == self._collate.image_id) for token in row] for row in ids]
        return {"input_ids": ids, **({_KINDS: kinds} if self._collate.typed_tokens else {}), **self._pictures(samples)}

    def __call__(self, images: Any = None, *_: Any, **__: Any) -> Any:
        """Return what the model takes beside the token ids of the prompts, padded on the left: of lists of numbers."""
        samples = [self._samples[number] for row in images for number in row]
        batch = self._collate.prompts(samples)
        return {name: batch[name] for name in batch if name == _KINDS} | dict(self._pictures(samples))

    def image_processor(self, images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        """Return how many tiles each image has, which is what TRL asks an image processor."""
        pictures = [self._pictures([self._samples[number]]) for row in images for number in row]
        return {"num_patches": torch.tensor([len(picture["pixel_values"]) for picture in pictures])}

    def batch_decode(self, rows: Any, *_: Any, **__: Any) -> list[str]:
        """Return the texts of answers, without control tokens."""
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **_: Any) -> Any:
        """Write nothing: the base has its own files."""
        return []

    def _pictures(self, samples: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        pictures = self._collate.images([path for sample in samples for path in sample.images])
        if len(pictures["pixel_values"]) == 1 < len(samples):
            # The tiles of all images are one row, and TRL divides rows. So each image gets one, filled up with empty
            # tiles as transformers' processor does; the models leave those out.
            rows = [self._collate.images(sample.images)["pixel_values"][0] for sample in samples]
            pictures = {**pictures, "pixel_values": pad_sequence(rows, batch_first=True)}
        if not set(pictures) <= _DIVISIBLE:
            raise InputError(f"grpo: TRL cannot divide the images of {self._title} among answers", hint="use train")
        return pictures


def _numbers(conversations: Sequence[Any]) -> list[int]:
    """Return the number of each conversation's sample."""
    parts = (part for turns in conversations for turn in turns for part in turn["content"])
    return [part["image"] for part in parts if part["type"] == "image"]

"""Proof that a merged checkpoint answers as its base with the adapter does, on prompts with and without an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import token_id
from edgetune_core.streaming import StreamedModel
from edgetune_runtime.codec import grammar, grounding
from edgetune_runtime.errors import ParityError

_SIZES = ((320, 240), (200, 280))  # width, height in pixels of the test pictures
_PHRASES = ("the red square", "the largest object on the left")
_QUESTION = "What is in the picture? Answer in one sentence."
_POSITIONS = 48  # logits compared per prompt: its last tokens and the whole answer

EXACT = 1e-3
"""Largest error of the merge in float32, as a fraction of the adapter's effect."""
FLOAT_NOISE = 3e-6
"""What float32 itself may add to that, as a fraction of the logits' size: it matters for weak adapters only."""
ROUNDED = 0.5
"""Largest error after rounding to the base's dtype: beyond it, the rounding has undone the adapter."""
BAD_NUMBERS = "train the adapter again; a base whose own weights are not finite gives such an adapter, too"
NOISE = 1e-5
"""An adapter that moves the logits by less than this fraction of their size changes nothing."""


@dataclass(frozen=True)
class Proof:
    """Root mean squares over the compared logits, and how often the greedy token agrees.

    Attributes:
        prompts: how many prompts were compared.
        effect: adapter active against base.
        merge_error: merged in float32 against adapter active, as a fraction of `effect`.
        written_error: the written checkpoint, loaded again, against adapter active, as a fraction of `effect`.
        same_token: share of positions where the written checkpoint and the active adapter agree on the next token.
    """

    prompts: int
    effect: float
    merge_error: float
    written_error: float
    same_token: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def proof_inputs(base: HubCheckpoint) -> list[dict[str, Any]]:
    """Return the model's keyword arguments for each prompt: grounding requests with their answers, and a text."""
    inputs = []
    for (width, height), phrase in zip(_SIZES, _PHRASES, strict=True):
        box = np.array([[0.2 * width, 0.25 * height, 0.6 * width, 0.8 * height]])
        answer = grounding.encode(box, [phrase], base.spec.plan(width, height).geometry, base.family.box_format)
        inputs.append(_one(base, base.family.ground_prompt.format(phrase=phrase), answer, _picture(width, height)))
    inputs.append(_one(base, _QUESTION, "A picture.", None))
    return inputs


def logits(streamed: StreamedModel, inputs: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Return float32 logits [positions, vocabulary] of the last positions of each prompt; each block is read once."""

    def answer(one: dict[str, Any]) -> torch.Tensor:
        result: torch.Tensor = streamed.model(**one, logits_to_keep=_POSITIONS).logits[0].float()
        return result

    return streamed.run_together([partial(answer, one) for one in inputs])


def compare(
    base: Sequence[torch.Tensor],
    active: Sequence[torch.Tensor],
    merged: Sequence[torch.Tensor],
    written: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> Proof:
    """Return the proof, from logits of the four models on the same prompts.

    Args:
        base: of the base alone.
        active: of the base with the adapter active.
        merged: of the merged weights in float32.
        written: of the checkpoint that was written, in `dtype`.
        dtype: of the merged tensors on disk.

    Raises:
        ParityError: the adapter changes nothing, or a merged model does not answer as the active adapter does.
    """
    plain, truth, exact, final = (torch.cat(list(parts)) for parts in (base, active, merged, written))
    effect = _rms(truth - plain)
    if not math.isfinite(effect):
        raise ParityError("the base with the adapter answers with logits that are not finite", hint=BAD_NUMBERS)
    if not effect > NOISE * _rms(plain):
        raise ParityError(
            f"the adapter changes nothing: logits move by {effect:.1e} where they are {_rms(plain):.1e} large",
            hint="was it trained, and is this the right folder?",
        )
    proof = Proof(
        prompts=len(base),
        effect=effect,
        merge_error=_rms(exact - truth) / effect,
        written_error=_rms(final - truth) / effect,
        same_token=float((final.argmax(-1) == truth.argmax(-1)).float().mean()),
    )
    exactly = max(EXACT, FLOAT_NOISE * _rms(plain) / effect)
    if not proof.merge_error <= exactly:
        raise ParityError(
            f"the merged weights do not answer as the adapter does: off by {proof.merge_error:.1e} of its effect, "
            f"allowed {exactly:.1e}"
        )
    allowed = exactly if dtype == torch.float32 else ROUNDED
    if not proof.written_error <= allowed:
        if dtype == torch.float32:
            raise ParityError(
                f"the checkpoint written in float32 is off by {proof.written_error:.1e} of the adapter's effect, "
                f"allowed {allowed:.1e}"
            )
        name = str(dtype).removeprefix("torch.")
        raise ParityError(
            f"{name} rounding loses {proof.written_error:.0%} of the adapter's effect, allowed {allowed:.0%}",
            hint="the adapter is too small for this dtype: train with more --epochs or a higher --learning-rate",
        )
    return proof


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _picture(width: int, height: int) -> Image.Image:
    """Return a picture with smooth and sharp parts: a colour gradient, a red square, noise in a corner."""
    x = np.linspace(0, 255, width)[None, :, None]
    y = np.linspace(0, 255, height)[:, None, None]
    rgb = np.concatenate([x + 0 * y, 0 * x + y, 255 - (x + y) / 2], axis=2)
    rgb[height // 4 : height // 2, width // 5 : width // 2] = (220, 30, 30)
    noise = np.random.default_rng(0).uniform(0, 255, (height // 3, width // 3, 3))
    rgb[-noise.shape[0] :, -noise.shape[1] :] = noise
    return Image.fromarray(rgb.astype(np.uint8))


def _one(base: HubCheckpoint, text: str, answer: str, picture: Image.Image | None) -> dict[str, Any]:
    """Return the keyword arguments of one prompt followed by an answer."""
    chat, tokenizer = base.family.chat, base.tokenizer
    image_id = token_id(tokenizer, chat.image_token)
    pieces = base.spec.plan(*picture.size).pieces if picture else 0
    allowed = grammar.tags(base.family.box_format.style)
    prompt = tokenizer.prompt(chat, text, image_tokens=pieces, image_token=image_id, allowed=allowed).tolist()
    ids = torch.tensor([prompt + tokenizer.encode(chat.before_answer + answer + chat.end, after=chat.last_suffix)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if picture is None:
        return inputs
    if base.spec.typed_tokens:
        inputs["mm_token_type_ids"] = (ids == image_id).long()
    arrays = base.spec.join([base.spec.arrays(picture)])
    return inputs | {name: torch.from_numpy(array) for name, array in arrays.items()}

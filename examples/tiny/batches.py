"""Batches for the base training: layouts and tokens from worker processes, pixels drawn on the training device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

import render
import scenes
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import encode
from edgetune_runtime.families import get_family
from edgetune_runtime.images.smart import smart_resize

SLOTS, SLOT, LENGTH = 4, 72, 360  # queries to an image, tokens of each, tokens of the whole sequence
IMAGE_AT = 4  # <|im_start|> user \n <|vision_start|>
FAMILY = get_family("qwen3_vl")
TARGETS = [  # model input of every canvas, width x height
    smart_resize(h, w, factor=32, min_pixels=49152, max_pixels=65536)[::-1] for w, h in scenes.CANVASES
]


Batch = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Layouts(torch.utils.data.IterableDataset[Batch]):
    """Endless batches (canvas, things, photos, queries) as arrays; every worker draws from its own seed.

    queries: tokens int16 [B, SLOTS, SLOT] and answer start and end int16 [B, SLOTS, 2] within a slot.
    """

    def __init__(self, model: Path, batch: int, seed: int, photos: list[int], kinds: list[int]) -> None:
        self.model, self.batch, self.seed, self.photos, self.kinds = model, batch, seed, photos, kinds

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}:{worker.id if worker else 0}")
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        while True:
            canvas = rng.randrange(len(scenes.CANVASES))
            drawn = [scenes.draw_scene(rng, self.photos, self.kinds, canvas) for _ in range(self.batch)]
            asked = [ask(rng, scene, self.kinds) for scene in drawn]
            tokens, spans = tokenise(tokenizer, canvas, asked)
            yield canvas, *render.pack(drawn), tokens, spans


def ask(rng: random.Random, scene: scenes.Scene, kinds: list[int]) -> list[scenes.Query]:
    """SLOTS queries about a scene; the last is a question half of the time."""
    queries = [scenes.draw_phrase(rng, scene, kinds) for _ in range(SLOTS)]
    if rng.random() < 0.5:
        queries[-1] = scenes.draw_question(rng, scene, kinds)
    return queries


def tokenise(tokenizer: Tokenizer, canvas: int, asked: list[list[scenes.Query]]) -> tuple[np.ndarray, np.ndarray]:
    """Queries as tokens; raises ValueError when one does not fit its slot."""
    width, height = scenes.CANVASES[canvas]
    geometry = Geometry(width, height, *TARGETS[canvas])
    prompts, answers = [], []
    for query in (query for queries in asked for query in queries):
        if query.kind == scenes.GROUND:
            text = FAMILY.ground_prompt.format(phrase=query.text)
            answer = encode(query.boxes, [query.text] * len(query.boxes), geometry, FAMILY.box_format)
        else:
            text, answer = query.text, query.answer or ""
        prompts.append(text + FAMILY.chat.suffix)
        answers.append(answer + FAMILY.chat.end)
    tokens = np.zeros((len(prompts), SLOT), np.int16)
    spans = np.zeros((len(prompts), 2), np.int16)
    heads, tails = tokenizer.encode_batch(prompts), tokenizer.encode_batch(answers)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids = head.ids + tail.ids
        if len(ids) > SLOT:
            raise ValueError(f"{prompts[row]!r} + {answers[row]!r} takes {len(ids)} tokens, a slot has {SLOT}")
        tokens[row, : len(ids)] = ids
        spans[row] = len(head.ids), len(ids)
    return tokens.reshape(-1, SLOTS, SLOT), spans.reshape(-1, SLOTS, 2)


def sequences(queries: Tensor, prefix: Tensor, image_tokens: int, image_id: int, after_id: int) -> Tensor:
    """Join prefix [IMAGE_AT], image placeholders, the token after them and queries to int64 [B, LENGTH]."""
    batch = len(queries)
    out = torch.zeros(batch, LENGTH, dtype=torch.long, device=queries.device)
    out[:, :IMAGE_AT] = prefix
    out[:, IMAGE_AT : IMAGE_AT + image_tokens] = image_id
    out[:, IMAGE_AT + image_tokens] = after_id
    start = IMAGE_AT + image_tokens + 1
    out[:, start : start + SLOTS * SLOT] = queries.reshape(batch, -1).long()
    return out


def cubic(size: int, target: int) -> Tensor:
    """Weights [target, size] of an antialiased bicubic resize as Pillow computes it (Keys 1981, a = -0.5)."""
    scale = max(size / target, 1.0)
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * size / target
    x = ((torch.arange(size) + 0.5)[None] - centre[:, None]).abs() / scale
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(1, keepdim=True)).float()


def resize(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize [B, H, W, 3] in 0..255 with weights [h, H] and [w, W]; rounded to whole values like a picture file."""
    wide = torch.einsum("wx,byxc->bywc", columns, pictures.round())
    return torch.einsum("hy,bywc->bhwc", rows, wide).round().clamp(0, 255)


def patchify(pictures: Tensor, order: Tensor) -> Tensor:
    """[B, H, W, 3] in 0..255 to normalised patches [B, N, 3*16*16] in merge order."""
    batch, height, width, _ = pictures.shape
    x = (pictures / 127.5 - 1).view(batch, height // 16, 16, width // 16, 16, 3)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, 768)[:, order]


def vary(pictures: Tensor) -> Tensor:
    """Small random changes of brightness, colour and noise, so that the model does not count on exact pixels."""
    shape = (len(pictures), 1, 1, 1)
    device = pictures.device
    gain = 0.75 + 0.45 * torch.rand(shape, device=device)
    colour = 0.92 + 0.16 * torch.rand((len(pictures), 1, 1, 3), device=device)
    noise = 5 * torch.rand(shape, device=device) * (torch.rand(shape, device=device) < 0.4)
    return (pictures * gain * colour + noise * torch.randn_like(pictures)).clamp(0, 255)

"""Batches for the base training: layouts and tokens from worker processes, pixels drawn on the training device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import render
import scenes
from blueprint import SLOT, SLOTS, Blueprint
from edgetune_runtime.codec.grounding import encode

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
        blueprint = Blueprint.open(self.model)
        while True:
            canvas = rng.randrange(len(scenes.CANVASES))
            drawn = [scenes.draw_scene(rng, self.photos, self.kinds, canvas) for _ in range(self.batch)]
            asked = [ask(rng, scene, self.kinds) for scene in drawn]
            tokens, spans = tokenise(blueprint, canvas, asked)
            yield canvas, *render.pack(drawn), tokens, spans


def ask(rng: random.Random, scene: scenes.Scene, kinds: list[int]) -> list[scenes.Query]:
    """SLOTS queries about a scene; the last is a question half of the time."""
    queries = [scenes.draw_phrase(rng, scene, kinds) for _ in range(SLOTS)]
    if rng.random() < 0.5:
        queries[-1] = scenes.draw_question(rng, scene, kinds)
    return queries


def tokenise(blueprint: Blueprint, canvas: int, asked: list[list[scenes.Query]]) -> tuple[np.ndarray, np.ndarray]:
    """Queries as tokens; raises ValueError when one does not fit its slot."""
    family, geometry = blueprint.family, blueprint.plan(canvas).geometry
    prompts, answers = [], []
    for query in (query for queries in asked for query in queries):
        if query.kind == scenes.GROUND:
            text = family.ground_prompt.format(phrase=query.text)
            answer = encode(query.boxes, [query.text] * len(query.boxes), geometry, family.box_format)
        else:
            text, answer = query.text, query.answer or ""
        prompts.append(text + family.chat.suffix)
        answers.append(answer + family.chat.end)
    tokens = np.zeros((len(prompts), SLOT), np.int16)
    spans = np.zeros((len(prompts), 2), np.int16)
    heads, tails = (blueprint.tokenizer.encode_batch(texts, add_special_tokens=False) for texts in (prompts, answers))
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        before = blueprint.lead + head.ids
        ids = before + tail.ids
        if len(ids) > SLOT:
            raise ValueError(f"{prompts[row]!r} + {answers[row]!r} takes {len(ids)} tokens, a slot has {SLOT}")
        tokens[row, : len(ids)] = ids
        spans[row] = len(before), len(ids)
    return tokens.reshape(-1, SLOTS, SLOT), spans.reshape(-1, SLOTS, 2)


def vary(pictures: Tensor) -> Tensor:
    """Small random changes of brightness, colour and noise, so that the model does not count on exact pixels."""
    shape = (len(pictures), 1, 1, 1)
    device = pictures.device
    gain = 0.75 + 0.45 * torch.rand(shape, device=device)
    colour = 0.92 + 0.16 * torch.rand((len(pictures), 1, 1, 3), device=device)
    noise = 5 * torch.rand(shape, device=device) * (torch.rand(shape, device=device) < 0.4)
    return (pictures * gain * colour + noise * torch.randn_like(pictures)).clamp(0, 255)

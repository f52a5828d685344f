"""How well the averaged weights ground phrases in the middle of training: greedy answers, many scenes at once."""

from __future__ import annotations

import random

import numpy as np
import torch

import batches as data
import render
import scenes
from blueprint import SLOT, SLOTS
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.codec.grounding import parse
from learner import Learner


@torch.no_grad()
def score(learner: Learner, count: int, seed: int, photos: list[int]) -> dict[str, float]:
    """Ask SLOTS phrases about each of `count` scenes of every canvas, on these photographs.

    Returns shares in 0-1, rounded to 4 places: acc@0.5, miou, refused (of the absent objects, if any), and acc@0.5 by
    the kind of phrase: plain (`the cactus`), twin (`the left clock`), relation (`the owl above the door`).
    """
    live = {name: p.detach().clone() for name, p in learner.net.named_parameters()}
    learner.load(learner.average)
    overlaps: dict[str, list[float]] = {}
    refusals: list[bool] = []
    rng = random.Random(seed)
    for canvas in range(len(scenes.CANVASES)):
        drawn = [scenes.draw_scene(rng, photos, scenes.KNOWN, canvas) for _ in range(count)]
        asked = [[scenes.draw_phrase(rng, s, scenes.KNOWN) for _ in range(SLOTS)] for s in drawn]
        geometry, box_format = learner.blueprint.plan(canvas).geometry, learner.blueprint.family.box_format
        answers = greedy(learner, canvas, drawn, asked)
        for query, text in zip((q for qs in asked for q in qs), answers, strict=True):
            answer = parse(text, geometry, box_format)
            if query.boxes:
                found = [detection.box for detection in answer.detections]
                overlaps.setdefault(_kind(query.text), []).append(sample_iou(found, query.boxes))
            else:
                refusals.append(answer.refused)
    learner.load(live)
    every = np.concatenate([np.array(v) for v in overlaps.values()])
    result = {"acc@0.5": (every >= 0.5).mean(), "miou": every.mean()}
    if refusals:
        result["refused"] = np.mean(refusals)
    result |= {f"acc@0.5 {kind}": (np.array(v) >= 0.5).mean() for kind, v in overlaps.items()}
    return {key: round(float(value), 4) for key, value in result.items()}


def _kind(phrase: str) -> str:
    if any(f" {word} " in phrase for word, _, _ in scenes.RELATIONS):
        return "relation"
    twin = any(word in ("left", "right", "upper", "lower", "larger", "smaller") for word in phrase.split())
    return "twin" if twin else "plain"


@torch.no_grad()
def greedy(learner: Learner, canvas: int, drawn: list[scenes.Scene], asked: list[list[scenes.Query]]) -> list[str]:
    """Answer SLOTS queries to each scene, all of one canvas; every step runs whole sequences, without a cache."""
    queries, spans = (torch.from_numpy(a).to(learner.device) for a in data.tokenise(learner.blueprint, canvas, asked))
    things, photos = (torch.from_numpy(a).to(learner.device) for a in render.pack(drawn))
    patches = learner.pixels(canvas, things, photos, vary=False)
    view = learner.views[canvas]
    sequence, where = view.sequences(queries), view.queries
    slots = sequence[:, where].reshape(len(drawn), SLOTS, SLOT).clone()
    cursor = spans[..., 0].long()
    slots.masked_fill_(torch.arange(SLOT, device=learner.device) >= cursor[..., None], 0)
    for _ in range(int((SLOT - cursor).min())):
        sequence[:, where] = slots.flatten(1)
        hidden = learner.hidden(canvas, patches, sequence).view(len(drawn), SLOTS, SLOT, -1)
        last = hidden.gather(2, (cursor - 1)[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))[:, :, 0]
        token = (last.float() @ learner.net.head.T).argmax(-1)
        slots.scatter_(2, cursor[..., None], token[..., None])
        cursor = cursor + 1
    end = learner.blueprint.end
    texts = []
    for ids, start in zip(slots.flatten(0, 1).tolist(), spans[..., 0].flatten().tolist(), strict=True):
        answer = ids[start:]
        answer = answer[: answer.index(end)] if end in answer else answer
        texts.append(learner.blueprint.tokenizer.decode(answer, skip_special_tokens=False))
    return texts

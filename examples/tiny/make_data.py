"""Write pictures and records of the tiny model's world, in the project's own record form.

Two domains: `base`, what the base model was trained on (other photographs, other seeds), and `night`, what it was not:
a dim, noisy, bluish camera, and 40 objects that it has never seen. Splits share no photograph and no seed.

Usage: `python make_data.py --output DIR [--domain night] [--train N] [--val N] [--test N] [--queries K]
[--questions Q] [--seed S]` writes DIR/{train,val,test}.jsonl and DIR/images; N counts scenes, K records to a scene. Up
to Q more records to a scene ask how many objects it has, what lies left of one (right, above, below), and what colour
one has; their `meta` says which.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import questions
import render
import scenes

QUESTIONS = 0.1  # share of records that are questions
BATCH = 8


def draw(split: str, domain: str, seed: int, count: int, queries: int) -> list[tuple[scenes.Scene, list[scenes.Query]]]:
    """Scenes and what is asked about them; the same arguments give the same scenes."""
    rng = random.Random(f"{domain}:{split}:{seed}")
    # At night every third object or so is one that the base model has never seen.
    kinds = scenes.KNOWN if domain == "base" else scenes.KNOWN + scenes.NOVEL * 5
    drawn = []
    for _ in range(count):
        scene = scenes.draw_scene(rng, scenes.PHOTOS_OF[split], kinds)
        asked: list[scenes.Query] = []
        while len(asked) < queries:
            question = rng.random() < QUESTIONS
            query = scenes.draw_question(rng, scene, kinds) if question else scenes.draw_phrase(rng, scene, kinds)
            if len(asked) == 0 or query.text not in [other.text for other in asked] or rng.random() < 0.1:
                asked.append(query)
        drawn.append((scene, asked))
    return drawn


def record(image: str, query: scenes.Query) -> dict[str, object]:
    """One line of the JSONL file."""
    if query.kind == scenes.VQA:
        return {"image": image, "question": query.text, "answer": query.answer}
    boxes = [[round(value, 1) for value in box] for box in query.boxes]
    return {"image": image, "text": query.text, "bbox": boxes[0] if boxes else []}


def question_record(image: str, question: questions.Question) -> dict[str, object]:
    """One line of the JSONL file."""
    return {
        "image": image,
        "question": question.text,
        "answer": question.answer,
        "meta": {"asks": question.asks},
    }


def write(
    assets: render.Assets,
    output: Path,
    split: str,
    domain: str,
    seed: int,
    count: int,
    queries: int,
    asked_more: int = 0,
) -> None:
    """Render one split and write its records."""
    drawn = draw(split, domain, seed, count, queries)
    # A generator of its own: the scenes are the same with and without.
    more = questions.choose([scene for scene, _ in drawn], asked_more, random.Random(f"{domain}:{split}:{seed}:more"))
    (output / "images").mkdir(parents=True, exist_ok=True)
    noise = torch.Generator().manual_seed(seed + sum(map(ord, split)))
    by_canvas: dict[tuple[int, int], list[int]] = {}
    for index, (scene, _) in enumerate(drawn):
        by_canvas.setdefault(scene.size, []).append(index)
    chunks = [(size, same[i : i + BATCH]) for size, same in by_canvas.items() for i in range(0, len(same), BATCH)]
    for (width, height), chunk in tqdm(chunks, desc=f"drawing {split}", disable=None, delay=2):
        things, photos = (torch.from_numpy(a) for a in render.pack([drawn[i][0] for i in chunk]))
        pictures = render.render(assets, things, photos, width, height)
        pictures = render.night(pictures, noise) if domain == "night" else pictures
        for index, picture in zip(chunk, pictures.round().byte().numpy(), strict=True):
            Image.fromarray(np.ascontiguousarray(picture)).save(
                output / "images" / f"{split}_{index:05d}.jpg", quality=95
            )
    with (output / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
        for index, (_, asked) in enumerate(drawn):
            image = f"images/{split}_{index:05d}.jpg"
            rows = [record(image, query) for query in asked] + [question_record(image, one) for one in more[index]]
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the splits that have a count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--domain", choices=["base", "night"], default="base")
    parser.add_argument("--train", type=int, default=0, help="scenes")
    parser.add_argument("--val", type=int, default=0, help="scenes")
    parser.add_argument("--test", type=int, default=0, help="scenes")
    parser.add_argument("--queries", type=int, default=1, help="records to a scene")
    parser.add_argument("--questions", type=int, choices=range(4), default=0, help="more records to a scene, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    assets = render.load_assets()
    for split in ("train", "val", "test"):
        if count := getattr(args, split):
            write(assets, args.output, split, args.domain, args.seed, count, args.queries, args.questions)


if __name__ == "__main__":
    main()

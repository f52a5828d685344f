"""What further phrases about one picture cost beside the first one, answered freely, within the grammar, side by side.

    python benchmarks/studies/phrases.py --bundle BUNDLE [--picture 1024x768] [--phrases 8] [--tokens 40] [--rounds 5]

Each round shows pictures that nobody has seen and asks for phrases about each, in one of three ways: free answers of a
fixed number of tokens, for a model of random weights never ends one; answers within the grammar one after the other;
and those side by side. Random weights choose numbers, at random; that there is one box, and that its name is the
phrase, is taken from what is expected, as if the model had chosen it, for they would choose another name and never end
it. Last, an answer is asked for again about a picture whose pixels were touched, with the answer before it as a draft:
its numbers are taken from the draft, too. Medians over the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import numpy as np
from PIL import Image

from edgetune_runtime.answer import Answer
from edgetune_runtime.backends import Float, Int
from edgetune_runtime.constrained import steps
from edgetune_runtime.constrained.writer import Writer
from edgetune_runtime.decode import Step
from edgetune_runtime.session import Session

STAGES = ("vision", "prefill", "decode", "total")
WAYS = ("free", "held", "side by side")


class Trained(Writer):
    """A writer whose model chooses what is expected wherever that is a word, as a trained one does."""

    numbers = False

    def take(self, logits: Float, tokens: Int | None) -> list[Step]:
        """As of `Writer`, with the expected words' logits above all others."""
        logits = logits.copy()
        for row, number in zip(logits, self._asked, strict=True):
            if number < len(self._ahead) and (self.numbers or self._place(number).place.number is None):
                token = self._ahead[number].token
                row[token if tokens is None else np.searchsorted(tokens, token)] = row.max() + 1
        return super().take(logits, tokens)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def medians(answers: list[Answer]) -> dict[str, float]:
    """Medians of each stage in milliseconds, and of passes and tokens."""
    rows = [answer.timings.to_dict() for answer in answers]
    counts = {name: statistics.median(row[name] for row in rows) for name in ("passes", "tokens", "known")}
    return {stage: round(1000 * statistics.median(row[stage] for row in rows), 1) for stage in STAGES} | counts


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--picture", default="1024x768", metavar="WxH")
    parser.add_argument("--phrases", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine")
    options = parser.parse_args()
    width, height = map(int, options.picture.split("x"))
    setattr(steps, "Writer", Trained)  # noqa: B010 - what the loop makes a writer with
    found: dict[str, list[Answer]] = {f"{way}, {which}": [] for way in WAYS for which in ("first", "further")}
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    drafted: list[Answer] = []
    with Session.load(
        options.bundle, threads=options.threads, device=options.device, engine=options.engine, cached_images=4
    ) as session:
        session.warm_up(width, height)
        words = [session.request(f"the {number}th thing from the left") for number in range(options.phrases)]
        for number in range(options.rounds):
            for place, way in enumerate(WAYS[number % 3 :] + WAYS[: number % 3]):
                image = picture(width, height, 100 + 3 * number + place)
                limit: dict[str, Any] = {"max_new_tokens": options.tokens, "constrained": way != "free"}
                if way == "side by side":
                    answers = session.answer(image, words, **limit)
                else:
                    answers = [session.answer(image, text, **limit) for text in words]
                found[f"{way}, first"].append(answers[0])
                found[f"{way}, further"] += answers[1:]
                whole[way].append(1000 * sum(answer.timings.total for answer in answers))
            touched = Image.fromarray(np.asarray(image) ^ 1)
            Trained.numbers = True
            drafted.append(session.answer(touched, words[0], max_new_tokens=options.tokens, earlier=answers[:1]))
            Trained.numbers = False
    rows = {name: medians(answers) for name, answers in found.items()} | {"the next frame": medians(drafted)}
    first = {way: rows[f"{way if way != 'side by side' else 'held'}, first"]["total"] for way in WAYS}
    shares = {
        "further/first": {way: round(rows[f"{way}, further"]["total"] / first[way], 3) for way in WAYS},
        "all/first": {way: round(statistics.median(whole[way]) / first[way], 2) for way in WAYS},
    }
    print(json.dumps(rows | shares, indent=1))


if __name__ == "__main__":
    main()

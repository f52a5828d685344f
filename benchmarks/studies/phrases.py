"""What further phrases about one picture cost, beside the first one and beside asking each of them anew.

    python benchmarks/studies/phrases.py --bundle BUNDLE [--picture 1024x768] [--phrases 8] [--tokens 40] [--rounds 5]

Each round shows a picture that nobody has seen and asks for phrases; answers have a fixed number of tokens, for a model
of random weights never ends one. Then the same phrases are asked with another picture in between, so that nothing of
the first is known but its features. Medians over the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import numpy as np
from PIL import Image

from edgetune_runtime.session import Session

STAGES = ("vision", "prefill", "decode", "total")


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 32, width // 32, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians of each stage in milliseconds."""
    return {stage: round(1000 * statistics.median(row[stage] for row in rows), 1) for stage in STAGES}


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
    first: list[dict[str, float]] = []
    further: list[dict[str, float]] = []
    anew: list[dict[str, float]] = []
    whole: list[float] = []
    told: dict[str, Any] = {}
    with Session.load(
        options.bundle, threads=options.threads, device=options.device, engine=options.engine, cached_images=4
    ) as session:
        session.warm_up(width, height)
        small = picture(64, 64, 1)
        words = [session.request(f"the {number}th thing from the left") for number in range(options.phrases)]
        for number in range(options.rounds):
            image = picture(width, height, 100 + number)
            answers = session.answer(image, words, max_new_tokens=options.tokens)
            first.append(answers[0].timings.to_dict())
            further += [answer.timings.to_dict() for answer in answers[1:]]
            whole.append(sum(answer.timings.total for answer in answers))
            told = {"prompt_tokens": answers[1].prompt_tokens, "known": answers[1].timings.known}
            for text, answer in list(zip(words, answers, strict=True))[1:3]:
                session.answer(small, words[0], max_new_tokens=1)
                again = session.answer(image, text, max_new_tokens=options.tokens)
                assert again.text == answer.text, "an answer changed with what was known"
                anew.append(again.timings.to_dict())
    rows = {"first": medians(first), "further": medians(further), "anew, features known": medians(anew)}
    share = rows["further"]["total"] / rows["first"]["total"]
    all_of_them = 1000 * statistics.median(whole) / rows["first"]["total"]
    print(json.dumps(told | rows | {"further/first": round(share, 3), "all/first": round(all_of_them, 2)}))


if __name__ == "__main__":
    main()

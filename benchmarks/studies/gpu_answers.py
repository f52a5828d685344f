"""What an answer costs on a GPU, by stage, when every picture is a new one.

    python benchmarks/studies/gpu_answers.py --bundle BUNDLE [--picture 1024x704] [--tokens 40] [--rounds 100]

Pictures of one size and five phrases in turn, after `warm_up` for that size: once as the model writes, with a fixed
number of tokens (one of random weights never ends an answer), and once held to the grammar of boxes, with the words
that a trained one chooses (see phrases.py). Percentiles in milliseconds. The first row has what the process pays once:
loading, and the warm-up with all that is recorded in it.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from phrases import STAGES, Trained, picture

from edgetune_runtime.backends.triton.backend import TorchBackend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.constrained import steps
from edgetune_runtime.session import Session

PHRASES = ("the left clock", "a red cup", "the third thing from the left", "clock", "the bottle behind the plate")


def percentiles(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Of each stage p50, p95, p99 and the slowest, in milliseconds."""
    stages = ("preprocess", *STAGES)
    return {
        stage: [round(1000 * float(np.percentile([row[stage] for row in rows], p)), 1) for p in (50, 95, 99, 100)]
        for stage in stages
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--picture", default="1024x704", metavar="WxH")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    width, height = map(int, options.picture.split("x"))
    setattr(steps, "Writer", Trained)  # noqa: B010 - what the loop makes a writer with
    started = time.perf_counter()
    # The engine is made by its class, so that a tree that is not installed can be measured.
    bundle = Bundle.load(options.bundle, verify=False)
    engine = TorchBackend.load(bundle, device="cuda", threads=None)
    if bundle.grammar is not None:
        engine.answer_tokens = bundle.grammar.tokens
    with Session.load(options.bundle, backend=engine, verify=False) as session:
        told: dict[str, Any] = {"load_s": round(time.perf_counter() - started, 2)}
        told["warm_up_s"] = round(session.warm_up(width, height).total, 2)
        for constrained in (False, True):
            rows, answers = [], []
            for number in range(options.rounds):
                words = session.request(PHRASES[number % len(PHRASES)])
                image = picture(width, height, 100 + number)
                answer = session.answer(image, words, max_new_tokens=options.tokens, constrained=constrained)
                rows.append(answer.timings.to_dict())
                answers.append(answer)
            name = "held to the grammar" if constrained else f"{options.tokens} tokens"
            told[name] = percentiles(rows) | {
                "prompt_tokens": answers[0].prompt_tokens,
                "mean_tokens": round(float(np.mean([row["tokens"] for row in rows])), 1),
                "mean_passes": round(float(np.mean([row["passes"] for row in rows])), 1),
            }
            before = time.perf_counter()
            requests = [session.request(phrase) for phrase in PHRASES]
            session.answer(picture(width, height, 99 + constrained), requests, max_new_tokens=options.tokens)
            told[name]["five_phrases_ms"] = round(1000 * (time.perf_counter() - before), 1)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()

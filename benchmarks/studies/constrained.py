"""What the grammar of answers gives and costs: free answers beside those held to it, record by record.

Usage: `python benchmarks/studies/constrained.py --bundle BUNDLE --data RECORDS.jsonl [--limit N] [--threads N]`.

Both answer each record in turns. The table tells how many answers were well-formed, how many of those have the same
boxes, both accuracies on the same records with the interval of their difference, passes of the decoder, the ratio of
their decoding times, and how well scores tell right boxes from wrong ones: from the softmax over all tokens (free) and
over legal ones.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np

from edgetune_runtime.answer import Answer
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.records import Record, read_entries
from edgetune_runtime.session import Session

KINDS = ("free", "held")


def right(answer: Answer, record: Record) -> bool:
    """Whether an answer has the record's box, or says rightly that there is none."""
    assert record.boxes is not None
    if not len(record.boxes):
        return answer.refused
    return bool(answer.detections) and sample_iou([each.box for each in answer.detections], record.boxes) >= 0.5


def auroc(scores: list[float], labels: list[bool]) -> float:
    """Probability that a right box has a higher score than a wrong one (ties count half)."""
    good, bad = (
        np.array([s for s, label in zip(scores, labels, strict=True) if label is kind]) for kind in (True, False)
    )
    wins = (good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum()
    return float(wins / max(len(good) * len(bad), 1))


def calibration_error(scores: list[float], labels: list[bool], bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017, equation 3)."""
    values, hits = np.array(scores), np.array(labels, float)
    place = np.minimum((values * bins).astype(int), bins - 1)
    return float(sum(abs((values - hits)[place == number].sum()) for number in range(bins)) / len(values))


def main() -> None:
    """Ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    records = [each for each in read_entries(Path(options.data)) if isinstance(each, Record) and each.boxes is not None]
    answers: dict[str, list[Answer]] = {kind: [] for kind in KINDS}
    with Session.load(options.bundle, threads=options.threads) as session:
        for number, record in enumerate(records[: options.limit]):
            words = session.request(record.text)
            session.answer(record.image, words, max_new_tokens=1, constrained=False)  # the picture is read for both
            for kind in KINDS if number % 2 else KINDS[::-1]:
                answers[kind].append(session.answer(record.image, words, constrained=kind == "held"))
    free, held = answers["free"], answers["held"]
    asked = records[: len(free)]
    well = [answer.problem is None for answer in free]
    boxes = [[each.box for each in answer.detections] for answer in free]
    same = [[each.box for each in answer.detections] == old for answer, old in zip(held, boxes, strict=True)]
    hits = {
        kind: [right(answer, record) for answer, record in zip(answers[kind], asked, strict=True)] for kind in KINDS
    }
    difference = np.array(hits["held"], float) - np.array(hits["free"], float)
    error = 1.96 * difference.std() / max(len(difference), 1) ** 0.5
    print(f"records: {len(asked)}, well-formed when free: {sum(well)}")
    print(f"same boxes where well-formed: {sum(s for s, w in zip(same, well, strict=True) if w)} of {sum(well)}")
    print(f"right: free {100 * np.mean(hits['free']):.2f} %, held {100 * np.mean(hits['held']):.2f} %", end=" ")
    print(f"(difference {100 * difference.mean():+.2f} points, 95 % interval ±{100 * error:.2f})")
    for kind in KINDS:
        status = Counter(answer.status for answer in answers[kind])
        passes, tokens = ([getattr(answer.timings, name) for answer in answers[kind]] for name in ("passes", "tokens"))
        spent = [1000 * (answer.timings.prefill + answer.timings.decode) for answer in answers[kind]]
        scored = [
            (answer.detections[0].score or 0.0, hit)
            for answer, hit in zip(answers[kind], hits[kind], strict=True)
            if answer.detections
        ]
        scores, labels = [score for score, _ in scored], [hit for _, hit in scored]
        print(
            f"{kind}: {dict(status)}, tokens {median(tokens)}, passes {median(passes)} (at most {max(passes)}), "
            f"{median(spent):.1f} ms behind the picture, AUROC {auroc(scores, labels):.4f}, "
            f"ECE {calibration_error(scores, labels):.4f}"
        )


if __name__ == "__main__":
    main()

"""Boxes and answers from one model: LoRA on grounding records, on questions, and on both, scored on the same scenes.

Usage, from the root of the repository:

    python benchmarks/studies/joint_study.py --output runs/joint [--scenes N] [--test-scenes N]
        [--epochs E] [--threads T]

Every step is a call of the Python API; finished ones are kept, so that the same command continues. Writes
OUTPUT/table.md and OUTPUT/results.json.

`majority` answers every question of a kind (count, place, colour) with the most frequent answer of that kind in the
training records: what can be had without looking.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import edgetune
from edgetune_bench.folder import read_answers, read_results
from edgetune_bench.table import markdown
from edgetune_core.processes import apart
from edgetune_runtime.bench.predictions import Prediction, VqaPrediction, grounding, questions
from edgetune_runtime.bench.scores import difference
from edgetune_runtime.records import Record, read_records

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
TRAINED = {"boxes alone": "ground", "answers alone": "vqa", "both": "joint"}
"""Rows that are trained, and the data file and folder of each."""


def write_data(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """Draw `night` scenes and write ground.jsonl, vqa.jsonl and joint.jsonl (to train on) and exam.jsonl (to test on).

    The base model's own questions, a tenth of what a scene is asked, are left out: only the added ones are balanced.
    """
    if (folder / "exam.jsonl").is_file():
        return
    scenes = [word for split, count in counts.items() for word in (f"--{split}", count)]
    options = ("--domain", "night", "--queries", 3, "--questions", 3, "--seed", seed)
    words = [sys.executable, TINY / "make_data.py", "--output", folder, *options, *scenes]
    subprocess.run([str(word) for word in words], check=True)
    for split in counts:
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        ground = [line for line in lines if "bbox" in json.loads(line)]
        vqa = [line for line in lines if "meta" in json.loads(line)]
        files = {"exam": ground + vqa} if split == "test" else {"ground": ground, "vqa": vqa, "joint": ground + vqa}
        for name, chosen in files.items():
            (folder / f"{name}.jsonl").write_text("".join(chosen), encoding="utf-8")


def score(output: Path, name: str, data: Path, adapter: Path | None, threads: int) -> list[Prediction]:
    """Answers of the base, or of the base with an adapter, to the test records, with their scores."""
    folder = output / f"eval_{name}"
    edgetune.evaluate(target=TINY / "model", data=data, output=folder, threads=threads, adapter=adapter)
    (answers,) = read_answers(folder, read_results(folder)).values()
    return list(answers)


def majority(trained: Sequence[Record], asked: Sequence[Prediction], kinds: Mapping[str, str]) -> list[VqaPrediction]:
    """The rows of the questions as if each was answered with its kind's most frequent training answer."""
    seen: dict[str, Counter[str]] = {}
    for record in trained:
        seen.setdefault(record.meta["asks"], Counter()).update(record.answers)
    guesses = {kind: answers.most_common(1)[0][0] for kind, answers in seen.items()}
    return [replace(row, raw=guesses[kinds[row.source]]) for row in questions(asked)]


def figures(rows: Sequence[Prediction], kinds: Mapping[str, str]) -> dict[str, list[tuple[str, float]]]:
    """What each column is the mean of: (image, value) of every record that counts for it."""
    present = [(row.image, row.iou) for row in grounding(rows) if row.iou is not None]
    absent = [row for row in grounding(rows) if row.iou is None]
    asked = questions(rows)
    found = {
        "Acc@0.5": [(image, float(iou >= 0.5)) for image, iou in present],
        "mIoU": present,
        "refusal recall": [(row.image, float(row.status == "refused")) for row in absent],
        "VQA": [(row.image, row.accuracy) for row in asked],
    }
    for kind in sorted(set(kinds.values())):
        found[f"VQA {kind}"] = [(row.image, row.accuracy) for row in asked if kinds[row.source] == kind]
    return found


def interval(values: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]] | None = None) -> str:
    """Mean in percent with its 95 % bootstrap interval by image, or the difference to another row's values."""
    if not values:
        return "-"
    images, after = [image for image, _ in values], np.array([value for _, value in values])
    base = np.zeros(len(values)) if before is None else np.array([value for _, value in before])
    found = difference(base, after, images)
    if found is None:
        return f"{100 * (after - base).mean():.1f}"
    sign = "" if before is None else "+"
    return "{:{s}.1f} [{:{s}.1f}, {:{s}.1f}]".format(
        *(100 * end for end in (found.value, found.low, found.high)), s=sign
    )


def tabulate(rows: Mapping[str, Sequence[Prediction]], kinds: Mapping[str, str]) -> list[dict[str, object]]:
    """One line for each row with all its figures, two with how `both` differs, and one with numbers of records."""
    scores = {title: figures(said, kinds) for title, said in rows.items()}
    lines: list[dict[str, object]] = [
        {"row": title, **{column: interval(values) for column, values in found.items()}}
        for title, found in scores.items()
    ]
    for title, in_words in (("boxes alone", False), ("answers alone", True)):
        columns = [column for column in scores["both"] if column.startswith("VQA") == in_words]
        alone = {column: interval(scores["both"][column], scores[title][column]) for column in columns}
        lines.append({"row": f"both − {title}", **{column: alone.get(column, "-") for column in scores["both"]}})
    counts = {column: len(values) for column, values in scores["base"].items()}
    return [*lines, {"row": "records", **counts}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, train, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--scenes", type=int, default=400, help="to train on; about six records each")
    parser.add_argument("--test-scenes", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    data = args.output / "data"
    args.output.mkdir(parents=True, exist_ok=True)
    write_data(data, {"train": args.scenes, "test": args.test_scenes}, args.seed)
    exam = data / "exam.jsonl"
    kinds = {record.source: record.meta["asks"] for record in read_records(exam) if record.kind == "vqa"}
    rows: dict[str, Sequence[Prediction]] = {"base": score(args.output, "base", exam, None, args.threads)}
    rows["majority"] = majority(read_records(data / "vqa.jsonl"), rows["base"], kinds)
    for title, name in TRAINED.items():
        adapter = args.output / f"adapter_{name}"
        apart(
            edgetune.train,
            checkpoint=TINY / "model",
            data=data / f"{name}.jsonl",
            output=adapter,
            vision_lora=True,
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=16,
            seed=args.seed,
        )
        rows[title] = score(args.output, name, exam, adapter, args.threads)

    lines = tabulate(rows, kinds)
    table = markdown(lines)
    (args.output / "table.md").write_text(table, encoding="utf-8")
    (args.output / "results.json").write_text(json.dumps(lines, indent=2, ensure_ascii=False), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()

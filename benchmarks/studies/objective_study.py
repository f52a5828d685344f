"""What an objective is worth: supervised tuning, with the box term, GRPO after it, and supervised tuning for longer.

Usage, from the root of the repository:

    python benchmarks/studies/objective_study.py --output runs/objectives [--device cuda]
        [--seeds 0 1 2 3] [--budget 900]

The budget is in seconds. Finished seeds are kept in OUTPUT/seeds, so the same call
continues, and several GPUs can share the seeds out before one call makes the table.

Each seed trains four adapters of the tiny model on `night` scenes: `sft`; `sft + box`, the same with `--box-loss`;
`grpo`, from the `sft` adapter; and `sft, longer`, supervised for as many seconds as `sft` and `grpo` took together. All
are scored on scenes that none has seen: `night`; `day`, the world of the base model; and `grey`, the day scenes without
colour, which nothing was trained on.
Writes OUTPUT/table.md and OUTPUT/results.json. A seed that would not end within the budget is not begun.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from edgetune_bench.table import markdown
from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.bench import metrics
from edgetune_runtime.codec import grounding
from edgetune_runtime.records import Record, read_records
from edgetune_train.arguments import dtype_of
from edgetune_train.batch import Collator
from edgetune_train.grpo import grpo
from edgetune_train.score import GroundingScorer
from edgetune_train.settings import GrpoSettings, TrainSettings
from edgetune_train.train import train
from edgetune_train.vision import PixelInputs

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
ARMS = ("base", "sft", "sft + box", "grpo", "sft, longer")
SPLITS = ("night", "day", "grey")
Scores = list[metrics.SampleScore]


def write_data(folder: Path, args: argparse.Namespace) -> None:
    """Draw the scenes of all splits, unless they are there."""
    plans = {"night": {"train": args.scenes, "test": args.test_scenes}, "base": {"test": args.test_scenes}}
    for domain, counts in plans.items():
        if not (folder / domain / "test.jsonl").is_file():
            words = [str(word) for split, count in counts.items() for word in (f"--{split}", count)]
            command = [sys.executable, str(TINY / "make_data.py"), "--output", str(folder / domain), "--domain", domain]
            subprocess.run([*command, "--queries", "4", *words], check=True)
    grey = folder / "grey"
    if not (grey / "test.jsonl").is_file():
        (grey / "images").mkdir(parents=True, exist_ok=True)
        for path in (folder / "base" / "images").glob("test_*.jpg"):
            ImageOps.grayscale(Image.open(path)).convert("RGB").save(grey / "images" / path.name, quality=95)
        (grey / "test.jsonl").write_bytes((folder / "base" / "test.jsonl").read_bytes())


class Exam:
    """The held-out records of a split, with their pictures preprocessed once for all models.

    Args:
        base: the checkpoint.
        path: the split's records.
        batch_size: prompts answered together.
    """

    def __init__(self, base: HubCheckpoint, path: Path, batch_size: int) -> None:
        self._base, self._batch_size = base, batch_size
        self.records = [record for record in read_records(path) if record.kind == "ground"]
        samples = prepare(self.records, base.family, base.spec, base.tokenizer)
        self._scorer = GroundingScorer(base, samples, Collator.of(base, PixelInputs(base.spec, 8 << 30)), batch_size)
        self._samples: list[Sample] = self._scorer.samples

    def __call__(self, model: Any) -> Scores:
        """Return the score of each record."""
        scores: Scores = []
        for start in range(0, len(self._samples), self._batch_size):
            batch = self._samples[start : start + self._batch_size]
            for sample, text in zip(batch, self._scorer.generate(model, batch), strict=True):
                answer = grounding.parse(text, sample.geometry, self._base.family.box_format)
                boxes = self.records[len(scores)].boxes
                assert boxes is not None
                found = [detection.box for detection in answer.detections]
                iou = metrics.sample_iou(found, boxes) if len(boxes) else None
                scores.append(metrics.SampleScore(iou, answer.status))
        return scores


def examine(base: HubCheckpoint, adapter: Path | None, exams: Mapping[str, Exam], device: str) -> dict[str, Scores]:
    """Return the scores of the base, or of an adapter on it, on each split."""
    dtype = dtype_of("auto")
    model = base.load_model(dtype).eval()
    with library_warnings_off():
        model = Adapter.of(base, adapter).attach(model) if adapter else model
    model.to(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return {split: exam(model) for split, exam in exams.items()}


def study_seed(base: HubCheckpoint, records: Sequence[Record], args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train the four adapters of a seed; return the seconds and optimizer steps of each."""
    settings = TrainSettings(
        vision_lora=True,
        epochs=args.epochs,
        batch_size=16,
        learning_rate=args.learning_rate,
        seed=seed,
        checkpoint_steps=10**6,
    )
    rewarded = GrpoSettings(
        generations=args.generations,
        batch_size=args.grpo_records,
        learning_rate=args.grpo_learning_rate,
        beta=args.beta,
        seed=seed,
        checkpoint_steps=10**6,
        trainer_args={"max_steps": args.grpo_steps},
    )
    found: dict[str, Any] = {}

    def timed(arm: str, run: Any) -> float:
        folder = args.output / "adapters" / f"{seed}-{arm.replace(' ', '-').replace(',', '')}"
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        result = run(folder)
        seconds = time.monotonic() - started
        found[arm] = {"folder": folder, "seconds": round(seconds, 1), "steps": result["steps"]}
        found[arm] |= {key: result[key] for key in ("loss", "rewards", "samples_per_second") if key in result}
        print(f"seed {seed}: {arm}: {found[arm]}", flush=True)
        return seconds

    timed("sft", lambda folder: train(base, records, [], settings, folder))
    timed("sft + box", lambda folder: train(base, records, [], replace(settings, box_loss=args.box_loss), folder))
    start = Adapter.open(found["sft"]["folder"])
    rewarding = timed("grpo", lambda folder: grpo(base, start, records, [], rewarded, folder))
    # By the speed of its steps: starting up, which the first run pays for all, is no training.
    further = rewarding * found["sft"]["samples_per_second"] / len(records)
    longer = replace(settings, epochs=args.epochs + further)
    timed("sft, longer", lambda folder: train(base, records, [], longer, folder))
    return found


def one_seed(
    base: HubCheckpoint, records: Sequence[Record], exams: Mapping[str, Exam], args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Train and score a seed; return what the runs took, and by arm and split the score of each record."""
    runs = study_seed(base, records, args, seed)
    folders = {arm: None if arm == "base" else runs[arm]["folder"] for arm in ARMS}
    scores = {arm: examine(base, folder, exams, args.device) for arm, folder in folders.items()}
    plain = {
        arm: {split: [dataclasses.asdict(score) for score in found] for split, found in splits.items()}
        for arm, splits in scores.items()
    }
    return {"runs": runs, "scores": plain}


def rows(found: Mapping[str, Mapping[str, list[Scores]]], exams: Mapping[str, Exam]) -> list[dict[str, object]]:
    """Return a table row for each split and arm.

    Args:
        found: by arm and split, the scores of each seed.
        exams: for the images, which are drawn again in the intervals with all their records in all seeds.
    """
    table = []
    for split in SPLITS:
        images = [str(record.image) for record in exams[split].records]
        for arm, scores in found.items():
            seeds = scores[split]
            summaries = [metrics.summarize(seed) for seed in seeds]
            row: dict[str, object] = {"split": split, "objective": arm, "seeds": len(seeds)}
            for name, title in (("acc50", "Acc@0.5"), ("miou", "mIoU"), ("refusal_accuracy", "refused")):
                values = [getattr(summary, name) for summary in summaries]
                row[title] = f"{np.mean(values):.4f}"
                if name == "acc50":
                    row["seeds from-to"] = f"{min(values):.3f}-{max(values):.3f}"
            for title, value in (("ΔAcc@0.5 to sft", lambda s: float(s.iou >= 0.5)), ("ΔmIoU to sft", lambda s: s.iou)):
                row[title] = "" if arm in ("base", "sft") else _delta(found["sft"][split], seeds, images, value)
            table.append(row)
    return table


def _delta(first: Sequence[Scores], second: Sequence[Scores], images: Sequence[str], value: Any) -> str:
    """Return the mean difference over present objects of all seeds, with its 95 % interval over images."""
    pairs = [
        (value(a), value(b), image)
        for one, other in zip(first, second, strict=True)
        for a, b, image in zip(one, other, images, strict=True)
        if a.iou is not None
    ]
    before, after, groups = zip(*pairs, strict=True)
    delta = metrics.paired_bootstrap(before, after, groups)
    return f"{delta.delta:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and score the seeds that are not there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--budget", type=float, default=900, help="seconds")
    parser.add_argument("--scenes", type=int, default=450, help="to train on, with four records each")
    parser.add_argument("--test-scenes", type=int, default=150, help="of each split, with four records each")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--box-loss", type=float, default=1.0)
    parser.add_argument("--grpo-steps", type=int, default=30)
    parser.add_argument("--grpo-records", type=int, default=32, help="records per step")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--grpo-learning-rate", type=float, default=5e-4)
    parser.add_argument("--beta", type=float, default=0.0)
    args = parser.parse_args(arguments)
    started, slowest = time.monotonic(), 0.0
    write_data(args.output / "data", args)
    base = HubCheckpoint.open(TINY / "model")
    folders = {"night": "night", "day": "base", "grey": "grey"}
    exams = {split: Exam(base, args.output / "data" / name / "test.jsonl", 600) for split, name in folders.items()}
    records = read_records(args.output / "data" / "night" / "train.jsonl")
    kept = args.output / "seeds"
    kept.mkdir(exist_ok=True)
    found: dict[str, dict[str, list[Scores]]] = {arm: {split: [] for split in SPLITS} for arm in ARMS}
    runs: dict[int, Any] = {}
    for seed in args.seeds:
        begun, path = time.monotonic(), kept / f"{seed}.json"
        if not path.is_file():
            if slowest and begun - started + slowest > args.budget:
                print(f"seed {seed} would not end within the budget: left out", flush=True)
                continue
            document = one_seed(base, records, exams, args, seed)
            path.write_text(json.dumps(document, default=str), encoding="utf-8")
            slowest = max(slowest, time.monotonic() - begun)
        document = json.loads(path.read_text(encoding="utf-8"))
        runs[seed] = document["runs"]
        for arm, splits in document["scores"].items():
            for split, pairs in splits.items():
                found[arm][split].append([metrics.SampleScore(**pair) for pair in pairs])
    table = rows(found, exams)
    document = {"settings": vars(args), "runs": runs, "rows": table}
    (args.output / "results.json").write_text(json.dumps(document, indent=2, default=str), encoding="utf-8")
    (args.output / "table.md").write_text(markdown(table) + "\n", encoding="utf-8")
    print((args.output / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

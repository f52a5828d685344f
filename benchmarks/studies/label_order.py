"""How many labels it takes to reach an accuracy, by the order in which pictures are labelled.

Usage, from the root of the repository:

    python benchmarks/studies/label_order.py --output runs/label-order [--seeds 0 1 2] [--arms random warmed uncertain]

Each seed has a pool of night scenes that nothing is known of but their truth, which stands for the person who labels
them: one record about each picture. A round chooses pictures, trains an adapter of the tiny model on all that are
labelled by then, and scores it on night scenes that none has seen. An arm is an order:

    random     of the seed
    uncertain  first those of whose answers the model of the last round was least sure, as `edgetune label` says it; in
               the first round that is the base model
    warmed     the first round is that of `random`, the later ones are uncertain

A round asks the model about `--asked` pictures of the pool. All arms of a seed have the same pool, the same test
records and the same seed of training. Finished rounds are kept in OUTPUT/rounds, so the same call continues, with more
seeds, arms or budgets, too.
Writes OUTPUT/table.md and OUTPUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune_bench.table import markdown
from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off
from edgetune_core.conversation import Sample, prepare, stop_ids
from edgetune_core.generation import generate_greedily
from edgetune_data.labelling import uncertainty
from edgetune_runtime.bench import metrics
from edgetune_runtime.codec.confidence import token_probabilities
from edgetune_runtime.codec.grounding import ParsedAnswer, parse
from edgetune_runtime.records import Record, read_records
from edgetune_train.arguments import dtype_of
from edgetune_train.batch import Collator
from edgetune_train.settings import TrainSettings
from edgetune_train.train import train
from edgetune_train.vision import PixelInputs

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
ARMS = ("random", "warmed", "uncertain")
_ANSWER = 64  # tokens; an answer with one box takes 34


def write_data(folder: Path, args: argparse.Namespace) -> None:
    """Draw the pool, one record to a picture, and the test scenes with three each, unless they are there."""
    for split, count, queries in (("train", args.pool_scenes, 1), ("test", args.test_scenes, 3)):
        if not (folder / split / f"{split}.jsonl").is_file():
            words = [f"--{split}", str(count), "--queries", str(queries), "--domain", "night"]
            command = [sys.executable, str(TINY / "make_data.py"), "--output", str(folder / split), *words]
            subprocess.run(command, check=True)


class Asked:
    """Records with their pictures preprocessed once, and what models answer about them.

    Args:
        base: the checkpoint.
        records: with boxes, or of absent objects.
        batch_size: prompts answered together.
    """

    def __init__(self, base: HubCheckpoint, records: Sequence[Record], batch_size: int) -> None:
        self.records = list(records)
        self._base, self._batch_size = base, batch_size
        self._samples: list[Sample] = prepare(self.records, base.family, base.spec, base.tokenizer)
        self._collate = Collator.of(base, PixelInputs(base.spec, 4 << 30))
        self._stop = stop_ids(base.tokenizer, base.family)

    def __call__(self, model: Any, chosen: Sequence[int]) -> list[ParsedAnswer]:
        """Return a model's answers to the records of these places, with the scores that a bundle's have."""
        answers = []
        for start in range(0, len(chosen), self._batch_size):
            samples = [self._samples[place] for place in chosen[start : start + self._batch_size]]
            inputs = self._collate.prompts(samples)
            with torch.no_grad():
                output = generate_greedily(
                    model,
                    inputs,
                    stop=self._stop,
                    pad=self._collate.pad_id,
                    max_new_tokens=_ANSWER,
                    output_logits=True,
                )
            new = output.sequences[:, inputs["input_ids"].shape[1] :]  # [B, T]
            logits = torch.stack(output.logits, dim=1).float()  # [B, T, V]
            chosen_p = logits.softmax(-1).gather(-1, new[..., None])[..., 0]  # [B, T]
            for sample, ids, probabilities in zip(samples, new.tolist(), chosen_p.tolist(), strict=True):
                answers.append(self._read(sample, ids, probabilities))
        return answers

    def _read(self, sample: Sample, ids: list[int], probabilities: list[float]) -> ParsedAnswer:
        ended = next((place for place, token in enumerate(ids) if token in self._stop), len(ids))
        ids, probabilities = ids[:ended], probabilities[:ended]
        decode = partial(self._base.tokenizer.decode, keep_control=True)
        before = self._base.family.chat.before_answer
        tokens = token_probabilities(ids, probabilities, decode, before)
        return parse(decode(ids).removeprefix(before), sample.geometry, self._base.family.box_format, tokens)


def open_model(base: HubCheckpoint, adapter: Path | None) -> Any:
    """Return the base, or an adapter on it, ready to answer."""
    model = base.load_model(dtype_of("fp32")).eval()
    with library_warnings_off():
        return Adapter.of(base, adapter).attach(model).eval() if adapter else model


def study_arm(
    base: HubCheckpoint, pool: Asked, test: Asked, arm: str, seed: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rounds of an arm: what was labelled, and the score of each test record."""
    generator = random.Random(f"label order {seed}")
    members = generator.sample(range(len(pool.records)), args.pool)
    shuffled = generator.sample(members, len(members))
    labelled: list[int] = []
    adapter: Path | None = None
    rounds: list[dict[str, Any]] = []
    for number, budget in enumerate(args.budgets):
        name = f"{'random' if arm == 'warmed' and number == 0 else arm}-{seed}-{budget}"
        kept, folder = args.output / "rounds" / f"{name}.json", args.output / "adapters" / name
        if not kept.is_file():
            began = time.monotonic()
            free = [place for place in shuffled if place not in set(labelled)]
            if arm != "random":
                free = free[: args.asked]
                answers = pool(open_model(base, adapter), free)
                unsure = {place: uncertainty.of_answer(answer) for place, answer in zip(free, answers, strict=True)}
                free.sort(key=lambda place: -unsure[place])
            chosen = [*labelled, *free[: budget - len(labelled)]]
            settings = TrainSettings(
                vision_lora=True,
                epochs=args.epochs,
                batch_size=8,
                learning_rate=args.learning_rate,
                seed=seed,
                checkpoint_steps=10**6,
            )
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            train(base, [pool.records[place] for place in chosen], [], settings, folder)
            answers = test(open_model(base, folder), range(len(test.records)))
            score = metrics.score_grounding(answers, test.records).to_dict()
            found = {"labelled": chosen, "score": score, "seconds": round(time.monotonic() - began, 1)}
            truths = [pool.records[place].boxes for place in chosen]
            found["absent"] = sum(boxes is not None and len(boxes) == 0 for boxes in truths)
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found), encoding="utf-8")
            print(f"{arm}, seed {seed}, {budget} labels: {score['acc50']:.3f}, {found['seconds']} s", flush=True)
        found = json.loads(kept.read_text(encoding="utf-8"))
        labelled, adapter = found["labelled"], folder
        rounds.append(found)
    return rounds


def base_score(base: HubCheckpoint, test: Asked, kept: Path) -> dict[str, Any]:
    """Return what the base model scores, which is kept."""
    if not kept.is_file():
        answers = test(open_model(base, None), range(len(test.records)))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(metrics.score_grounding(answers, test.records).to_dict()), encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def labels_needed(budgets: Sequence[int], curve: Sequence[float], target: float) -> float | None:
    """Return the labels with which a curve first reaches an accuracy, on straight lines over the logarithm of labels.

    None where it never does; the first budget where that is enough.
    """
    for place, accuracy in enumerate(curve):
        if accuracy >= target:
            if place == 0:
                return float(budgets[0])
            before = curve[place - 1]
            share = (target - before) / (accuracy - before)
            return float(budgets[place - 1] * (budgets[place] / budgets[place - 1]) ** share)
    return None


def tables(found: Mapping[str, Mapping[int, list[float]]], args: argparse.Namespace) -> str:
    """Return the curve of each arm with its spread over seeds, and the labels that each needs.

    Args:
        found: by arm and seed, Acc@0.5 (0-1) with each budget.
        args: of the command line.
    """
    curves, needed = [], []
    for arm, seeds in found.items():
        by_budget = np.array(list(seeds.values()))  # [seeds, budgets]
        row: dict[str, object] = {"order": arm, "seeds": len(seeds)}
        for place, budget in enumerate(args.budgets):
            values = by_budget[:, place] * 100
            row[f"{budget} labels"] = f"{values.mean():.1f} [{values.min():.1f}, {values.max():.1f}]"
        curves.append(row)
        reach: dict[str, object] = {"order": arm}
        for target in args.targets:
            each = [labels_needed(args.budgets, curve, target) for curve in seeds.values()]
            mean = labels_needed(args.budgets, list(by_budget.mean(axis=0)), target)
            shown = [_needed(one, args.budgets) for one in (mean, *each)]
            reach[f"Acc@0.5 {target:.0%}"] = f"{shown[0]} ({', '.join(shown[1:])})"
        needed.append(reach)
    return f"{markdown(curves)}\n\n{markdown(needed)}\n"


def _needed(labels: float | None, budgets: Sequence[int]) -> str:
    """Return how many labels as words: fewer than the first budget, or more than the last, were not tried."""
    if labels is None:
        return f"> {budgets[-1]}"
    return f"≤ {budgets[0]}" if labels <= budgets[0] else f"{labels:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Label, train and score what is not there, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.55, 0.6])
    parser.add_argument("--pool", type=int, default=500, help="pictures that a seed chooses from")
    parser.add_argument("--asked", type=int, default=250, help="pictures that a round asks the model about")
    parser.add_argument("--pool-scenes", type=int, default=800, help="pictures that the seeds' pools are drawn from")
    parser.add_argument("--test-scenes", type=int, default=120, help="with three records each")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    write_data(args.output / "data", args)
    base = HubCheckpoint.open(TINY / "model")
    pool, test = (
        Asked(
            base,
            [one for one in read_records(args.output / "data" / split / f"{split}.jsonl") if one.kind == "ground"],
            64,
        )
        for split in ("train", "test")
    )
    start = base_score(base, test, args.output / "rounds" / "base.json")
    print(f"base: {start['acc50']:.3f} of {len(test.records)} records, {len(pool.records)} in the pool", flush=True)
    found: dict[str, dict[int, list[float]]] = {arm: {} for arm in args.arms}
    rounds: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            rounds[arm][seed] = study_arm(base, pool, test, arm, seed, args)
            found[arm][seed] = [one["score"]["acc50"] for one in rounds[arm][seed]]
    document = {"settings": vars(args), "base": start, "rounds": rounds}
    (args.output / "results.json").write_text(json.dumps(document, indent=2, default=str), encoding="utf-8")
    (args.output / "table.md").write_text(tables(found, args), encoding="utf-8")
    print((args.output / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

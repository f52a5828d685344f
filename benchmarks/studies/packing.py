"""What packing gains on a mixed training set: the tiny example model, one core, the same records in every row.

Usage, from the root of the repository:

    python benchmarks/studies/packing.py [--small] [--records 96] [--rounds 3] [--json FILE]

--small is a toy model.

Every layout computes the loss and its gradients for every record, with the same weights; the loss is the mean over all
learned tokens, so the rows must agree. Rounds alternate between the layouts; the time is processor time, the median
of the rounds. Vision is frozen and its features are kept: what is measured is the language model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from train_world import random_checkpoint, tiny_checkpoint, write_records

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.records import read_entries
from edgetune_train.adapt import adapted_model
from edgetune_train.arguments import training_arguments
from edgetune_train.batch import Collator, Pack
from edgetune_train.objective import answer_loss
from edgetune_train.packing import Packs
from edgetune_train.settings import TrainSettings


@dataclass(frozen=True)
class Layout:
    """One way to lay records into batches: its name, and the batches."""

    name: str
    batches: Sequence[Sequence[Sample | Pack]]
    room: int | None = None

    def utilization(self) -> float:
        """Return the share of places that hold tokens; a pack has room for `room`, a batch for its longest."""
        used = places = 0
        for batch in self.batches:
            lengths = [[len(sample.ids) for sample in (row if isinstance(row, tuple) else (row,))] for row in batch]
            used += sum(map(sum, lengths))
            places += self.room or len(batch) * max(map(sum, lengths))
        return used / places


def layouts(samples: Sequence[Sample], sizes: Sequence[int], lengths: Sequence[int]) -> list[Layout]:
    """Return the layouts to compare: padded batches of some sizes, packs of some lengths."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [samples[i] for i in order]
    padded = [
        Layout(f"padded, {size} records", [shuffled[i : i + size] for i in range(0, len(samples), size)])
        for size in sizes
    ]
    packed = []
    for length in lengths:
        packs = Packs(samples, length, seed=0, epochs=1)
        packed.append(Layout(f"packed, {length} tokens", [[packs[i]] for i in range(len(packs))], length))
    return [*padded, *packed]


def step_of(model: Any, collate: Collator, learned: int) -> Callable[[Layout], float]:
    """Return what computes a layout's loss and gradients over all records, and gives the loss."""

    def run(layout: Layout) -> float:
        model.zero_grad()
        total = 0.0
        for rows in layout.batches:
            batch = collate(rows)
            logits = model(**{key: value for key, value in batch.items() if not key.endswith("labels")}).logits
            loss = answer_loss(logits, batch, learned)
            loss.backward()
            total += float(loss.detach())
        return total

    return run


def measure(model: Path, count: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Return the table's rows.

    Args:
        model: the checkpoint.
        count: how many records.
        rounds: how often each layout is timed.
        folder: for the records.
    """
    checkpoint = HubCheckpoint.open(model)
    entries = read_entries(write_records(folder / "data", count, sides=(64, 512)))
    samples = prepare(entries, checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
    settings = TrainSettings(precision="fp32", pack=1)
    arguments = training_arguments(settings, folder, validate=False)
    torch.manual_seed(0)
    adapted = adapted_model(checkpoint, settings, arguments, start=None)
    adapted.model.train()
    run = step_of(adapted.model, Collator.of(checkpoint, adapted.images), sum(sum(s.learned) for s in samples))
    longest = max(len(sample.ids) for sample in samples)
    compared = layouts(samples, (8, 16), [size for size in (512, 1024, 2048) if size >= longest])
    losses = {layout.name: run(layout) for layout in compared}  # also fills the cache of features
    seconds: dict[str, list[float]] = {layout.name: [] for layout in compared}
    for _ in range(rounds):
        for layout in compared:
            began = time.process_time()
            run(layout)
            seconds[layout.name].append(time.process_time() - began)
    return [
        {
            "layout": layout.name,
            "utilization": round(layout.utilization(), 3),
            "records_per_step": round(count / len(layout.batches), 1),
            "samples_per_second": round(count / statistics.median(seconds[layout.name]), 1),
            "loss": round(losses[layout.name], 6),
        }
        for layout in compared
    ]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a toy model, for a test")
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, edge = Path(folder) / "model", 512 * 512
        if options.small:
            random_checkpoint(model, "small", dtype=torch.float32, device="cpu", longest_edge=edge)
        else:
            tiny_checkpoint(model, longest_edge=edge)
        rows = measure(model, options.records, options.rounds, Path(folder))
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

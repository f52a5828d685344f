"""Training speed and memory beside plain `transformers.Trainer`: the same records, adapter and optimizer.

Usage: `python benchmarks/studies/train_speed.py [--small] [--records 96] [--rounds 3] [--pack 4096]
[--quantize none nf4] [--compile] [--json FILE]`

Qwen3-VL-2B's sizes with random weights (`--small`: a toy on the CPU), frozen vision, LoRA of rank 16 on every language
linear, gradient checkpointing off. `plain` is what one writes with transformers and peft: a data set that the
processor prepares in worker processes, padded batches of 8, the model's own loss. `padded` and `packed` are ours; they
keep the features of the frozen tower after the first pass, as in any run of several epochs; each pass of `packed, first
epoch` starts with none: it decodes every picture, computes its features, as `plain` always does, and keeps them.
`attention` keeps packed samples apart; `compiled` adds `--compile`, whose compiling falls into the first round. The
vision tower of `plain` is as transformers made it.

A round is one pass over the records with each system, one after the other; a first round warms up and is not counted.
Seconds are the median of the rounds; memory is the most that the system's own tensors took. The loss is that of the
last round: comparable between rows with the same steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from train_world import random_checkpoint, write_records
from transformers import PrinterCallback, Trainer, TrainingArguments

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample, prepare
from edgetune_runtime.records import read_entries
from edgetune_train.adapt import adapted_model
from edgetune_train.arguments import training_arguments
from edgetune_train.batch import IGNORE, Collator
from edgetune_train.packing import Packs
from edgetune_train.progress import LogSchedule
from edgetune_train.settings import TrainSettings
from edgetune_train.tower import as_published
from edgetune_train.trainer import GroundingTrainer
from edgetune_train.vision import FeatureInputs, PixelInputs

BATCH = 8
LAYOUTS = ("plain", "padded", "packed, first epoch", "packed")
COMPILED = ("packed, compiled, first epoch", "packed, compiled")
KEPT_MB = 4096


@dataclass
class System:
    """One way to train: makes a trainer for one pass, and what was measured of its passes."""

    name: str
    trainer: Callable[[], Trainer]
    attention: str
    held: int = 0
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    steps: int = 0
    loss: float = 0.0

    def run(self, *, count: bool) -> None:
        """Train one pass."""
        trainer = self.trainer()
        trainer.remove_callback(PrinterCallback)
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        began = time.perf_counter()
        result = trainer.train()
        if cuda:
            torch.cuda.synchronize()
        self.steps, self.loss = trainer.state.global_step, result.training_loss
        if count:
            self.seconds.append(time.perf_counter() - began)
            self.peaks.append((torch.cuda.max_memory_allocated() - before if cuda else 0) + self.held)


class Prepared(Dataset[dict[str, Any]]):
    """The records for plain `Trainer`: tokens, labels and pixels of one, made when asked for."""

    def __init__(self, samples: list[Sample], checkpoint: HubCheckpoint) -> None:
        self._samples = samples
        self._pixels = PixelInputs(checkpoint.spec)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._samples[index]
        labels = [token if learned else IGNORE for token, learned in zip(sample.ids, sample.learned, strict=True)]
        pixels = self._pixels(sample.images) if sample.images else {}
        return {"input_ids": sample.ids, "labels": labels, **pixels}


def pad(image_id: int, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Return the usual collator: sequences padded on the right, pictures one after the other."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)

        def filled(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])

        ids = filled("input_ids", pad_id)
        batch = {
            "input_ids": ids,
            "labels": filled("labels", IGNORE),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
            ),
            "mm_token_type_ids": (ids == image_id).long(),
        }
        for key in ("pixel_values", "image_grid_thw"):
            found = [row[key] for row in rows if key in row]
            if found:
                batch[key] = torch.cat(found)
        return batch

    return collate


def arguments_of(settings: TrainSettings, folder: Path, **others: Any) -> TrainingArguments:
    """Return what all systems train with: one pass, no checkpoints, a constant rate."""
    arguments = training_arguments(settings, folder, validate=False)
    constant = {"save_strategy": "no", "logging_strategy": "no", "lr_scheduler_type": "constant", "warmup_steps": 0}
    for key, value in {**constant, **others}.items():
        setattr(arguments, key, value)
    return arguments


def build(
    checkpoint: HubCheckpoint,
    samples: list[Sample],
    pack: int,
    precision: Any,
    folder: Path,
    bases: list[Any],
    layouts: tuple[str, ...] = LAYOUTS,
) -> list[System]:
    """Return the systems, each with a model of its own."""
    on_gpu = torch.cuda.is_available()
    systems = []
    for quantize in bases:
        for layout in layouts:
            packed = layout.startswith("packed")
            settings = TrainSettings(
                epochs=1, batch_size=BATCH, pack=pack if packed else 0, precision=precision,
                quantize=quantize, cache_mb=KEPT_MB, compile="compiled" in layout,
            )  # fmt: skip
            usually = {"dataloader_num_workers": 8 if on_gpu else 0, "dataloader_pin_memory": on_gpu}
            arguments = arguments_of(settings, folder, **(usually if layout == "plain" else {}))
            before = torch.cuda.memory_allocated() if on_gpu else 0
            torch.manual_seed(0)
            adapted = adapted_model(checkpoint, settings, arguments, start=None)
            adapted.model.to(arguments.device)
            collate = Collator.of(checkpoint, adapted.images, segments=adapted.segments)
            data: Any = Packs(samples, pack, seed=0, epochs=1) if packed else samples
            shared = {"model": adapted.model, "args": arguments}
            if layout == "plain":
                as_published(adapted.model.get_submodule(f"base_model.model.{checkpoint.modules.vision_root}"))
                usual = pad(collate.image_id, collate.pad_id)
                options = {**shared, "train_dataset": Prepared(samples, checkpoint), "data_collator": usual}
                make = _maker(Trainer, options)
            else:
                options = {**shared, "train_dataset": data, "data_collator": collate, "callbacks": [LogSchedule()]}
                make = _maker(GroundingTrainer, options | {"scorer": None})
                if layout.endswith("first epoch"):
                    make = _forgetful(make, adapted.model.get_base_model(), checkpoint)
            name = f"{'QLoRA' if quantize == 'nf4' else 'LoRA'} {layout}"
            held = torch.cuda.memory_allocated() - before if on_gpu else 0
            systems.append(System(name, make, adapted.attention, held))
    return systems


def _maker(kind: Any, options: dict[str, Any]) -> Callable[[], Trainer]:
    return lambda: kind(**options)


def _forgetful(make: Callable[[], Trainer], model: Any, checkpoint: HubCheckpoint) -> Callable[[], Trainer]:
    """Return a maker of trainers that have seen no picture yet."""

    def made() -> Trainer:
        trainer = make()
        collate: Any = trainer.data_collator
        trainer.data_collator = replace(collate, images=FeatureInputs(model, checkpoint.spec, KEPT_MB << 20))
        return trainer

    return made


def table(systems: list[System], records: int, layouts: int = len(LAYOUTS)) -> list[dict[str, Any]]:
    """Return a row a system; the ratio is of its speed over that of the plain one with the same base."""
    rows = []
    for start in range(0, len(systems), layouts):
        plain = statistics.median(systems[start].seconds)
        for system in systems[start : start + layouts]:
            seconds = statistics.median(system.seconds)
            ratios = [a / b for a, b in zip(systems[start].seconds, system.seconds, strict=True)]
            rows.append(
                {
                    "system": system.name,
                    "attention": system.attention,
                    "samples_per_second": round(records / seconds, 2),
                    "steps_per_second": round(system.steps / seconds, 3),
                    "ratio": round(plain / seconds, 2),
                    "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
                    "peak_gib": round(max(system.peaks) / 2**30, 2),
                    "steps": system.steps,
                    "loss": round(system.loss, 4),
                }
            )
    return rows


def main() -> None:
    """Measure and print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy sizes, for the CPU")
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pack", type=int, default=4096)
    parser.add_argument("--quantize", nargs="+", choices=("none", "nf4"), default=["none", "nf4"], help="bases")
    parser.add_argument("--compile", action="store_true", help="also with compiled language blocks")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if options.small else torch.bfloat16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limit = 256 * 256 if options.small else 1024 * 1024
        shape = "small" if options.small else "2b"
        random_checkpoint(folder / "model", shape, dtype=dtype, device=device, longest_edge=limit)
        checkpoint = HubCheckpoint.open(folder / "model")
        sides = (64, 256) if options.small else (128, 1280)
        entries = read_entries(write_records(folder / "data", options.records, sides=sides))
        samples = prepare(entries, checkpoint.family, checkpoint.spec, checkpoint.tokenizer)
        precision = "fp32" if options.small else "bf16"
        layouts = (*LAYOUTS, *COMPILED) if options.compile else LAYOUTS
        systems = build(checkpoint, samples, options.pack, precision, folder, options.quantize, layouts)
        for number in range(options.rounds + 1):
            for system in systems:
                system.run(count=number > 0)
    packs = Packs(samples, options.pack, seed=0, epochs=1)
    result = {
        "shape": shape,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "records": options.records,
        "tokens": {"mean": sum(len(s.ids) for s in samples) / len(samples), "most": max(len(s.ids) for s in samples)},
        "pack": options.pack,
        "utilization": round(packs.utilization, 3),
        "utilization_padded": round(packs.padded_utilization(BATCH), 3),
        "rows": table(systems, options.records, len(layouts)),
    }
    print("| " + " | ".join(result["rows"][0]) + " |\n|" + "---|" * len(result["rows"][0]))
    for row in result["rows"]:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

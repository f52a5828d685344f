"""ZeRO-3 by DeepSpeed with transformers and peft alone, without edgetune: does a training of several GPUs end?

    accelerate launch --config_file examples/accelerate/zero3.yaml --num_processes 2 \
        benchmarks/studies/zero3_alone.py CHECKPOINT [--steps 4]

A LoRA adapter on all linear layers of a Qwen3-VL's decoder learns random tokens, with the same picture before them in
every process; `Trainer` does the rest. `train_multi_gpu.py` runs it as the row `zero3 alone`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForImageTextToText, Trainer, TrainingArguments


class Asked(Dataset[dict[str, Any]]):
    """One picture of noise, followed by random tokens that are learned: what a Qwen3-VL model takes."""

    def __init__(self, folder: Path, count: int) -> None:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        vision, rows, columns = config.vision_config, 16, 20
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self._pixels = torch.randn(rows * columns, values, generator=torch.Generator().manual_seed(0))
        self._grid = torch.tensor([[1, rows, columns]])
        tokens = rows * columns // vision.spatial_merge_size**2
        self._picture = torch.tensor([[config.vision_start_token_id, *[config.image_token_id] * tokens]])
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        answer = torch.randint(100, 200, (1, 64), generator=torch.Generator().manual_seed(index))
        ids = torch.cat([self._picture, answer], 1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.cat([torch.full_like(self._picture, -100), answer], 1),
            "mm_token_type_ids": (ids == self._picture[0, -1]).long(),
            "pixel_values": self._pixels,
            "image_grid_thw": self._grid,
        }


def main() -> None:
    """Train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cpu", action="store_true", help="over gloo, for a trial without GPUs")
    options = parser.parse_args()
    if options.cpu:  # accelerate takes DeepSpeed to GPUs alone, though it knows CPUs (DS_ACCELERATOR=cpu)
        state: Any = PartialState
        state._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, max_steps=options.steps, logging_steps=1, save_strategy="no",
            report_to="none", remove_unused_columns=False, bf16=not options.cpu, use_cpu=False,
        )  # fmt: skip
        # After the arguments, so that the weights are divided while they are loaded.
        model: Any = AutoModelForImageTextToText.from_pretrained(
            options.checkpoint, dtype=torch.float32 if options.cpu else torch.bfloat16, local_files_only=True
        )
        # Layers of the decoder; those of the vision tower are called attn and linear_fc1.
        config: Any = LoraConfig(r=16, target_modules=r".*language_model.*_proj")
        data = Asked(options.checkpoint, 64)
        trainer = Trainer(get_peft_model(model, config), arguments, lambda rows: rows[0], data)
        trainer.train()
        if trainer.is_world_process_zero():
            losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
            print("loss, first to last step:", losses[0], "to", losses[-1], file=sys.stderr)


if __name__ == "__main__":
    main()

"""ZeRO-3 by DeepSpeed with transformers and peft alone, without edgetune: does a training of several GPUs end?

    accelerate launch --config_file examples/accelerate/zero3.yaml --num_processes 2 \
        benchmarks/studies/zero3_alone.py CHECKPOINT [--steps 4]

A LoRA adapter on all linear layers of the decoder learns random tokens, with the same picture before them in every
process; `Trainer` does the rest. `train_multi_gpu.py` runs it, with what it measures, as the row `zero3 alone`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments


class Asked(Dataset[dict[str, Any]]):
    """One question about one picture, followed by random tokens that are learned."""

    def __init__(self, folder: Path, count: int) -> None:
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8))
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        self._inputs = dict(processor(text=[text], images=[picture], return_tensors="pt"))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        answer = torch.randint(100, 200, (1, 64), generator=generator)
        ids = torch.cat([self._inputs["input_ids"], answer], 1)
        labels = torch.cat([torch.full_like(self._inputs["input_ids"], -100), answer], 1)
        found = {**self._inputs, "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in found:
            types = found["mm_token_type_ids"]
            found["mm_token_type_ids"] = torch.cat([types, types.new_zeros(answer.shape)], 1)
        return found


def main() -> None:
    """Train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cpu", action="store_true", help="over gloo, for a trial without GPUs")
    options = parser.parse_args()
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

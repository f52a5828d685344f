"""A LoRA adapter of random weights, for measurements of what merging costs.

python benchmarks/studies/random_adapter.py CHECKPOINT --output FOLDER [--rank 16]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path


def write_adapter(base: Path, folder: Path, rank: int) -> None:
    """Write an adapter of peft's on all linear layers of a checkpoint's decoder.

    Args:
        base: the checkpoint.
        folder: a new folder.
        rank: of the adapter.
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from edgetune_core.checkpoint import HubCheckpoint, tensor_shapes

    modules = HubCheckpoint.open(base).modules
    shapes = {modules.memory_name(name).removesuffix(".weight"): shape for name, shape in tensor_shapes(base).items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if re.fullmatch(modules.lora_targets, name):
            for part, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                values = 0.02 * torch.randn(size, generator=generator)
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules.lora_targets).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the checkpoint that it is for")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    write_adapter(options.base, options.output, options.rank)


if __name__ == "__main__":
    main()

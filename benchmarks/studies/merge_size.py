"""What merging costs at published sizes: seconds, and the memory at its peak.

    python benchmarks/studies/merge_size.py --shape qwen3-vl-8b --tokenizer FOLDER --folder FOLDER

A base of random weights and an adapter on all linear layers of its decoder are written, and merged by a process of its
own; the peak is the system's account of it (VmHWM). The folder takes twice the base's size.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shapes import SHAPES, write_checkpoint


def write_adapter(base: Path, folder: Path, rank: int) -> None:
    """Write an adapter of peft's on all linear layers of a checkpoint's decoder, with random weights."""
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


def merge(base: Path, adapter: Path, output: Path) -> dict[str, Any]:
    """Merge in this process; return seconds, those of all its cores, the peak of its memory in MB, and the proof."""
    import edgetune

    started = time.perf_counter()
    result = edgetune.merge(checkpoint=base, adapter=adapter, output=output).result
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert peak is not None
    written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}
    return seconds | {"peak_mb": int(peak[1]) / 1024, "written_mb": written / 2**20, "proof": result["proof"]}


def write(options: argparse.Namespace) -> tuple[Path, Path]:
    """Write base and adapter, where they are not there yet, and return their folders."""
    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, text=shape.text | {"num_hidden_layers": options.layers})
    if options.hidden:
        wide = {"hidden_size": options.hidden, "intermediate_size": 4 * options.hidden}
        shape = replace(shape, text=shape.text | wide, vision=shape.vision | {"out_hidden_size": options.hidden})
    base, adapter = options.folder / "base", options.folder / "adapter"
    if not base.exists():
        write_checkpoint(shape, options.tokenizer, base)
    if not adapter.exists():
        write_adapter(base, adapter, options.rank)
    return base, adapter


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-vl-8b")
    parser.add_argument("--layers", type=int, help="of the decoder, if not as many as the shape has")
    parser.add_argument("--hidden", type=int, help="width of the decoder, if not the shape's")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a tokenizer with Qwen's control tokens"
    )
    parser.add_argument("--folder", type=Path, required=True, help="where to write; what is there already is taken")
    return parser.parse_args(words)


def main() -> None:
    """Measure what the command line asks for, the merge in a process of its own."""
    if sys.argv[1:2] == ["--merge"]:
        print(json.dumps(merge(*map(Path, sys.argv[2:]))))
        return
    options = parse()
    command = [sys.executable, __file__, "--merge", *map(str, write(options)), str(options.folder / "merged")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(json.dumps({"shape": options.shape} | json.loads(done.stdout), indent=2))


if __name__ == "__main__":
    main()

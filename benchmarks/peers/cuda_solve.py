"""How long our GPTQ takes on a GPU beside GPTQModel's and llm-compressor's: one decoder, one set of samples.

    python benchmarks/peers/cuda_solve.py prepare --work W [--layers 8] [--samples 128] [--tokens 878]
    python benchmarks/peers/cuda_solve.py ours gptqmodel llmcompressor table --work W

The decoder has the widths of Qwen3-VL-2B's and no vision tower: Qwen3 of random bfloat16 weights, a small vocabulary,
random tokens. Each library quantizes it to 4 bits in symmetric groups of 128 with its defaults for GPTQ, twice, in a
process of its own; the second time counts, when kernels are compiled. Timed is what turns the loaded model into
quantized weights, without reading and saving. Libraries that cannot be imported are left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUP = 128
TOKENIZER = Path(__file__).parents[2] / "examples/tiny/model"
WIDTHS = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 4096,
}
Samples = list[dict[str, Any]]


def prepare(work: Path, layers: int, samples: int, tokens: int) -> None:
    """Write the checkpoint and the samples."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    fields: dict[str, Any] = {**WIDTHS, "num_hidden_layers": layers, "tie_word_embeddings": True, "dtype": "bfloat16"}
    model: Any = Qwen3ForCausalLM(Qwen3Config(**fields))
    model.to(torch.bfloat16).save_pretrained(work / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, work / "checkpoint" / name)
    ids = torch.randint(0, WIDTHS["vocab_size"], (samples, tokens))
    torch.save(ids, work / "samples.pt")


def load_samples(work: Path) -> Samples:
    """Keyword arguments of the model's forward, one conversation each."""
    import torch

    ids = torch.load(work / "samples.pt")
    return [{"input_ids": one[None], "attention_mask": torch.ones_like(one[None])} for one in ids]


def ours(checkpoint: Path, samples: Samples) -> Callable[[], object]:
    """Our solver, as `edgetune calibrate --device cuda --symmetric` runs it."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgetune_calibrate.activations import moved
    from edgetune_calibrate.quantize import DecoderSettings, quantize_decoder
    from edgetune_calibrate.solve import SolveSettings
    from edgetune_runtime.families.decoder import llama_modules

    modules = llama_modules(text_root="model", vision_root="", vision_blocks="", mergers=())
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.cuda().eval()
    settings = DecoderSettings(SolveSettings(group_size=GROUP, symmetric=True))
    return lambda: list(quantize_decoder(model, modules, moved(samples, "cuda"), settings, device="cuda"))


def gptqmodel(checkpoint: Path, samples: Samples) -> Callable[[], object]:
    """GPTQModel."""
    import torch
    from with_gptqmodel import import_library

    library = import_library()
    config = library.QuantizeConfig(bits=4, group_size=GROUP, sym=True, offload_to_disk=False, device="cuda:0")
    model = library.GPTQModel.load(str(checkpoint), config, dtype=torch.bfloat16)
    return lambda: model.quantize(samples, batch_size=1)


def llmcompressor(checkpoint: Path, samples: Samples) -> Callable[[], object]:
    """The GPTQ of llm-compressor."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.cuda().eval()
    loader: Any = DataLoader(samples, batch_size=1, collate_fn=lambda batch: batch[0], shuffle=False)  # type: ignore[arg-type]
    return lambda: oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(checkpoint),
        dataset=loader,
        recipe=[GPTQModifier(scheme="W4A16", targets=["Linear"], ignore=["lm_head"])],
        num_calibration_samples=len(samples),
        sequential_targets=["Qwen3DecoderLayer"],
    )


LIBRARIES = {"ours": ours, "gptqmodel": gptqmodel, "llmcompressor": llmcompressor}


def measure(library: str, work: Path) -> dict[str, Any]:
    """Quantize twice."""
    import torch

    samples, seconds = load_samples(work), []
    for _ in range(2):
        quantize = LIBRARIES[library](work / "checkpoint", samples)
        torch.cuda.synchronize()
        began = time.perf_counter()
        quantize()
        torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - began, 2))
    config = json.loads((work / "checkpoint/config.json").read_text(encoding="utf-8"))
    return {
        "library": library,
        "seconds": seconds[-1],
        "first": seconds[0],
        "layers": config["num_hidden_layers"],
        "samples": len(samples),
        "tokens": sum(sample["input_ids"].numel() for sample in samples),
        "peak_gpu_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "gpu": torch.cuda.get_device_name(),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown, each beside ours."""
    lines = ["| library | a block, s | of ours | peak GPU memory, GB |", "|---|---|---|---|"]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | |")
            continue
        ratio = f"{row['seconds'] / rows['ours']['seconds']:.2f}" if "seconds" in rows.get("ours", {}) else ""
        lines.append(f"| {name} | {row['seconds'] / row['layers']:.2f} | {ratio} | {row['peak_gpu_gb']} |")
    return "\n".join(lines)


def main() -> None:
    """Do the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=["prepare", *LIBRARIES, "table"])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=878, help="of a sample")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "solve.json"
    for step in options.steps:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if step == "prepare":
            prepare(options.work, options.layers, options.samples, options.tokens)
        elif step == "table":
            print(table(rows))
        elif options.inside:
            rows[step] = measure(step, options.work)
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        else:
            words = [sys.executable, Path(__file__).resolve(), step, "--inside", "--work", options.work.absolute()]
            done = subprocess.run(words, cwd=options.work, check=False, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                sys.stderr.write(done.stderr[-3000:])
                rows[step] = {"error": done.stderr.strip().splitlines()[-1][:200]}
                path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Quantize in a library's own environment: run by quantizers.py and perplexity.py, one process a library.

    python worker.py LIBRARY JOBS.json

JOBS.json is a list of jobs. Each names a `checkpoint`, a `calibration` file of samples (keyword arguments of the
model's forward), what to do (`method`, `bits`, `group_size`, `symmetric`, `preset`, and `wide`, the group size of
layers whose names end so), and an `output` stem. A job leaves OUTPUT.safetensors, the float32 parameters that differ
from the checkpoint's by the names that transformers gives them, and OUTPUT.json: processor seconds of all threads from
reading the checkpoint to the last weight (other programs do not lengthen them; compare them on one thread, for waiting
threads may spin), peak memory of the process (its libraries included), versions, or the error. Imports nothing of ours,
so that it runs beside any library.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

ADAPTERS = {
    "ours": "with_edgetune",
    "gptqmodel": "with_gptqmodel",
    "llmcompressor": "with_llmcompressor",
    "autoround": "with_autoround",
}


def main() -> None:
    """Run the jobs whose result is not there yet."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    library, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    adapter = importlib.import_module(ADAPTERS[library])
    import torch

    for job in jobs:
        output = Path(job["output"])
        output.parent.mkdir(parents=True, exist_ok=True)
        samples = torch.load(job["calibration"])
        for sample in samples:
            sample.pop("answer_start", None)
        torch.manual_seed(0)
        report: dict[str, Any] = {"threads": torch.get_num_threads()}
        reset_peak()
        began = time.process_time()
        try:
            tensors, report["cpu_seconds"] = run(adapter, job, samples, began)
            report["peak_mb"] = round(peak_mb())
            from safetensors.torch import save_file

            save_file(tensors, output.with_suffix(".safetensors"))
        except Exception as error:  # a library that cannot do it is a row with the reason
            traceback.print_exc()
            report["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        report["versions"] = {name: version(name) for name in (*adapter.PACKAGES, "torch", "transformers")}
        output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(output.name, report.get("cpu_seconds"), report.get("error", ""), flush=True)


def run(adapter: Any, job: dict[str, Any], samples: list[dict[str, Any]], began: float) -> tuple[dict[str, Any], float]:
    """The changed parameters, and the processor seconds until the library had quantized the last of them."""
    import torch

    quantized = adapter.quantize(job, samples)
    seconds = round(time.process_time() - began, 2)
    if callable(quantized):  # reading the result back is not the library's time
        quantized = quantized()
    for name, tensor in quantized.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in quantized.items()}, seconds


def load_model(checkpoint: str) -> Any:
    """The checkpoint's transformers model in float32."""
    import torch
    import transformers

    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    loader: Any = transformers.AutoModelForImageTextToText if "vision_config" in config else None
    return (loader or transformers.AutoModelForCausalLM).from_pretrained(checkpoint, dtype=torch.float32).eval()


def changed(model: Any, checkpoint: str) -> dict[str, Any]:
    """The parameters of a model that differ from its checkpoint's, the head's left out where it is tied."""
    import torch

    original = dict(load_model(checkpoint).named_parameters())
    now = dict(model.named_parameters())
    return {name: now[name].data for name, old in original.items() if not torch.equal(now[name].data, old.data)}


def group_size(job: dict[str, Any], name: str) -> int:
    """The group size of a layer."""
    wide: dict[str, int] = job.get("wide", {})
    return next((size for end, size in wide.items() if name.endswith(end)), int(job["group_size"]))


def reset_peak() -> None:
    """Let the kernel count this process's peak memory anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Largest resident size of this process since `reset_peak`, in MB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()

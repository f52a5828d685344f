"""Bundles in transformers, which reads weights by GPTQModel and compressed-tensors: read_transformers.py JOB.json ...

GPTQModel's plain kernels are chosen: those that it picks for a CPU compute in bfloat16.
"""

from __future__ import annotations

from typing import Any

from reader_job import answer_jobs, answer_with_torch, import_gptqmodel


def load(job: dict[str, Any]) -> Any:
    """The model, on the CPU."""
    import torch

    import_gptqmodel()
    from transformers import AutoModelForImageTextToText, AwqConfig, GPTQConfig

    awq: Any = AwqConfig
    plain: dict[str, Any] = {
        "gptq": {"quantization_config": GPTQConfig(bits=4, backend="gptq_torch")},
        "awq": {"quantization_config": awq(backend="torch_awq")},
        "compressed-tensors": {},
    }
    dtype = getattr(torch, job["dtype"])
    model: Any = AutoModelForImageTextToText.from_pretrained(
        job["folder"], dtype=dtype, device_map="cpu", **plain[job["format"]]
    )
    model.eval()
    # Its scales too; transformers forbids its own method on quantized models.
    return torch.nn.Module.to(model, dtype)


if __name__ == "__main__":
    packages = ("transformers", "gptqmodel", "compressed-tensors", "torch")
    answer_jobs(lambda job: answer_with_torch(load(job), job), *packages)

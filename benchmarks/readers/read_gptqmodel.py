"""Bundles in GPTQModel itself, with its plain kernels: python read_gptqmodel.py JOB.json ..."""

from __future__ import annotations

from typing import Any

from reader_job import answer_jobs, answer_with_torch, import_gptqmodel


def load(job: dict[str, Any]) -> Any:
    """The model, on the CPU."""
    import torch

    library = import_gptqmodel()
    backend = library.BACKEND.AWQ_TORCH if job["format"] == "awq" else library.BACKEND.GPTQ_TORCH
    dtype = getattr(torch, job["dtype"])
    loaded = library.GPTQModel.load(job["folder"], device="cpu", dtype=torch.float16, backend=backend)
    return torch.nn.Module.to(loaded.model.eval(), dtype)


if __name__ == "__main__":
    answer_jobs(lambda job: answer_with_torch(load(job), job), "gptqmodel", "transformers", "torch")

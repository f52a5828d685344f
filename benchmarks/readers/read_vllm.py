"""Bundles in vLLM: python read_vllm.py JOB.json ... vLLM's own processor prepares prompts and pictures.

vLLM 0.32's rotary kernel for CPUs takes LFM2's queries, whose heads are an axis of their own, for one head a token, and
turns the wrong ones. Its own code in torch, which it keeps beside every kernel, is named for that family.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reader_job import Answer, answer_jobs

ROTARY_IN_TORCH = ("lfm2_vl",)


def answers(job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers, one record at a time."""
    from PIL import Image
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]
    from vllm.distributed import cleanup_dist_env_and_memory  # type: ignore[import-not-found, unused-ignore]

    cleanup_dist_env_and_memory()  # what the job before left
    config = json.loads((Path(job["folder"]) / "config.json").read_text(encoding="utf-8"))
    choose_rotary(in_torch=config["model_type"] in ROTARY_IN_TORCH)
    model = LLM(
        model=job["folder"],
        dtype=job["dtype"],
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=1,
        limit_mm_per_prompt={"image": 1, "video": 0},
        skip_mm_profiling=True,
    )
    settings = SamplingParams(temperature=0, max_tokens=job["new_tokens"], stop_token_ids=job["stop"], detokenize=False)
    for record in job["records"]:
        with Image.open(record["picture"]) as picture:
            prompt = {"prompt": record["prompt"], "multi_modal_data": {"image": picture.convert("RGB")}}
        (found,) = model.generate([prompt], settings, use_tqdm=False)
        yield len(found.prompt_token_ids), list(found.outputs[0].token_ids)


def choose_rotary(*, in_torch: bool) -> None:
    """Have the models that are loaded next turn their queries in torch, or by the kernel for CPUs."""
    from vllm.model_executor.layers import rotary_embedding  # type: ignore[import-not-found, unused-ignore]

    kind = rotary_embedding.RotaryEmbedding
    if not hasattr(kind, "by_kernel"):
        kind.by_kernel = kind.forward_cpu
    kind.forward_cpu = kind.forward_native if in_torch else kind.by_kernel
    rotary_embedding._ROPE_DICT.clear()  # layers alike of the job before


if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    answer_jobs(answers, "vllm", "torch")

"""Bundles in vLLM: python read_vllm.py JOB.json ... vLLM's own processor prepares prompts and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from reader_job import Answer, answer_jobs


def answers(job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers, one record at a time."""
    from PIL import Image
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]
    from vllm.distributed import cleanup_dist_env_and_memory  # type: ignore[import-not-found, unused-ignore]

    cleanup_dist_env_and_memory()  # what the job before left
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

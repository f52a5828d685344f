"""OpenVINO GenAI: the model as optimum-intel exports it to int4 by its defaults.

In mode `pipeline` it is the pipeline for pictures, which answers phrase by phrase and here is told to compute attention
in its stateful graph, the faster way for one answer. In mode `batch` it is continuous batching: all phrases at once,
with the cache that keeps what was read of a prompt's beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from answering import Peer, Told, prompt, serve
from PIL import Image

CACHE_GB = 1


def load(settings: dict[str, Any]) -> Peer:
    """The pipeline, and how it answers."""
    properties = {"INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY"}
    batch = settings["mode"] == "batch"
    if batch:
        cache = openvino_genai.SchedulerConfig()
        cache.enable_prefix_caching = True
        cache.cache_size = CACHE_GB
        cache.max_num_batched_tokens = settings["context"]
        model, device = settings["model"], "CPU"
        pipeline = openvino_genai.ContinuousBatchingPipeline(model, cache, device, properties, {}, properties)
    else:
        pipeline = openvino_genai.VLMPipeline(settings["model"], "CPU", **properties, ATTENTION_BACKEND="SDPA")

    def answer(picture: Path, words: list[str], tokens: int) -> Told:
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, apply_chat_template=False)
        with Image.open(picture) as opened:
            pixels = openvino.Tensor(np.asarray(opened.convert("RGB"))[None])
        prompts = [prompt(settings["chat"], each) for each in words]
        if batch:
            several = [config] * len(words)
            results = pipeline.generate(prompts, images=[[pixels]] * len(words), generation_config=several)
        else:
            results = [pipeline.generate(each, images=[pixels], generation_config=config) for each in prompts]
        measures = [result.perf_metrics for result in results]
        generated = [measure.get_num_generated_tokens() for measure in measures]
        if batch:  # each result tells those of all
            generated = [count // len(words) for count in generated]
        return Told(
            [measure.get_num_input_tokens() for measure in measures],
            generated,
            measures[0].get_ttft().mean / 1000,
            None if batch and len(words) > 1 else measures[0].get_tpot().mean / 1000,
        )

    how = "ContinuousBatchingPipeline, prefix cache" if batch else "VLMPipeline"
    return Peer(answer, how, ("openvino", "openvino-genai"))


if __name__ == "__main__":
    serve(load)

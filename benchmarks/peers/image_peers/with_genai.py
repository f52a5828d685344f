"""onnxruntime-genai on the bundle's own graphs, joined as `benchmarks/readers/read_genai.py` joins them.

Its own processor reads the picture, again for each phrase: it keeps neither a picture's features nor what was read of a
prompt's beginning for another prompt.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import onnxruntime_genai
from answering import Peer, Told, prompt, serve, since


def load(settings: dict[str, Any]) -> Peer:
    """The model, and how it answers."""
    config = onnxruntime_genai.Config(settings["model"])
    options = {"session_options": {"intra_op_num_threads": settings["threads"]}}
    config.overlay(json.dumps({"model": dict.fromkeys(("decoder", "embedding", "vision"), options)}))
    model = onnxruntime_genai.Model(config)
    processor = model.create_multimodal_processor()

    def answer(picture: Path, words: list[str], tokens: int) -> Told:
        began, counts, ids = time.perf_counter(), [], []
        first: tuple[float, float | None] | None = None
        for each in words:
            images = onnxruntime_genai.Images.open(str(picture))
            inputs = processor(prompt(settings["chat"], each), images=images)
            parameters = onnxruntime_genai.GeneratorParams(model)
            counts.append(int(inputs["input_ids"].as_numpy().size))
            total = counts[-1] + tokens
            parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
            generator = onnxruntime_genai.Generator(model, parameters)
            generator.set_inputs(inputs)
            times: list[float] = []
            for _ in range(tokens):
                generator.generate_next_token()
                times.append(time.perf_counter())
                if first is None:
                    ids.append(int(generator.get_next_tokens()[0]))
            first = first or since(times, began)
        assert first is not None
        return Told(counts, [tokens] * len(words), *first, ids)

    return Peer(answer, "joined graphs of the bundle", ("onnxruntime-genai", "onnxruntime"))


if __name__ == "__main__":
    serve(load)

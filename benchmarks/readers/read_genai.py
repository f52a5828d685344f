"""A bundle in onnxruntime-genai: python read_genai.py JOB.json, text only.

Its pipeline of embedding and decoder is set up by a genai_config.json beside the bundle's files. A decoder with
DeepStack wants inputs that this engine does not know; for text they are zeros, made by a graph that joins the pipeline.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
from onnx import TensorProto, helper
from reader_job import Answer, read_job, tell

LONGEST = 1024


def answers(folder: Path, job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers."""
    write_config(folder)
    model = onnxruntime_genai.Model(str(folder))
    for record in job["records"]:
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=LONGEST, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array(record["ids"], np.int32))
        tokens: list[int] = []
        while len(tokens) < job["new_tokens"] and not (tokens and tokens[-1] in job["stop"]):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        yield len(record["ids"]), tokens


def write_config(folder: Path) -> None:
    """Describe a bundle's graphs in the engine's own words."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    layers, hidden = text["num_hidden_layers"], text["hidden_size"]
    cache = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    extra = _deepstack_zeros(folder, hidden)
    stages = {
        "embeddings": ("embed_tokens", ["input_ids"], ["inputs_embeds"]),
        **({"deepstack": ("deepstack_zeros", ["inputs_embeds"], extra)} if extra else {}),
        "text": (
            "decoder_model_merged",
            ["inputs_embeds", "attention_mask", "position_ids", *extra, *(f"past_key_values.{name}" for name in cache)],
            ["logits", *(f"present.{name}" for name in cache)],
        ),
    }
    decoder = {
        "session_options": {"provider_options": []},
        "head_size": text.get("head_dim") or hidden // text["num_attention_heads"],
        "hidden_size": hidden,
        **{name: text[name] for name in ("num_attention_heads", "num_hidden_layers", "num_key_value_heads")},
        "inputs": {
            **{name: name for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "pipeline": [
            {name: {"filename": f"onnx/{file}.onnx", "inputs": inputs, "outputs": outputs}}
            for name, (file, inputs, outputs) in stages.items()
        ],
    }
    ids = ("image_token_id", "video_token_id", "vision_start_token_id")
    model = {
        "type": config["model_type"],
        "bos_token_id": 0,
        "eos_token_id": [text["vocab_size"] - 1],  # the loop above looks for the job's own
        "pad_token_id": 0,
        "context_length": LONGEST,
        "vocab_size": text["vocab_size"],
        **{name: config[name] for name in ids},
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": LONGEST, "past_present_share_buffer": False}
    (folder / "genai_config.json").write_text(
        json.dumps({"model": model, "search": search}, indent=1), encoding="utf-8"
    )


def _deepstack_zeros(folder: Path, hidden: int) -> list[str]:
    """Write the graph that makes zeros for the decoder's DeepStack inputs; returns their names."""
    decoder = onnx.load(folder / "onnx/decoder_model_merged.onnx", load_external_data=False)
    names = [value.name for value in decoder.graph.input if value.name.startswith("deepstack")]
    shape: list[str | int | None] = ["batch_size", "length", hidden]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["inputs_embeds", "zero"], [name]) for name in names],
        "deepstack_zeros",
        [helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [zero],
    )
    if names:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, folder / "onnx/deepstack_zeros.onnx")
    return names


if __name__ == "__main__":
    asked = read_job()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(asked["folder"], Path(place) / "bundle"))
        tell(answers(copy, asked))

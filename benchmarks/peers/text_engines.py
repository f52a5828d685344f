"""Text generation by other ONNX engines from the files of our bundles, compared with our own loop."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, NEW = list(range(20, 44)), 12
"""Token ids, and how many to generate."""


def ours(bundle: Path, following: int) -> list[int]:
    """Our tokens; `following` is the rotary position of the first generated one."""
    from edgetune_runtime.backends.onnx.engine import OnnxBackend
    from edgetune_runtime.decode import Prompt, greedy

    graphs = {
        role: bundle / f"onnx/{file}.onnx"
        for role, file in (("vision", "vision_encoder"), ("embed", "embed_tokens"), ("decoder", "decoder_model_merged"))
    }
    backend = OnnxBackend(**graphs, threads=2)  # type: ignore[arg-type]
    positions = np.tile(np.arange(len(PROMPT)), (3, 1))
    prompt = Prompt(np.array(PROMPT), positions, following, image_token=-1, image=None)
    return [int(token) for token in greedy(backend, prompt, stop=(), max_new_tokens=NEW, max_length=64)]


def genai(bundle: Path) -> dict[str, Any]:
    """onnxruntime-genai's pipeline of embedding and decoder, set up by a genai_config.json beside the bundle's files.

    A decoder with DeepStack wants inputs that this engine does not know; for text they are zeros, made by a graph of
    three nodes that joins the pipeline.
    """
    import onnxruntime_genai

    folder = bundle.with_name("genai")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, folder)
    _write_genai_config(folder)
    try:
        model = onnxruntime_genai.Model(str(folder))
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=64, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array(PROMPT, np.int32))
        tokens = []
        for _ in range(NEW):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
    except RuntimeError as error:
        return {"result": f"does not run: {str(error).splitlines()[0][:200]}"}
    same = tokens == ours(bundle, len(PROMPT))
    return {"kernel": "MatMulNBits", "result": f"{NEW} same tokens" if same else f"other tokens: {tokens}"}


def _write_genai_config(folder: Path) -> None:
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
        "eos_token_id": [text["vocab_size"] - 1],
        "pad_token_id": 0,
        "context_length": 1024,
        "vocab_size": text["vocab_size"],
        **{name: config[name] for name in ids},
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": 64, "past_present_share_buffer": False}
    (folder / "genai_config.json").write_text(
        json.dumps({"model": model, "search": search}, indent=1), encoding="utf-8"
    )


def _deepstack_zeros(folder: Path, hidden: int) -> list[str]:
    """Write the graph that makes zeros for the decoder's DeepStack inputs; returns their names."""
    import onnx
    from onnx import TensorProto, helper

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


def transformers_js(bundle: Path, node: Path) -> dict[str, Any]:
    """transformers.js under Node, from local files."""
    script = node / "text.mjs"
    shutil.copy(Path(__file__).with_name("text.mjs"), script)
    command = ["node", str(script), str(bundle.parent), bundle.name, json.dumps(PROMPT), str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next(line for line in done.stderr.splitlines() if "Error:" in line)
        return {"result": f"does not run: {reason[:200]}"}
    found = json.loads(done.stdout.splitlines()[-1])
    if found["tokens"] == ours(bundle, len(PROMPT)):
        return {"kernel": "MatMulNBits", "result": f"{NEW} same tokens"}
    # What the engine does with the files is right if ours gives the same at the positions that it chose.
    if found["tokens"] == ours(bundle, found["following"]):
        remark = f"it gives the first new token position {found['following']} where the prompt has {len(PROMPT)}"
        return {"kernel": "MatMulNBits", "result": f"{NEW} same tokens at its own positions: {remark}"}
    return {"result": f"other tokens: {found['tokens']}"}

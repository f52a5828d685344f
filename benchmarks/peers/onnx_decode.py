"""Decode speed of our ONNX int4 loop beside onnxruntime-genai's, on the same weights, threads and prompt.

    python benchmarks/peers/onnx_decode.py --checkpoint DIR [--threads 2] [--new-tokens 128] [--runs 7]

The peer's model builder drops Qwen3-VL's DeepStack, so the comparison is on text: the text decoder is saved as the
plain Qwen3 it is without images and built for the peer from there; then our int4 weights are put into its graph. Both
sides use symmetric int4 in blocks of 32, the head included. Each engine lives in a process of its own, the two take
turns, and medians are compared. Texts are compared with float32 activations (accuracy_level 1): with int8 ones, which
the speeds are measured with, rounding decides between tokens of nearly equal probability. `--random` makes a checkpoint
of a size that matters instead of reading one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

PROMPT_TOKENS = 64
BLOCK: Final = 32


def main() -> None:
    """Prepare both engines, run them in turns and print a JSON report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a Qwen3-VL checkpoint")
    source.add_argument("--random", action="store_true", help="a random checkpoint with a decoder of 0.23B weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--serve", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    if "--serve" in sys.argv:  # a worker process of ours
        serve(json.loads(sys.argv[2]))
        return
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = random_checkpoint(folder / "checkpoint") if options.random else options.checkpoint
        build_ours(checkpoint, folder / "ours")
        build_peer(checkpoint, folder / "peer")
        share_weights(folder / "ours", folder / "peer")
        print(json.dumps(compare(folder, options), indent=2))


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s of both engines by run, their medians and ratio, and how many tokens of their texts agree."""
    engines = ("ours", "peer")
    settings = {"threads": options.threads, "new_tokens": options.new_tokens}

    def start(name: str) -> Worker:
        return Worker({"engine": name, "folder": str(folder / name), **settings})

    workers = {name: start(name) for name in engines}
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(options.runs + 1):
        for name in engines if turn % 2 else reversed(engines):
            speed = workers[name].run()["tokens_per_second"]
            if turn:  # the first turn warms up
                speeds[name].append(speed)
    for worker in workers.values():
        worker.close()
    texts = []
    for name, graph in (("ours", "onnx/decoder_model_merged.onnx"), ("peer", "model.onnx")):
        keep_activations(folder / name / graph)
        worker = start(name)
        texts.append(worker.run()["tokens"])
        worker.close()
    medians = {name: statistics.median(speeds[name]) for name in engines}
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b), options.new_tokens)
    return {
        **settings,
        "tokens_per_second": speeds,
        "median": medians,
        "ratio": medians["ours"] / medians["peer"],
        "ratio_of_best": max(speeds["ours"]) / max(speeds["peer"]),
        "equal_tokens": same,
    }


def keep_activations(path: Path) -> None:
    """Make a graph's int4 products use float32 activations."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    onnx.save(model, path)


class Worker:
    """A process that holds one engine and runs it on demand."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> dict[str, Any]:
        """Generate once: the tokens and the decode speed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(settings: dict[str, Any]) -> None:
    """Answer every line on stdin with one generation, timed from its first token to its last."""
    prompt = np.random.default_rng(0).integers(20, 500, PROMPT_TOKENS)
    generate = {"ours": load_ours, "peer": load_peer}[settings["engine"]](Path(settings["folder"]), settings)
    for _ in sys.stdin:
        tokens, times = [], []
        for token in generate(prompt):
            tokens.append(int(token))
            times.append(time.perf_counter())
        speed = (len(tokens) - 1) / (times[-1] - times[0])
        print(json.dumps({"tokens": tokens, "tokens_per_second": speed}), flush=True)


def load_ours(folder: Path, settings: dict[str, Any]) -> Any:
    """Our runtime's loop."""
    from edgetune_runtime.backends.onnx.engine import OnnxBackend
    from edgetune_runtime.decode import Prompt, greedy

    backend = OnnxBackend(
        vision=folder / "onnx/vision_encoder.onnx",
        embed=folder / "onnx/embed_tokens.onnx",
        decoder=folder / "onnx/decoder_model_merged.onnx",
        threads=settings["threads"],
    )

    def generate(prompt: Any) -> Any:
        positions = np.tile(np.arange(len(prompt)), (3, 1))
        text = Prompt(prompt, positions, len(prompt), image_token=-1, image=None)
        return greedy(backend, text, stop=(), max_new_tokens=settings["new_tokens"], max_length=4096)

    return generate


def load_peer(folder: Path, settings: dict[str, Any]) -> Any:
    """onnxruntime-genai's loop."""
    import onnxruntime_genai as genai

    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = settings["threads"]
    config["model"]["eos_token_id"] = [config["model"]["vocab_size"] - 1]
    (folder / "genai_config.json").write_text(json.dumps(config))
    model = genai.Model(str(folder))

    def generate(prompt: Any) -> Any:
        parameters = genai.GeneratorParams(model)
        total = len(prompt) + settings["new_tokens"]
        parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt.astype(np.int32))
        for _ in range(settings["new_tokens"]):
            generator.generate_next_token()
            yield generator.get_next_tokens()[0]

    return generate


def build_ours(checkpoint: Path, output: Path) -> None:
    """Export with our exporter."""
    import torch

    from edgetune_export.decoder.embed import build_embed
    from edgetune_export.decoder.weights import DecoderWeights
    from edgetune_export.graph import save_model
    from edgetune_export.job import ExportJob
    from edgetune_export.onnx_bundle import FILES, export_onnx
    from edgetune_export.settings import ExportSettings
    from edgetune_runtime.quant.blocks import BlockFormat, round_to_nearest

    output.mkdir()
    options = ExportSettings(precision="int4", head_precision="int4", block_size=BLOCK, symmetric=True)
    job = ExportJob.open(checkpoint, output, options)
    export_onnx(job)
    # The peer reads a tied token table from the int4 head, and an untied one in float32; ours would be int8.
    model, values = job.checkpoint.model, job.checkpoint.streamed.values
    embedding = model.get_input_embeddings().weight
    table = values(embedding).float()
    if model.config.tie_word_embeddings:
        table = torch.from_numpy(round_to_nearest(table.numpy(), BlockFormat(4, BLOCK, symmetric=True)).dequantize())
    decoder = DecoderWeights(
        model,
        job.checkpoint.modules,
        layers_format=None,
        head_format=None,
        values=lambda one: table if one is embedding else values(one),
    )
    save_model(build_embed(decoder, "fp32"), output / FILES["embed"])


def build_peer(checkpoint: Path, output: Path) -> None:
    """Save the text decoder as Qwen3 and build it with the peer's model builder."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    text = whole.config.get_text_config()
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
    ]
    config = Qwen3Config(
        **{name: getattr(text, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]},
        tie_word_embeddings=whole.config.tie_word_embeddings,
        bos_token_id=0,
        eos_token_id=text.vocab_size - 1,
        dtype="float32",
    )
    plain = Qwen3ForCausalLM(config)
    plain.model.load_state_dict(whole.model.language_model.state_dict())
    plain.lm_head.load_state_dict(whole.lm_head.state_dict())
    source = output.with_name("peer_checkpoint")
    plain.save_pretrained(source)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(source)
    settings = [f"int4_block_size={BLOCK}", "int4_is_symmetric=true", "int4_accuracy_level=4"]
    places = ["-i", str(source), "-o", str(output), "-c", str(output.with_name("peer_cache"))]
    command = [
        "-m",
        "onnxruntime_genai.models.builder",
        *places,
        "-p",
        "int4",
        "-e",
        "cpu",
        "--extra_options",
        *settings,
    ]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if built.returncode:
        raise SystemExit(f"the peer's builder failed:\n{built.stderr[-2000:]}")


def share_weights(ours: Path, peer: Path) -> None:
    """Put our int4 weights into the peer's graph: both round to nearest, but break ties (|min| = max) differently."""
    import onnx_ir as ir

    tensors = {
        name: value.const_value.numpy()
        for name, value in ir.load(ours / "onnx/decoder_model_merged.onnx").graph.initializers.items()
        if value.const_value is not None
    }
    model = ir.load(peer / "model.onnx")
    ir.external_data.load_to_model(model)
    for name, value in model.graph.initializers.items():
        layer, _, kind = name.partition(".MatMul.weight_")
        if not kind:
            continue
        part = {"Q4": "weight_codes", "scales": "weight_scales"}[kind]
        role = layer.replace("attn.", "self_attn.").replace("self_attn.qkv_proj", "self_attn.q_proj_k_proj_v_proj")
        if role.endswith(("gate_proj", "up_proj")):
            joint = tensors[f"{role.rpartition('.')[0]}.gate_proj_up_proj.{part}"]
            array = np.split(joint, 2)[role.endswith("up_proj")]
        else:
            array = tensors[f"{role}.{part}"]
        assert value.const_value is not None and value.const_value.shape.numpy() == array.shape, name
        value.const_value = ir.tensor(array, name=name)
    ir.save(model, peer / "model.onnx", external_data="model.onnx.data")


def random_checkpoint(folder: Path) -> Path:
    """A Qwen3-VL checkpoint with random weights, 0.23B in the decoder, from the test builders."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from builders import build_qwen3_vl  # type: ignore[import-not-found, unused-ignore]

    build_qwen3_vl(folder, layers=24, hidden=1024, heads=16, kv_heads=8, head_dim=64)
    return folder


if __name__ == "__main__":
    main()

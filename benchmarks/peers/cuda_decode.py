"""Decode speed of the engine "triton" on a GPU beside onnxruntime-genai with its CUDA graph, and transformers.

    python benchmarks/peers/cuda_decode.py --tokenizer DIR [--new-tokens 256] [--runs 7] [--layers 28]

A Qwen3 decoder with random weights, of the shape of Qwen3-1.7B, is built for the peer with its own model builder (int4,
symmetric, groups of 128, head included, CUDA graph enabled). Then ours takes the int4 weights out of the peer's graph,
so both multiply with the same values. transformers computes the unquantized model in bfloat16. Each engine lives in a
process of its own, they take turns, batch 1, and medians are compared:

    ours             the runtime's decode loop: tokens stay on the GPU, the host looks every 16
    ours, logits     step by step, logits go to the host at every token
    ours, random     as ours with random codes: of all engines the one that needs no peer and no checkpoint
    genai            generate_next_token with the builder's default int4 kernels
    genai, fpA_intB  the same graph with onnxruntime's other int4 kernels (session option ep.cuda.fpa_intb_gemm)
    genai, fp16      the unquantized model in float16
    transformers     a loop over the model with a dynamic cache

Needs a GPU, onnxruntime-gpu, onnxruntime-genai-cuda, and a folder with any tokenizer, which the builder copies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cuda_models import build_checkpoint, build_peer, our_backend, random_backend

RANDOM = "ours, random"
ENGINES = ("ours", "ours, logits", RANDOM, "genai", "genai, fpA_intB", "genai, fp16", "transformers")
PROMPT_TOKENS = 64

Run = Callable[[Any, int], tuple[list[int], float]]
"""From a prompt and a number of new tokens to these, and the seconds from the first to the last."""


def main() -> None:
    """Build, run the engines in turns and print a JSON report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    if "--serve" in sys.argv:  # a worker process of ours
        serve(*sys.argv[2:5])
        return
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if set(options.engines) != {RANDOM}:
            if options.tokenizer is None:
                parser.error("--tokenizer is needed to build the peer's model")
            build_checkpoint(folder / "checkpoint", options.tokenizer, options.layers)
            build_peer(folder)
        if "genai, fp16" in options.engines:
            build_peer(folder, "fp16", "peer_fp16")
        print(json.dumps(compare(folder, options), indent=2))


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s by run and medians; an engine that fails is reported with its last words."""
    workers = {name: Worker(name, folder, options.layers) for name in options.engines}
    speeds: dict[str, list[float]] = {name: [] for name in workers}
    tokens: dict[str, list[int]] = {}
    failed: dict[str, str] = {}
    for turn in range(options.runs + 1):
        for name, worker in workers.items():
            if name in failed:
                continue
            reply = worker.run(64 if name == "transformers" else options.new_tokens)
            if "failed" in reply:
                failed[name] = reply["failed"]
            elif turn:  # the first turn warms up
                speeds[name].append(round(reply["tokens_per_second"], 1))
                tokens[name] = reply["tokens"]
    for worker in workers.values():
        worker.close()
    first = tokens.get("ours", tokens.get(RANDOM, []))
    return {
        "layers": options.layers,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": options.new_tokens,
        "tokens_per_second": speeds,
        "median": {name: statistics.median(values) for name, values in speeds.items() if values},
        "tokens_equal_to_ours_until": {
            name: next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), len(other))
            for name, other in tokens.items()
        },
        "failed": failed,
    }


class Worker:
    """A process that holds one engine and runs it on demand."""

    def __init__(self, engine: str, folder: Path, layers: int) -> None:
        self._errors = folder / f"{engine}.log"
        command = [sys.executable, __file__, "--serve", engine, str(folder), str(layers)]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def run(self, new_tokens: int) -> dict[str, Any]:
        """Generate once: the tokens and the decode speed, or why that failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{new_tokens}\n")
            self._process.stdin.flush()
            reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self._process.wait()
            return {"failed": self._errors.read_text()[-600:]}
        return reply

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.communicate()


def serve(engine: str, place: str, layers: str) -> None:
    """Answer every line on stdin, a number of tokens, with one generation."""
    folder = Path(place)
    load = {
        "ours": load_ours,
        "ours, logits": load_logits,
        RANDOM: lambda folder: load_ours(folder, random_backend(int(layers))),
        "genai": load_peer,
        "genai, fpA_intB": lambda folder: load_peer(folder, fpa_intb=True),
        "genai, fp16": lambda folder: load_peer(folder, "peer_fp16"),
        "transformers": load_transformers,
    }
    run: Run = load[engine](folder)
    prompt = np.random.default_rng(0).integers(20, 2000, PROMPT_TOKENS)
    for line in sys.stdin:
        tokens, seconds = run(prompt, int(line))
        print(json.dumps({"tokens": tokens, "tokens_per_second": (len(tokens) - 1) / seconds}), flush=True)


def timed(tokens: Iterator[int]) -> tuple[list[int], float]:
    """Collect tokens, and the seconds from the first to the last."""
    found = [next(tokens)]
    started = time.perf_counter()
    found += tokens
    return found, time.perf_counter() - started


def load_ours(folder: Path, backend: Any = None) -> Run:
    """The runtime's loop over our engine, with the peer's weights unless it is given."""
    from edgetune_runtime.decode import greedy

    backend = backend or our_backend(folder)

    def run(prompt: Any, count: int) -> tuple[list[int], float]:
        return timed(greedy(backend, text(prompt), stop=(), max_new_tokens=count, max_length=4096))

    return run


def load_logits(folder: Path) -> Run:
    """Our engine step by step, for who needs the logits."""
    from edgetune_runtime.decode import prefill, step

    backend = our_backend(folder)

    def tokens(prompt: Any, count: int) -> Iterator[int]:
        logits = prefill(backend, text(prompt), room=count)
        for place in range(len(prompt), len(prompt) + count - 1):
            yield (token := int(logits.argmax()))
            logits = step(backend, token, place)
        yield int(logits.argmax())

    return lambda prompt, count: timed(tokens(prompt, count))


def text(ids: Any) -> Any:
    """Tokens as a prompt without images."""
    from edgetune_runtime.decode import Prompt

    return Prompt(ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids), image_token=-1, image=None)


def load_peer(folder: Path, name: str = "peer", *, fpa_intb: bool = False) -> Run:
    """onnxruntime-genai's loop."""
    import onnxruntime_genai as genai

    source, place = folder / name, folder / f"{name}_{'fpa' if fpa_intb else 'raw'}"
    if not place.exists():
        place.mkdir()
        for path in source.iterdir():
            if path.name != "genai_config.json":
                (place / path.name).symlink_to(path)
        config = json.loads((source / "genai_config.json").read_text())
        if fpa_intb:
            config["model"]["decoder"]["session_options"]["ep.cuda.fpa_intb_gemm"] = "1"
        (place / "genai_config.json").write_text(json.dumps(config))
    model = genai.Model(str(place))

    def run(prompt: Any, count: int) -> tuple[list[int], float]:
        parameters = genai.GeneratorParams(model)
        total = len(prompt) + count
        parameters.set_search_options(max_length=total, min_length=total, do_sample=False, batch_size=1)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt.astype(np.int32))

        def tokens() -> Iterator[int]:
            for _ in range(count):
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])

        return timed(tokens())

    return run


def load_transformers(folder: Path) -> Run:
    """The unquantized model in transformers, as its users run it."""
    import torch
    from transformers import AutoModelForCausalLM

    source: Any = AutoModelForCausalLM
    model = source.from_pretrained(folder / "checkpoint", dtype=torch.bfloat16).to("cuda").eval()

    @torch.inference_mode()
    def tokens(prompt: Any, count: int) -> Iterator[int]:
        ids, cache = torch.from_numpy(prompt)[None].to("cuda"), None
        for _ in range(count):
            result = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = result.logits[:, -1].argmax(-1, keepdim=True), result.past_key_values
            yield int(ids)

    return lambda prompt, count: timed(tokens(prompt, count))


if __name__ == "__main__":
    main()

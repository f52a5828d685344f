"""What cuda_decode.py runs: a random Qwen3 checkpoint, the peer's int4 model of it, and ours with the same weights.

Or ours alone, with random codes: what a step takes does not depend on values.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from edgetune_runtime.backends.triton.backend import TorchBackend
from edgetune_runtime.backends.triton.model import Decoder, Layer, Sizes
from edgetune_runtime.backends.triton.packing import PackedLinear, pack, stack
from edgetune_runtime.backends.triton.weights import rope_matrix
from edgetune_runtime.bundle import Rope
from edgetune_runtime.quant.blocks import BlockWeight, unpack_nibbles

GROUP = 128
SIZES: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
NORM_EPS = 1e-6
THETA = 1_000_000.0


def build_checkpoint(folder: Path, tokenizer: Path, layers: int, device: str = "cuda") -> None:
    """Save a random Qwen3 model."""
    config = Qwen3Config(
        **SIZES,
        rms_norm_eps=NORM_EPS,
        num_hidden_layers=layers,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=SIZES["vocab_size"] - 1,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def build_peer(folder: Path, precision: str = "int4", name: str = "peer") -> None:
    """Build the peer's model ("int4" or "fp16") with its model builder."""
    settings = ["enable_cuda_graph=true", "shared_embeddings=false"]
    if precision == "int4":
        settings += [f"block_size={GROUP}", "is_symmetric=true"]
    places = ["-i", str(folder / "checkpoint"), "-o", str(folder / name), "-c", str(folder / "cache")]
    command = ["-m", "onnxruntime_genai.models.builder", *places, "-p", precision, "-e", "cuda"]
    built = subprocess.run([sys.executable, *command, "--extra_options", *settings], capture_output=True, text=True)
    if built.returncode:
        raise SystemExit(f"the peer's builder failed:\n{built.stdout[-1000:]}\n{built.stderr[-2000:]}")


def our_backend(folder: Path, device: str = "cuda") -> TorchBackend:
    """Our engine with the int4 weights of the peer's graph, and the checkpoint's embeddings and norms."""
    place = torch.device(device)
    model = ir.load(folder / "peer" / "model.onnx")
    ir.external_data.load_to_model(model)
    found: dict[str, dict[str, Any]] = {}
    for name, value in model.graph.initializers.items():
        layer, _, kind = name.partition(".MatMul.weight_")
        if kind and value.const_value is not None:
            found.setdefault(layer, {})[kind] = value.const_value.numpy()
    tensors = load_file(folder / "checkpoint" / "model.safetensors")
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))

    def linear(name: str) -> PackedLinear:
        parts = found[name]
        scales = parts["scales"].astype(np.float32)
        codes = unpack_nibbles(next(array for kind, array in parts.items() if kind.startswith("Q4")))
        codes = codes.reshape(len(scales), -1, GROUP)
        scales = scales.reshape(codes.shape[:2])
        return pack(BlockWeight(codes, scales, None, 4, codes.shape[1] * GROUP)).to(place)

    def stacked(prefix: str, fused: str, *names: str) -> PackedLinear:
        if f"{prefix}.{fused}" in found:
            return linear(f"{prefix}.{fused}")
        return stack([linear(f"{prefix}.{name}") for name in names])

    def norm(name: str) -> torch.Tensor:
        return tensors[f"{name}.weight"].float().to(place)

    def block(number: int) -> Layer:
        prefix = f"model.layers.{number}"
        attention, mlp = f"{prefix}.attn", f"{prefix}.mlp"
        return Layer(
            input_norm=norm(f"{prefix}.input_layernorm"),
            qkv=stacked(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"),
            q_norm=norm(f"{prefix}.self_attn.q_norm"),
            k_norm=norm(f"{prefix}.self_attn.k_norm"),
            out=linear(f"{attention}.o_proj"),
            post_norm=norm(f"{prefix}.post_attention_layernorm"),
            gate_up=stacked(mlp, "gate_up_proj", "gate_proj", "up_proj"),
            down=linear(f"{mlp}.down_proj"),
        )

    sizes = Sizes(
        layers=layers,
        hidden=SIZES["hidden_size"],
        intermediate=SIZES["intermediate_size"],
        heads=SIZES["num_attention_heads"],
        kv_heads=SIZES["num_key_value_heads"],
        head_dim=SIZES["head_dim"],
        vocabulary=SIZES["vocab_size"],
        norm_eps=NORM_EPS,
    )
    with ThreadPoolExecutor() as pool:
        blocks = tuple(pool.map(block, range(layers)))
    size = SIZES["head_dim"]
    rope = rope_matrix(Rope(THETA, (size // 2, 0, 0), False, size, size)).to(place)
    table = tensors["model.embed_tokens.weight"].to(place, torch.float16)
    return TorchBackend(Decoder(sizes, torch.float16, rope, table, blocks, norm("model.norm"), linear("lm_head")))


def random_backend(layers: int, device: str = "cuda") -> TorchBackend:
    """Our engine with random codes in the same format, symmetric in groups of `GROUP`, the head too."""
    place, hidden, size = torch.device(device), SIZES["hidden_size"], SIZES["head_dim"]
    heads, kv_heads = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
    generator = torch.Generator(place).manual_seed(0)

    def linear(rows: int, columns: int) -> PackedLinear:
        groups = columns // GROUP
        words = torch.randint(
            -(2**31), 2**31, (rows, groups, GROUP // 8), dtype=torch.int32, device=place, generator=generator
        )
        scales = torch.rand(rows, groups, device=place, generator=generator) / (4 * columns**0.5)
        return PackedLinear(words, 4, GROUP, scales.half(), None, 8)

    def gain(length: int) -> torch.Tensor:
        return torch.ones(length, device=place)

    def block() -> Layer:
        inner = SIZES["intermediate_size"]
        return Layer(
            input_norm=gain(hidden),
            qkv=linear((heads + 2 * kv_heads) * size, hidden),
            q_norm=gain(size),
            k_norm=gain(size),
            out=linear(hidden, heads * size),
            post_norm=gain(hidden),
            gate_up=linear(2 * inner, hidden),
            down=linear(hidden, inner),
        )

    sizes = Sizes(layers, hidden, SIZES["intermediate_size"], heads, kv_heads, size, SIZES["vocab_size"], NORM_EPS)
    rope = rope_matrix(Rope(THETA, (size // 2, 0, 0), False, size, size)).to(place)
    table = torch.randn(SIZES["vocab_size"], hidden, dtype=torch.float16, device=place, generator=generator)
    blocks = tuple(block() for _ in range(layers))
    head = linear(SIZES["vocab_size"], hidden)
    return TorchBackend(Decoder(sizes, torch.float16, rope, table, blocks, gain(hidden), head), max_length=4096)

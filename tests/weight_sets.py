"""Weight sets that keep the canonical rules, rounded to nearest from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.stage import run_stage
from edgetune_core.weightset import write_block
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight

Float = npt.NDArray[np.float32]

G32 = BlockFormat(4, 32, symmetric=False)


def rounded(weight: Float, fmt: BlockFormat) -> BlockWeight:
    """Round [N, K] to nearest on a legal grid: positive float16 scales, zero points of at least 1."""
    blocks = np.asarray(weight, np.float64).reshape(len(weight), -1, fmt.block)
    top = (1 << fmt.bits) - 1
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    span = 2 * np.maximum(-low, high) if fmt.symmetric else high - low
    scales = np.maximum((span / top).astype(np.float16), np.float16(1e-4)).astype(np.float32)
    half = np.full(scales.shape, 1 << (fmt.bits - 1))
    zeros = half if fmt.symmetric else np.rint(-low / scales).clip(1, top)
    codes = (np.rint(blocks / scales[:, :, None]) + zeros[:, :, None]).clip(0, top).astype(np.uint8)
    points = None if fmt.symmetric else zeros.astype(np.uint8)
    return BlockWeight(codes, scales, points, fmt.bits, weight.shape[1])


def memory_names(checkpoint: Path) -> dict[str, Float]:
    """A checkpoint's tensors by the names that transformers gives them in memory."""
    tensors = load_file(checkpoint / "model.safetensors")
    name_of = HubCheckpoint.open(checkpoint).modules.memory_name
    return {name_of(name): tensor.float().numpy() for name, tensor in tensors.items()}


def build_weight_set(
    checkpoint: Path,
    folder: Path,
    *,
    choose: Callable[[str], BlockFormat | None] = lambda name: G32,
    head: BlockFormat | None = None,
    overrides: Mapping[str, Float] | None = None,
    extra: Mapping[str, Any] | None = None,
    data: Path | None = None,
) -> Path:
    """Write a weight set as `edgetune calibrate` does.

    Args:
        checkpoint: what is quantized.
        folder: the set.
        choose: format of a linear layer of the decoder's blocks by name, None to leave it out.
        head: format of the language model head, None to leave it out.
        overrides: parameters to replace.
        extra: further fields of `result.weightset`.
        data: the records it claims to be calibrated on.
    """
    tensors, modules = memory_names(checkpoint), HubCheckpoint.open(checkpoint).modules

    def build(work: Path) -> dict[str, object]:
        weights = {}
        for name, array in tensors.items():
            layer = name.removesuffix(".weight")
            fmt = choose(layer) if layer.startswith(f"{modules.blocks}.") and array.ndim == 2 else None
            if fmt is not None:
                weights[layer] = rounded(array, fmt)
        if head is not None:
            tied = tensors[f"{modules.text_root}.embed_tokens.weight"]
            weights["lm_head"] = rounded(tensors.get("lm_head.weight", tied), head)
        entries = write_block(work, "blocks/000.safetensors", weights, overrides or {})
        place = {"path": str(checkpoint), "sha256": sha256_tree(checkpoint)}
        fields = {"schema": 1, "method": "rtn", "vision_ranges": None, "calibration": {}, "checkpoint": place}
        return {"weightset": {**fields, **entries, **(extra or {})}}

    inputs = {"checkpoint": checkpoint, **({} if data is None else {"data": data})}
    return run_stage("calibrate", folder, inputs=inputs, settings={}, build=build).folder

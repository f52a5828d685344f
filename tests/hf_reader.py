"""A reader of quantized Hugging Face checkpoints, written from the formats' definitions and from what readers do.

Which layers are quantized and how is believed from config.json, as servers believe it; nothing of ours is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

Array = npt.NDArray[Any]
AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)  # of outputs 0 .. 7 in a word


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, over all shards."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    return {name: tensor for file in names for name, tensor in load_file(folder / file).items()}


def dense_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint in float32, quantized layers as NAME.weight."""
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    read = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}[quantization["quant_method"]]
    tensors = tensors_of(folder)
    codes = "weight_packed" if quantization["quant_method"] == "compressed-tensors" else "qweight"
    layers = {name.removesuffix(f".{codes}") for name in tensors if name.endswith(f".{codes}")}
    stored = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point")
    dense = {}
    for name, tensor in tensors.items():
        owner, _, kind = name.rpartition(".")
        if owner not in layers or kind not in (*stored, "weight_shape"):
            dense[name] = tensor.float()
    for layer in layers:
        own = {kind: tensors[f"{layer}.{kind}"].numpy() for kind in stored if f"{layer}.{kind}" in tensors}
        dense[f"{layer}.weight"] = torch.from_numpy(read(own, quantization, layer).astype(np.float32))
    return dense


def gptq_settings(quantization: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Bits and group size of a layer: the first expression under `dynamic` that matches its name, else the common."""
    for pattern, override in quantization.get("dynamic", {}).items():
        if re.match(pattern[2:], name):
            assert pattern.startswith("+:"), f"{name} is left out"
            return override["bits"], override["group_size"]
    return quantization["bits"], quantization["group_size"]


def _gptq(tensors: Mapping[str, Array], quantization: Mapping[str, Any], name: str) -> Any:
    bits, group_size = gptq_settings(quantization, name)
    codes = _stream(tensors["qweight"].T, bits)  # [N, K]
    zeros = _stream(tensors["qzeros"], bits).T + 1  # [N, groups]
    groups = tensors["g_idx"]
    assert groups.tolist() == [column // group_size for column in range(codes.shape[1])]
    return (codes - zeros[:, groups]) * tensors["scales"].astype(np.float32).T[:, groups]


def _awq(tensors: Mapping[str, Array], quantization: Mapping[str, Any], name: str) -> Any:
    assert (quantization["bits"], quantization["version"], quantization["zero_point"]) == (4, "gemm", True)

    def unpack(words: Array) -> Any:
        return ((words[:, :, None] >> np.array(AWQ_SHIFTS)) & 15).reshape(len(words), -1)

    codes, zeros = unpack(tensors["qweight"]), unpack(tensors["qzeros"])
    repeat = quantization["group_size"]
    scales = tensors["scales"].astype(np.float32).repeat(repeat, 0)
    return ((codes - zeros.repeat(repeat, 0)) * scales).T


def _compressed(tensors: Mapping[str, Array], quantization: Mapping[str, Any], name: str) -> Any:
    schemes = [
        group["weights"]
        for group in quantization["config_groups"].values()
        if any(target == "Linear" or re.match(target.removeprefix("re:"), name) for target in group["targets"])
    ]
    assert len(schemes) == 1 and not any(re.match(entry.removeprefix("re:"), name) for entry in quantization["ignore"])
    bits, group_size = schemes[0]["num_bits"], schemes[0]["group_size"]
    half = 1 << (bits - 1)
    codes = _stream(tensors["weight_packed"], bits) - half
    zeros = np.zeros((1, 1), np.int64)
    assert schemes[0]["symmetric"] == ("weight_zero_point" not in tensors)
    if "weight_zero_point" in tensors:
        zeros = _stream(tensors["weight_zero_point"].T, bits).T - half
    scales = tensors["weight_scale"].astype(np.float32).repeat(group_size, 1)
    return (codes - (zeros.repeat(group_size, 1) if zeros.size > 1 else zeros)) * scales


def _stream(words: Array, bits: int) -> Array:
    """int64 [M, n] of numbers that follow each other from the lowest bit of each row's words [M, n·bits / 32]."""
    rows = []
    for row in np.ascontiguousarray(words).view(np.uint32):
        number = int.from_bytes(row.astype("<u4").tobytes(), "little")
        rows.append([(number >> (bits * i)) & ((1 << bits) - 1) for i in range(len(row) * 32 // bits)])
    return np.array(rows, np.int64)

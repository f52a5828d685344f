"""A Hugging Face checkpoint with quantized weights, written from the merged one shard by shard.

The merged checkpoint is the template: a tensor that the weight set does not replace keeps its dtype and its shard.
Names are those of the family's published checkpoints, which every server knows, or those of the modules in
transformers: GPTQModel knows no others, and takes a layer that it does not find for zeros without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgetune_core.checkpoint import INDEX, weight_files
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules, Prefixes, file_name
from edgetune_runtime.quant.blocks import BlockWeight

Pack = Callable[[BlockWeight, str], dict[str, npt.NDArray[Any]]]
"""A layout's tensors for a weight, by the names that follow the layer's."""


def write_checkpoint(
    source: Path,
    folder: Path,
    weights: WeightSet,
    modules: Modules,
    pack: Pack,
    config: Mapping[str, Any],
    quantization: Mapping[str, Any],
    *,
    prefixes: Prefixes = (),
    whole: bool = True,
) -> list[str]:
    """Write weights and config.json; tokenizer and processor files are the caller's.

    Args:
        source: the merged checkpoint that the set was calibrated from.
        folder: existing folder to write to.
        weights: the set.
        modules: names of the family.
        pack: the layout.
        config: the content of the source's config.json.
        quantization: its new `quantization_config`.
        prefixes: what names begin with in transformers and in the written files, the family's `hub_prefixes` for the
            names of published checkpoints.
        whole: write everything. Otherwise only the quantized layers, which is no checkpoint any more.

    Returns:
        Names of the weight files.

    Raises:
        InputError: a layer or parameter of the set is not in the checkpoint, or the layout cannot hold it.
    """
    replaced = _Replacements(weights, pack)
    places: dict[str, str] = {}
    total = 0
    sources = weight_files(source)
    for path in sources:
        with safe_open(path, framework="pt") as opened:
            tensors: dict[str, torch.Tensor] = {}
            for name in opened.keys():  # noqa: SIM118 - not iterable
                memory_name = modules.memory_name(name)
                if memory_name in replaced:
                    tensors |= replaced.take(memory_name)
                elif whole:
                    tensors[memory_name] = opened.get_tensor(name)
        if path == sources[-1]:
            tensors |= replaced.take_tied_head()
        if not whole:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in weights.overrides}
        if not tensors:
            continue
        tensors = {file_name(name, prefixes): tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, folder / path.name, {"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    replaced.require_all_taken(source)
    if not whole:
        return list(dict.fromkeys(places.values()))
    if len(sources) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)
    write_json(folder / "config.json", _config(config, quantization, untied=HEAD in weights))
    return [path.name for path in sources]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a config file the way transformers does."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(config: Mapping[str, Any], quantization: Mapping[str, Any], *, untied: bool) -> dict[str, Any]:
    """config.json with the quantization; a quantized head has tensors of its own and cannot be the embedding."""
    result = {**config, "quantization_config": dict(quantization)}
    if untied:
        result["tie_word_embeddings"] = False
        if isinstance(result.get("text_config"), dict):
            result["text_config"] = {**result["text_config"], "tie_word_embeddings": False}
    return result


class _Replacements:
    """What the set puts in the place of which parameters; each may be taken once."""

    def __init__(self, weights: WeightSet, pack: Pack) -> None:
        self._weights, self._pack = weights, pack
        self._left = {*weights.names, *weights.overrides}

    def __contains__(self, parameter: str) -> bool:
        return parameter.removesuffix(".weight") in self._weights or parameter in self._weights.overrides

    def take(self, parameter: str) -> dict[str, torch.Tensor]:
        """The tensors that replace one."""
        if parameter.removesuffix(".weight") in self._weights:
            return self._packed(parameter.removesuffix(".weight"))
        self._left.remove(parameter)
        # In float32 whatever the rest is: each reader rounds it once, to the dtype that it computes in.
        return {parameter: torch.from_numpy(self._weights.override(parameter))}

    def take_tied_head(self) -> dict[str, torch.Tensor]:
        """The head's tensors when it is quantized and the file has none to replace, the embedding serving as both."""
        return self._packed(HEAD) if HEAD in self._left else {}

    def _packed(self, layer: str) -> dict[str, torch.Tensor]:
        self._left.remove(layer)
        tensors = self._pack(self._weights.weight(layer), layer)
        return {f"{layer}.{name}": torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}

    def require_all_taken(self, source: Path) -> None:
        if self._left:
            raise InputError(
                f"{source}: no tensor for {min(self._left)}, which the weight set holds",
                hint="export the checkpoint that the set was calibrated from",
            )

"""Checkpoints that other tools quantized with GPTQ or AWQ, read as a weight set of their own exact values.

Three things differ from one such checkpoint to the next and are easily misread without a sign, so they are normalised
here: zero points stored less one (GPTQ v1) or as they are (v2), groups of inputs that are not consecutive (desc_act),
for which the graph reorders its states, and formats that change from layer to layer, which are read off the tensors
rather than believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from edgetune_core.checkpoint import weight_files
from edgetune_core.weightset import HEAD, Order, WeightSet
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import sha256_tree
from edgetune_runtime.quant import gptq
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight
from edgetune_runtime.quant.layouts import LAYOUTS, Layout

Array = npt.NDArray[Any]

_V2 = replace(LAYOUTS["gptq"], zero_points=partial(gptq.zero_points, v2=True))
_READ = {("gptq", "gptq"): LAYOUTS["gptq"], ("gptq", "gptq_v2"): _V2, ("awq", "gemm"): LAYOUTS["awq"]}
"""Layout by method and by what the config calls its format."""

_ORDER = "g_idx"

_BLOCKS = (128, 64, 32, 16)
"""Group sizes that every engine takes; a longer group is cut into shorter ones with equal scales."""


def declared_quantization(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization that a checkpoint declares, None for one that is not quantized."""
    declared: dict[str, Any] | None = config.get("quantization_config")
    path = folder / "quantize_config.json"
    if declared is None and path.is_file():
        declared = {"quant_method": "gptq", **read_json(path)}
    return declared


def read_prequantized(folder: Path, quantization: Mapping[str, Any], modules: Modules) -> PrequantizedSet:
    """Find and examine a checkpoint's quantized layers.

    Args:
        folder: the checkpoint.
        quantization: what its config declares.
        modules: names of its family.

    Raises:
        InputError: a method or format that is not read, a quantized layer outside the decoder, or one stored in a way
            that has no exact equal here.
    """
    method = str(quantization.get("quant_method"))
    named = (quantization.get(key) for key in ("checkpoint_format", "format", "version"))
    form = str(next((name for name in named if name), {"awq": "gemm"}.get(method, "gptq"))).lower()
    if (method, form) not in _READ:
        known = ", ".join(" ".join(pair) for pair in _READ)
        raise InputError(
            f"{folder}: quantized with {method}, format {form}, which is not among those that can be read: {known}",
            hint="export the checkpoint that it was quantized from",
        )
    layers = _find_layers(folder, modules, _READ[method, form])
    formats = {name: layer.format() for name, layer in layers.items()}
    symmetric = all(fmt.symmetric for fmt in formats.values())  # layers that become one product have to agree
    linears = {
        name: {"bits": fmt.bits, "group_size": fmt.block, "symmetric": symmetric, "file": None}
        for name, fmt in formats.items()
    }
    fields = {
        "schema": 1,
        "method": method,
        "linears": linears,
        "overrides": {},
        "vision_ranges": None,
        "calibration": {},
        "checkpoint": {"path": str(folder), "sha256": sha256_tree(folder)},
    }
    return PrequantizedSet(folder.absolute(), {"inputs": {}, "result": {"weightset": fields}}, layers)


@dataclass(frozen=True)
class PrequantizedSet(WeightSet):
    """A checkpoint's own quantized layers in the manner of a weight set; `read_prequantized` makes one.

    Attributes:
        layers: quantized layers by their names in transformers.
    """

    layers: Mapping[str, StoredLayer]

    def weight(self, name: str) -> BlockWeight:
        """A quantized layer's weight [out, in], in groups of at most 128 consecutive inputs as `order` has them."""
        fmt = self.format(name)
        weight = self.layers[name].read()
        return replace(weight, zero_points=None) if fmt.symmetric else weight

    def order(self, name: str) -> Order | None:
        """Which input each column of the weight reads, where groups are scattered inputs."""
        return self.layers[name].order()

    @property
    def stored(self) -> Iterator[str]:
        """Names of the tensors that hold the layers, as transformers would call them."""
        return (f"{name}.{kind}" for name, layer in self.layers.items() for kind in layer.files)


@dataclass(frozen=True)
class _Stored:
    """How a layer's codes lie in its tensors.

    Attributes:
        bits: of a code.
        groups: the group of each run of columns.
        cut: into how many blocks a group is cut.
        block: columns of such a block.
        columns: which input each column is; None for their own order.
    """

    bits: int
    groups: Order
    cut: int
    block: int
    columns: Order | None


@dataclass(frozen=True)
class StoredLayer:
    """A quantized linear layer in the files of a checkpoint.

    Attributes:
        prefix: what its tensors' names begin with.
        layout: how they are stored.
        files: file of each tensor, by what follows the prefix.
    """

    prefix: str
    layout: Layout
    files: Mapping[str, Path]

    def format(self) -> BlockFormat:
        """Bits, group size as `read` gives it, and whether all zero points are the middle; from the tensors.

        Raises:
            InputError: the layer has no exact equal here.
        """
        stored = self._stored
        with _naming(self.prefix):
            zeros = self.layout.zero_points(self._tensor(self.layout.zeros), stored.bits)
        return BlockFormat(stored.bits, stored.block, bool((zeros == 1 << (stored.bits - 1)).all()))

    def order(self) -> Order | None:
        """Which input each column of `read` is, None where they are in the model's order."""
        return self._stored.columns

    def read(self) -> BlockWeight:
        """The weight [out, in] with zero points, in consecutive groups of its columns."""
        stored = self._stored
        kinds = (self.layout.codes, self.layout.scales, self.layout.zeros)
        with _naming(self.prefix):
            weight = self.layout.unpack({kind: self._tensor(kind) for kind in kinds}, stored.bits)
        assert weight.zero_points is not None
        codes = weight.codes.reshape(len(weight.codes), -1)
        if stored.columns is not None:
            codes = codes[:, stored.columns]
        return replace(
            weight,
            codes=codes.reshape(len(codes), -1, stored.block),
            scales=np.repeat(weight.scales[:, stored.groups], stored.cut, axis=1),
            zero_points=np.repeat(weight.zero_points[:, stored.groups], stored.cut, axis=1),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of the weight."""
        return int(self._tensor(self.layout.scales).shape[1]), self._inputs

    @property
    def _inputs(self) -> int:
        """K; GPTQ packs along it, AWQ does not."""
        if _ORDER in self.files:
            return len(self._tensor(_ORDER))
        return len(self._tensor(self.layout.codes))

    @cached_property
    def _stored(self) -> _Stored:
        inputs, groups = self._inputs, len(self._tensor(self.layout.scales))
        rows = len(self._tensor(self.layout.codes))
        bits = rows * 32 // inputs if self.layout is not LAYOUTS["awq"] else 4
        size = inputs // groups
        block = next((block for block in _BLOCKS if size % block == 0), None)
        if bits not in gptq.BITS or inputs % groups or block is None:
            raise InputError(
                f"{self.prefix}: {bits} bits with {groups} groups of {inputs} inputs cannot be exported",
                hint="supported: 3, 4 or 8 bits, groups of a multiple of 16",
            )
        stored = _Stored(bits, np.arange(groups), size // block, block, None)
        if _ORDER not in self.files:
            return stored
        of_input = self._tensor(_ORDER).astype(np.int64)
        if not np.array_equal(np.sort(of_input), np.arange(groups).repeat(size)):
            raise InputError(
                f"{self.prefix}: its groups, as g_idx has them, are not {groups} of {size} inputs each",
                hint="quantize again, or calibrate the original: edgetune calibrate",
            )
        runs = of_input.reshape(groups, size)
        if (runs == runs[:, :1]).all():  # whole groups in another order: no input moves
            return replace(stored, groups=runs[:, 0])
        return replace(stored, columns=np.argsort(of_input, kind="stable"))

    def _tensor(self, kind: str) -> Array:
        with safe_open(self.files[kind], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(f"{self.prefix}.{kind}")
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


@contextmanager
def _naming(prefix: str) -> Iterator[None]:
    """Say which layer an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}: {error}", hint=error.hint) from error


def _find_layers(folder: Path, modules: Modules, layout: Layout) -> dict[str, StoredLayer]:
    """The quantized layers by their names in transformers."""
    files: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    expected = rf"{re.escape(modules.blocks)}\.\d+\.({'|'.join(map(re.escape, modules.linears))})|{HEAD}"
    kinds = (layout.codes, layout.scales, layout.zeros, *(() if layout is LAYOUTS["awq"] else (_ORDER,)))
    layers = {}
    for tensor in files:
        prefix, _, kind = tensor.rpartition(".")
        if kind != layout.codes:
            continue
        name = modules.memory_name(prefix)
        if not re.fullmatch(expected, name):
            raise InputError(
                f"{folder}: {prefix} is quantized, but only linear layers of the decoder's blocks and the head can be"
            )
        missing = [f"{prefix}.{kind}" for kind in kinds if f"{prefix}.{kind}" not in files]
        if missing:
            raise InputError(f"{folder}: no tensor {missing[0]}", hint="download or write the checkpoint again")
        layers[name] = StoredLayer(prefix, layout, {kind: files[f"{prefix}.{kind}"] for kind in kinds})
    if not layers:
        raise InputError(f"{folder}: config.json declares a quantization, but no layer has a {layout.codes}")
    return layers

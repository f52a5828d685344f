"""A bundle that is a Hugging Face checkpoint, read into the engine's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from edgetune_runtime.backends.triton.model import Decoder, Layer, Sizes
from edgetune_runtime.backends.triton.packing import PackedLinear, dense, pack, stack
from edgetune_runtime.bundle import Bundle, Rope
from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.families.base import Prefixes, file_name
from edgetune_runtime.json_file import read_json
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.quant.layouts import GROUPS, LAYOUTS

STATIC_ROPE_TYPES = ("default", "mrope")
"""Rotary embeddings that the bundle's `rope` says everything about; "mrope" is how older configs spell the default."""


class PackedCheckpoint:
    """The tensors of a bundle's checkpoint by the names of modules in transformers. Use it as a context.

    Attributes:
        config: config.json.
        modules: "blocks", "text_root" and "vision_root": dotted names of the decoder's layer list, the text model and
            the vision tower in transformers.

    Raises:
        BundleError: the bundle is no checkpoint, or a file of it cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        packed = bundle.packed
        if packed is None:
            raise BundleError(f"{bundle.folder}: format {bundle.format!r}, but the manifest has no 'packed'")
        if "server" not in bundle.purposes:
            raise BundleError(
                f"{bundle.folder}: was exported for the lean runtime only and is no checkpoint that torch can run",
                hint="export with --for server",
            )
        self.modules: Mapping[str, str] = packed["modules"]
        self._prefixes: Prefixes = packed.get("prefixes", ())
        self._layout = LAYOUTS[bundle.format]
        self._formats = {
            layer: BlockFormat(product["bits"], product["group_size"], product["symmetric"])
            for product in packed["products"].values()
            for layer in product["layers"]
        }
        self._bundle = bundle
        self._stack = ExitStack()
        try:
            self.config: dict[str, Any] = read_json(bundle.folder / "config.json")
            opened = [self._open(role) for role in packed["files"]]
        except (InputError, OSError, ValueError, SafetensorError) as error:
            raise BundleError(f"{bundle.folder}: {error}", hint="export the bundle again") from error
        self._places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not iterable

    def _open(self, role: str) -> Any:
        return self._stack.enter_context(safe_open(self._bundle.files[role], framework="pt"))

    def __enter__(self) -> PackedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter by its name in transformers.

        Raises:
            BundleError: there is none.
        """
        stored = file_name(name, self._prefixes)
        if stored not in self._places:
            raise BundleError(f"{self._bundle.folder}: no tensor {stored}", hint="export the bundle again")
        tensor: torch.Tensor = self._places[stored].get_tensor(stored)
        return tensor

    def optional(self, name: str) -> torch.Tensor | None:
        """A parameter as float32, or None where the model has none."""
        return self.tensor(name).float() if name in self else None

    def __contains__(self, name: str) -> bool:
        """Whether there is a parameter of this name."""
        return file_name(name, self._prefixes) in self._places

    def under(self, root: str) -> dict[str, torch.Tensor]:
        """All parameters of a module, named relative to it."""
        prefix = file_name(f"{root}.", self._prefixes)
        found = [name.removeprefix(prefix) for name in self._places if name.startswith(prefix)]
        return {name: self.tensor(f"{root}.{name}") for name in found}

    def linear(self, *names: str) -> PackedLinear:
        """A linear layer, or several stacked along their outputs."""
        return stack([self._one(name) for name in names])

    def _one(self, name: str) -> PackedLinear:
        bias = self.optional(f"{name}.bias")
        if name not in self._formats:
            return dense(self.tensor(f"{name}.weight"), bias)
        fmt, layout = self._formats[name], self._layout
        kinds = (layout.codes, layout.scales) if fmt.symmetric else (layout.codes, layout.scales, layout.zeros)
        tensors = {kind: self.tensor(f"{name}.{kind}").numpy() for kind in kinds}
        groups = self.tensor(f"{name}.{GROUPS}").numpy() if f"{name}.{GROUPS}" in self else None
        layout.check(name, tensors, groups, fmt)
        return pack(layout.unpack(tensors, fmt.bits, symmetric=fmt.symmetric), bias)


def read_decoder(bundle: Bundle, checkpoint: PackedCheckpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The decoder of a bundle, on a device.

    Raises:
        InputError: quantization groups, sizes or a rotary embedding that the engine does not support.
        BundleError: a tensor is missing or does not fit.
    """
    modules = checkpoint.modules
    text = {**checkpoint.config, **checkpoint.config.get("text_config", {})}
    sizes = Sizes(
        layers=bundle.model["layers"],
        hidden=bundle.model["hidden"],
        intermediate=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=bundle.model["kv_heads"],
        head_dim=bundle.model["head_dim"],
        vocabulary=bundle.model["vocabulary"],
        norm_eps=text["rms_norm_eps"],
    )
    if sizes.head_dim & (sizes.head_dim - 1):
        raise InputError(f"{bundle.folder}: the engine triton needs heads of a power of two, not {sizes.head_dim}")
    told = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in STATIC_ROPE_TYPES:
        raise InputError(f"{bundle.folder}: the engine triton does not support rope type {kind!r}")

    def floats(name: str) -> torch.Tensor:
        return checkpoint.tensor(name).float().to(device)

    def optional(name: str) -> torch.Tensor | None:
        found = checkpoint.optional(name)
        return None if found is None else found.to(device)

    def linear(*names: str) -> PackedLinear:
        layer = checkpoint.linear(*names)
        if layer.scales is None:
            layer = dense(layer.dense(dtype), layer.bias)
        return layer.to(device)

    def layer(number: int) -> Layer:
        block = f"{modules['blocks']}.{number}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        return Layer(
            input_norm=floats(f"{block}.input_layernorm.weight"),
            qkv=linear(*(f"{attention}.{role}_proj" for role in "qkv")),
            q_norm=optional(f"{attention}.q_norm.weight"),
            k_norm=optional(f"{attention}.k_norm.weight"),
            out=linear(f"{attention}.o_proj"),
            post_norm=floats(f"{block}.post_attention_layernorm.weight"),
            gate_up=linear(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=linear(f"{mlp}.down_proj"),
        )

    embedding = checkpoint.tensor(f"{modules['text_root']}.embed_tokens.weight").to(device, dtype)
    tied = bool(checkpoint.config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return Decoder(
        sizes=sizes,
        dtype=dtype,
        rope=rope_matrix(bundle.rope).to(device),
        embedding=embedding,
        layers=tuple(layer(number) for number in range(sizes.layers)),
        norm=floats(f"{modules['text_root']}.norm.weight"),
        head=dense(embedding) if tied else linear("lm_head"),
    )


def rope_matrix(rope: Rope) -> torch.Tensor:
    """Float32 [3, head_dim / 2]; angles of a token = its (t, h, w) position @ this.

    A column has one nonzero, its frequency, in the row of the axis that drives it: the axes' sections follow one
    another (M-RoPE, arXiv 2409.12191) or take turns, time last (interleaved, arXiv 2511.21631).
    """
    half = rope.head_dim // 2
    frequencies = rope.theta ** (-torch.arange(half, dtype=torch.float32) / half)
    axes = torch.zeros(half, dtype=torch.int64)
    for axis in (1, 2):
        if rope.interleaved:
            axes[axis : rope.mrope_section[axis] * 3 : 3] = axis
        else:
            axes[sum(rope.mrope_section[:axis]) : sum(rope.mrope_section[: axis + 1])] = axis
    matrix = torch.zeros(3, half)
    matrix[axes, torch.arange(half)] = frequencies
    return matrix

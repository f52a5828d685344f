"""Bundles that are quantized checkpoints, in onnxruntime: the decoder's graph is filled at load from their tensors.

A GPTQ, AWQ or compressed-tensors bundle is a Hugging Face checkpoint with the graphs beside it. The decoder's graph
lacks the quantized weights, so that they are in the bundle once; the manifest says which layers of the checkpoint each
of them is made of. Repacked they are the weights of an "onnx" bundle from the same weight set, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends.onnx.engine import OnnxBackend, graphs_of
from edgetune_runtime.errors import BundleError, InputError, MissingDependency, install_command
from edgetune_runtime.families.base import Prefixes, file_name
from edgetune_runtime.quant.blocks import BlockFormat, in_nibbles, pack_nibbles
from edgetune_runtime.quant.layouts import GROUPS, LAYOUTS, Layout

if TYPE_CHECKING:
    from edgetune_runtime.bundle import Bundle

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


class PackedBackend(OnnxBackend):
    """Runs bundles of one of `edgetune_runtime.quant.layouts` on onnxruntime."""

    formats = tuple(LAYOUTS)

    @classmethod
    def load(cls, bundle: Bundle, *, device: str, threads: int | None) -> PackedBackend:
        """Load a bundle that is a quantized checkpoint.

        Raises:
            InputError: a float32 bundle on CUDA.
            BundleError: the bundle was written for servers only; a tensor is missing, does not fit or is not finite,
                or onnxruntime cannot load a graph.
            MissingDependency: safetensors or onnxruntime is not installed, or on "cuda" its CUDA provider.
        """
        if bundle.format not in LAYOUTS:  # an engine built on this one reads graphs with their weights too
            loaded = super().load(bundle, device=device, threads=threads)
            assert isinstance(loaded, cls)
            return loaded
        if "lean" not in bundle.purposes:
            raise BundleError(
                f"{bundle.folder}: was exported for servers only and has no graphs for onnxruntime",
                hint="export with --for lean, or on a GPU run it with the engine triton",
            )
        graphs, packed = graphs_of(bundle, device), bundle.packed
        if packed is None:
            raise BundleError(f"{bundle.folder}: format {bundle.format!r}, but the manifest has no 'packed'")
        files = [bundle.files[role] for role in packed["files"]]
        layout, prefixes = LAYOUTS[bundle.format], packed.get("prefixes", ())
        weights = read_weights(files, layout, packed["products"], half=bundle.half, prefixes=prefixes)
        return cls(**graphs, device=device, threads=threads, weights=weights)


def read_weights(
    files: Sequence[Path],
    layout: Layout,
    products: Mapping[str, Mapping[str, Any]],
    *,
    half: bool,
    prefixes: Prefixes = (),
) -> dict[str, Array]:
    """The values of the weights that the decoder's graph leaves out, by name.

    Args:
        files: of the checkpoint.
        layout: of its quantized layers.
        products: for each product of the graph the "layers" of the checkpoint that it stacks, their "bits",
            "group_size", and whether they are "symmetric".
        half: whether the graph computes in float16.
        prefixes: what layers' names begin with in `products` and in the files.

    Raises:
        BundleError: a tensor is missing or does not fit.
        MissingDependency: safetensors is not installed.
    """
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "safetensors is not installed", hint=install_command("packed", "edgetune-runtime")
        ) from error
    weights: dict[str, Array] = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, framework="np")) for path in files]
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not iterable
        try:
            for name, product in products.items():
                fmt = BlockFormat(product["bits"], product["group_size"], product["symmetric"])
                kinds = (layout.codes, layout.scales) if fmt.symmetric else (layout.codes, layout.scales, layout.zeros)
                layers = [file_name(layer, prefixes) for layer in product["layers"]]
                parts = [
                    {kind: places[f"{layer}.{kind}"].get_tensor(f"{layer}.{kind}") for kind in kinds}
                    for layer in layers
                ]
                for layer, part in zip(layers, parts, strict=True):
                    name_of_groups = f"{layer}.{GROUPS}"
                    groups = places[name_of_groups].get_tensor(name_of_groups) if name_of_groups in places else None
                    layout.check(layer, part, groups, fmt)
                weights |= _initializers(name, parts, layout, fmt, np.float16 if half else np.float32)
        except (KeyError, ValueError, InputError) as error:
            what = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"{files[0].parent}: {what}", hint="export the bundle again") from error
    return weights


def _initializers(
    name: str, parts: Sequence[Tensors], layout: Layout, fmt: BlockFormat, scale: type[np.floating[Any]]
) -> dict[str, Array]:
    """The inputs of MatMulNBits of layers that are one product, stacked along their outputs."""
    scales = np.concatenate([layout.by_output(part[layout.scales]) for part in parts]).astype(scale)
    if fmt.bits == 3:  # for which there is no MatMulNBits
        weights = [in_nibbles(layout.unpack(part, 3, symmetric=fmt.symmetric)) for part in parts]
        codes = np.concatenate([weight.packed_codes() for weight in weights])
    else:
        codes = np.concatenate([layout.row_bytes(part[layout.codes]) for part in parts])
    filled: dict[str, Array] = {
        f"{name}.weight_codes": codes.reshape(*scales.shape, -1),
        f"{name}.weight_scales": scales,
    }
    if not fmt.symmetric:
        zeros = np.concatenate([layout.zero_points(part[layout.zeros], fmt.bits) for part in parts])
        filled[f"{name}.weight_zeros"] = zeros if fmt.bits == 8 else pack_nibbles(zeros)
    return filled

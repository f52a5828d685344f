"""GPTQ and AWQ bundles in onnxruntime: the decoder's graph, filled at load from the checkpoint's own tensors.

Such a bundle is a Hugging Face checkpoint with the graphs beside it. The decoder's graph lacks the quantized weights,
so that they are in the bundle once; the manifest says which layers of the checkpoint each of them is made of. Repacked
they are the weights of an "onnx" bundle from the same weight set, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.backends import onnx
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, MissingDependency
from edgetune_runtime.quant import awq, gptq
from edgetune_runtime.quant.blocks import in_nibbles, pack_nibbles

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


def load(bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> onnx.OnnxBackend:
    """Load a "gptq" or "awq" bundle.

    Raises:
        InputError: a float32 bundle on CUDA.
        BundleError: a tensor is missing or does not fit, or onnxruntime cannot load a graph.
        MissingDependency: safetensors is not installed; device "cuda" without onnxruntime's CUDA provider.
    """
    return onnx.load(bundle, device=device, threads=threads, weights=decoder_weights(bundle))


def decoder_weights(bundle: Bundle) -> dict[str, Array]:
    """The values of the weights that the decoder's graph leaves out, by name.

    Raises:
        BundleError: a tensor is missing or does not fit.
        MissingDependency: safetensors is not installed.
    """
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "safetensors is not installed", hint='pip install "edgetune-runtime[packed]"'
        ) from error
    fields = bundle.manifest["result"]["bundle"]["packed"]
    scale = np.float16 if bundle.half else np.float32
    weights: dict[str, Array] = {}
    with ExitStack() as stack:
        files = [bundle.files[role] for role in fields["files"]]
        opened = [stack.enter_context(safe_open(path, framework="np")) for path in files]
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not iterable
        try:
            for name, product in fields["products"].items():
                parts = [
                    {kind: places[f"{layer}.{kind}"].get_tensor(f"{layer}.{kind}") for kind in awq.TENSORS}
                    for layer in product["layers"]
                ]
                weights |= _initializers(name, parts, bundle.format, product["bits"], product["symmetric"], scale)
        except (KeyError, ValueError) as error:
            what = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"{bundle.folder}: {what}", hint="export the bundle again") from error
    return weights


def _initializers(
    name: str, parts: Sequence[Tensors], layout: str, bits: int, symmetric: bool, scale: type[np.floating[Any]]
) -> dict[str, Array]:
    """The inputs of MatMulNBits of layers that are one product, stacked along their outputs."""
    if bits == 3:  # for which there is no MatMulNBits
        weights = [in_nibbles(gptq.unpack(part, bits, symmetric=symmetric)) for part in parts]
        codes = np.concatenate([weight.packed_codes() for weight in weights])
        zeros = [weight.all_zero_points() for weight in weights]
    elif layout == "gptq":
        codes = np.concatenate([gptq.row_bytes(part["qweight"]) for part in parts])
        zeros = [gptq.zero_points(part["qzeros"], bits) for part in parts]
    else:
        codes = np.concatenate([awq.row_bytes(part["qweight"]) for part in parts])
        zeros = [awq.zero_points(part["qzeros"]) for part in parts]
    scales = np.concatenate([part["scales"].T for part in parts]).astype(scale)
    filled: dict[str, Array] = {
        f"{name}.weight_codes": codes.reshape(*scales.shape, -1),
        f"{name}.weight_scales": scales,
    }
    if not symmetric:
        points = np.concatenate(zeros)
        filled[f"{name}.weight_zeros"] = points if bits == 8 else pack_nibbles(points)
    return filled

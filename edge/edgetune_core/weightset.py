"""The canonical weight set: what `edgetune calibrate` solves and every export format is written from.

A stage folder with safetensors files, one a decoder block. A quantized linear layer NAME, the dotted name of its module
in transformers, is three tensors:

    NAME.q      uint8 [out, in / 2] for 4 bits, of a byte the low half first; [out, in] for 3 and 8 bits
    NAME.scale  float16 [out, groups]
    NAME.zero   uint8 [out, groups]; left out when symmetric, where it is 2^(bits-1)

and stands for `(q - zero) · scale`. Any other tensor is an override: a float32 norm weight or bias under its full
parameter name, which replaces the checkpoint's because a solver moved scales into it.

Scales are float16 and asymmetric zero points at least 1, so that every format can hold the set exactly: GPTQ and AWQ
keep float16 scales, and GPTQ's first layout stores zero points less one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import BundleError, InputError, MissingDependency, install_command
from edgetune_runtime.manifest import MANIFEST, read_manifest, sha256_tree, verify_files
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, Float, unpack_nibbles

Order = npt.NDArray[np.int64]

STAGE = "calibrate"
SCHEMA = 1
BITS = (3, 4, 8)
HEAD = "lm_head"
"""Name of the language model head's linear; in a tied model the embedding keeps the checkpoint's values."""


@dataclass(frozen=True)
class WeightSet:
    """A weight set on disk; tensors are read when asked for.

    Attributes:
        folder: where it is, absolute.
        manifest: the whole manifest, as read.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True) -> WeightSet:
        """Read a set's manifest and, with `verify`, compare every file with its sha256.

        Raises:
            BundleError: not a weight set, of another schema, or a file is missing or was changed.
            MissingDependency: safetensors is not installed.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        fields = (manifest.get("result") or {}).get("weightset")
        if not isinstance(fields, dict):
            raise BundleError(
                f"{folder / MANIFEST}: a {manifest.get('stage')!r} folder, not a weight set",
                hint="give a folder written by `edgetune calibrate`",
            )
        if fields.get("schema") != SCHEMA:
            raise BundleError(
                f"{folder / MANIFEST}: weight set schema {fields.get('schema')!r}, this version reads {SCHEMA}",
                hint="calibrate again with this version",
            )
        if verify:
            verify_files(folder)
        _safetensors()
        return cls(folder, manifest)

    @property
    def fields(self) -> Mapping[str, Any]:
        """`result.weightset` of the manifest."""
        fields: Mapping[str, Any] = self.manifest["result"]["weightset"]
        return fields

    @property
    def method(self) -> str:
        """Which solver made it: "gptq", "awq" or "rtn"."""
        return str(self.fields["method"])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the quantized linear layers."""
        return tuple(self.fields["linears"])

    @property
    def overrides(self) -> tuple[str, ...]:
        """Names of the parameters that the set replaces."""
        return tuple(self.fields["overrides"])

    @property
    def sha256(self) -> str:
        """One hash over all weights."""
        return sha256_tree(self.folder)

    def __contains__(self, name: object) -> bool:
        return name in self.fields["linears"]

    @property
    def usual(self) -> BlockFormat:
        """How most of the decoder's layers are quantized.

        Raises:
            InputError: the set holds none.
        """
        formats = [self.format(name) for name in self.names if name != HEAD]
        if not formats:
            raise InputError(f"{self.folder}: the weight set holds no layer of the decoder")
        return Counter(formats).most_common(1)[0][0]

    def format(self, name: str) -> BlockFormat:
        """How a linear layer is quantized."""
        entry = self._entry(name)
        return BlockFormat(int(entry["bits"]), int(entry["group_size"]), bool(entry["symmetric"]))

    def weight(self, name: str) -> BlockWeight:
        """A linear layer's weight [out, in].

        Raises:
            InputError: the layer is not in the set.
            BundleError: its tensors are missing, of another shape or dtype than their format says.
        """
        fmt, path = self.format(name), self.folder / _inside(self._entry(name)["file"])
        with _open(path) as tensors:
            q, scale = _read(tensors, f"{name}.q", path), _read(tensors, f"{name}.scale", path)
            zero = None if fmt.symmetric else _read(tensors, f"{name}.zero", path)
        columns = q.shape[1] * (2 if fmt.bits == 4 else 1)
        groups = (len(q), columns // fmt.block)
        wrong = columns % fmt.block or scale.shape != groups or (zero is not None and zero.shape != groups)
        if wrong or q.dtype != np.uint8 or scale.dtype != np.float16 or (zero is not None and zero.dtype != np.uint8):
            raise BundleError(f"{path}: the tensors of {name} do not fit {fmt}", hint="calibrate again")
        codes = unpack_nibbles(q) if fmt.bits == 4 else q
        return BlockWeight(
            codes=codes.reshape(*groups, fmt.block),
            scales=scale.astype(np.float32),
            zero_points=zero,
            bits=fmt.bits,
            columns=columns,
        )

    def order(self, name: str) -> Order | None:
        """Which input each column of a layer's weight reads, int64 [in]; None where they are in the model's order.

        Sets that calibrate writes are always in the model's order; a checkpoint of another tool may not be.
        """
        return None

    def dequantized(self, name: str) -> Float:
        """A linear layer's weight [out, in] as float32, its columns in the model's order."""
        values, order = self.weight(name).dequantize(), self.order(name)
        return values if order is None else values[:, np.argsort(order)]

    def override(self, name: str) -> Float:
        """A replaced parameter as float32.

        Raises:
            InputError: the set does not replace it.
            BundleError: its tensor is missing.
        """
        if name not in self.fields["overrides"]:
            raise InputError(f"{self.folder}: the weight set does not replace {name!r}")
        path = self.folder / _inside(self.fields["overrides"][name])
        with _open(path) as tensors:
            return _read(tensors, name, path).astype(np.float32)

    def _entry(self, name: str) -> Mapping[str, Any]:
        entries: Mapping[str, Mapping[str, Any]] = self.fields["linears"]
        if name not in entries:
            raise InputError(f"{self.folder}: no layer {name!r} in the weight set")
        return entries[name]


def write_block(
    folder: Path, file: str, weights: Mapping[str, BlockWeight], overrides: Mapping[str, npt.NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Write some layers into one file of a weight set.

    Args:
        folder: the set's folder.
        file: path within it, such as "blocks/000.safetensors".
        weights: layer name to weight.
        overrides: parameter name to replacing values, any float dtype.

    Returns:
        The entries for `result.weightset`: {"linears": {...}, "overrides": {...}}.

    Raises:
        InputError: a weight breaks the rules of the canonical set (see this module).
    """
    linears: dict[str, Any] = {}
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, weight in weights.items():
        _check(name, weight)
        flat = np.ascontiguousarray(weight.codes.reshape(len(weight.codes), -1))
        tensors[f"{name}.q"] = weight.packed_codes().reshape(len(flat), -1) if weight.bits == 4 else flat
        tensors[f"{name}.scale"] = weight.scales.astype(np.float16)
        if weight.zero_points is not None:
            tensors[f"{name}.zero"] = np.ascontiguousarray(weight.zero_points)
        linears[name] = {
            "bits": weight.bits,
            "group_size": weight.block,
            "symmetric": weight.zero_points is None,
            "file": file,
        }
    tensors |= {name: np.ascontiguousarray(values, np.float32) for name, values in overrides.items()}
    path = folder / _inside(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_safetensors().save(tensors))  # save_file would make a file that only its owner may read
    return {"linears": linears, "overrides": dict.fromkeys(overrides, file)}


def _check(name: str, weight: BlockWeight) -> None:
    """Refuse what some format could not hold exactly."""
    rows, groups, block = weight.codes.shape
    top = (1 << weight.bits) - 1
    problem = None
    if weight.bits not in BITS:
        problem = f"{weight.bits} bits, not one of {', '.join(map(str, BITS))}"
    elif weight.columns != groups * block:
        problem = f"{weight.columns} inputs are no multiple of the group size {block}"
    elif int(weight.codes.max(initial=0)) > top:
        problem = f"a code over {top}"
    elif weight.scales.shape != (rows, groups):
        problem = f"scales {list(weight.scales.shape)} where {[rows, groups]} are needed"
    elif not (weight.scales > 0).all() or not np.isfinite(weight.scales).all():
        problem = "a scale that is not positive and finite"
    elif not (weight.scales.astype(np.float16).astype(np.float32) == weight.scales).all():
        problem = "a scale that float16 cannot hold"
    elif weight.zero_points is not None and not ((weight.zero_points >= 1) & (weight.zero_points <= top)).all():
        problem = f"a zero point outside 1 .. {top}"
    if problem is not None:
        raise InputError(f"{name}: {problem}, which a weight set must not have")


def _inside(file: str) -> PurePosixPath:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(f"{file!r} leads out of the weight set")
    return path


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "safetensors is not installed", hint=install_command("packed", "edgetune-runtime")
        ) from error
    return safetensors.numpy


def _open(path: Path) -> Any:
    _safetensors()
    import safetensors

    try:
        return safetensors.safe_open(path, framework="np")
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: cannot be read: {error}", hint="calibrate again") from error


def _read(tensors: Any, name: str, path: Path) -> npt.NDArray[Any]:
    if name not in tensors.keys():  # noqa: SIM118 - safetensors' handle has no `in`
        raise BundleError(f"{path}: no tensor {name}", hint="calibrate again")
    array: npt.NDArray[Any] = tensors.get_tensor(name)
    return array

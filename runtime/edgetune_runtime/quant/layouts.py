"""The layouts by name, behind one interface: what a writer packs, and what a reader needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError
from edgetune_runtime.quant import awq, compressed, gptq
from edgetune_runtime.quant.bits import unpack_bytes
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight, Codes

Array = npt.NDArray[Any]

GROUPS = "g_idx"
"""What follows a layer's name in that of the tensor with the group of each input, where a checkpoint has one."""


@dataclass(frozen=True)
class Layout:
    """How checkpoints of one kind store a quantized linear layer of N outputs and K inputs.

    Attributes:
        codes, scales, zeros: what follows the layer's name in those of its tensors.
        pack: (weight, layer name for errors) -> all tensors; raises `InputError` for what the layout cannot hold.
        row_bytes: codes as stored -> uint8 [N, K·bits / 8], each output's codes as a little-endian bit stream.
        by_output: scales as stored -> [N, groups].
        zero_points: (zero points as stored, bits) -> uint8 [N, groups].
    """

    codes: str
    scales: str
    zeros: str
    pack: Callable[[BlockWeight, str], dict[str, Array]]
    row_bytes: Callable[[Array], Codes]
    by_output: Callable[[Array], Array]
    zero_points: Callable[[Array, int], Codes]

    def check(self, name: str, tensors: Mapping[str, Array], groups: Array | None, fmt: BlockFormat) -> None:
        """Refuse tensors of a layer that would compute without a word, and wrongly.

        Args:
            name: of the layer, for errors.
            tensors: by the names that follow the layer's.
            groups: int32 [K], the group of each input, or None where the checkpoint has no such tensor.
            fmt: how the layer is cut, as its manifest says.

        Raises:
            InputError: scales are not finite, or inputs are in other groups than their order says.
        """
        if not np.isfinite(tensors[self.scales]).all():
            raise InputError(f"{name}.{self.scales}: not all scales are finite")
        if groups is not None and not np.array_equal(groups, np.arange(len(groups)) // fmt.block):
            raise InputError(f"{name}.{GROUPS}: inputs are not in consecutive groups of {fmt.block}")

    def unpack(self, tensors: Mapping[str, Array], bits: int, *, symmetric: bool = False) -> BlockWeight:
        """The weight in a layer's tensors, whose groups are consecutive inputs.

        Args:
            tensors: by the names that follow the layer's.
            bits: of a code.
            symmetric: leave zero points out.

        Raises:
            InputError: zero points that readers disagree on.
        """
        scales = np.ascontiguousarray(self.by_output(tensors[self.scales]).astype(np.float32))
        codes = unpack_bytes(self.row_bytes(tensors[self.codes]), bits)
        return BlockWeight(
            codes=codes.reshape(*scales.shape, -1),
            scales=scales,
            zero_points=None if symmetric else self.zero_points(tensors[self.zeros], bits),
            bits=bits,
            columns=codes.shape[1],
        )


_GPTQ = Layout("qweight", "scales", "qzeros", gptq.pack, gptq.row_bytes, np.transpose, gptq.zero_points)

LAYOUTS = {
    "gptq": _GPTQ,
    "awq": Layout("qweight", "scales", "qzeros", awq.pack, awq.row_bytes, np.transpose, awq.zero_points),
    "compressed-tensors": Layout(
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        compressed.pack,
        compressed.row_bytes,
        np.asarray,
        compressed.zero_points,
    ),
}
"""What bundles are written in, by format."""

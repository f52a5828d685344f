"""Ranges of what the vision encoder's linear layers read, for int8 activations with scales that are fixed ahead.

The real tower reads the calibration pictures once, while what it gives the language model is kept. Its linears' inputs
are counted by value: those of 16 bits by each value there is, float32 by values of 12 binary digits after the first.
A range is then cut where the mean squared error of rounding it to 8 bits is smallest: outliers that are few and not
too far out are clipped, so that the rest gets finer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from edgetune_runtime.errors import InputError

BINS = 4096
LEVELS = 256
PART = 1 << 18
"""Values that are counted at a time on a CPU: their copies stay in its cache."""
_CUTS = torch.linspace(0.02, 1, 99, dtype=torch.float64)  # of the full range; finer cuts change the error by < 1 %
_DROPPED = 11  # of the 23 binary digits of a float32
_LEAST = (127 - 32) << 12  # the pattern of 2^-32 without them: what is smaller counts as that
_OCTAVES = 64 << 12  # patterns from there on, to 2^32
COUNTS = 8 * 2 * _OCTAVES
"""Bytes of the counts for a layer, at most."""

Ranges = dict[str, dict[str, float]]


class InputRanges:
    """Counts what the linear layers of a vision tower read while it is entered as a context.

    Args:
        model: the whole model.
        root: dotted name of the tower in it (`families.base.Modules.vision_root`).
    """

    def __init__(self, model: nn.Module, root: str) -> None:
        named = model.get_submodule(root).named_modules()
        self._layers = {f"{root}.{name}": layer for name, layer in named if isinstance(layer, nn.Linear)}
        self._inputs = {name: _Counts() for name in self._layers}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> InputRanges:
        """Watch from now on."""

        def hook(counts: _Counts) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda layer, inputs: counts.add(inputs[0].detach())

        self._handles = [
            layer.register_forward_pre_hook(hook(self._inputs[name])) for name, layer in self._layers.items()
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()

    def ranges(self) -> Ranges:
        """Find the ranges.

        Returns:
            Full module name of a layer -> {"low", "high"}, the range that 256 levels with a zero point should span, and
            {"amax"}, the magnitude that symmetric levels should reach.

        Raises:
            InputError: a layer was given values that are not finite.
        """
        found = torch.stack([counts.range() for counts in self._inputs.values()]).tolist()  # one wait for the GPU
        ranges = {
            name: dict(zip(("low", "high", "amax"), ends, strict=True))
            for name, ends in zip(self._inputs, found, strict=True)
        }
        for name, ends in ranges.items():
            if not all(map(math.isfinite, ends.values())):
                raise InputError(f"{name}: the layer's inputs hold values that are not finite")
        return ranges


class _Counts:
    """How often each value was among the inputs of a layer."""

    def __init__(self) -> None:
        self._counts = self._low = self._high = torch.empty(0)
        self._dtype = torch.float32

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor, on its device."""
        values = values.flatten() if values.element_size() == 2 else values.flatten().float()
        low, high = values.aminmax()
        if not len(self._counts):
            size = 1 << 16 if values.element_size() == 2 else 2 * _OCTAVES
            self._counts = torch.zeros(size, dtype=torch.int64, device=values.device)
            self._low, self._high, self._dtype = low, high, values.dtype
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        one = self._counts.new_ones(1)
        for part in [values] if values.is_cuda else values.split(PART):
            self._counts.scatter_add_(0, _places(part), one.expand(len(part)))

    def range(self) -> Tensor:
        """The low, high and symmetric end that round the values best: float64 [3]."""
        low, high = self._low.float(), self._high.float()
        values = _values(len(self._counts), self._dtype, self._counts.device)
        bins = ((values - low) * BINS / (high - low)).nan_to_num_(0).clamp_(0, BINS - 1).long()
        counts = torch.zeros(BINS, dtype=torch.float64, device=values.device)
        return _best(counts.scatter_add_(0, bins, self._counts.double()), low.double(), high.double())


def _places(values: Tensor) -> Tensor:
    """The place of each value among those that are told apart, in the order of `_values`; int64."""
    if values.element_size() == 2:
        return values.view(torch.int16).long().add_(1 << 15)
    bits = values.view(torch.int32)
    pattern = bits.bitwise_and(0x7FFFFFFF).add_(1 << (_DROPPED - 1)).bitwise_right_shift_(_DROPPED)
    pattern.sub_(_LEAST).clamp_(0, _OCTAVES - 1)
    # Of a negative number all bits turned round: it is one less than none.
    return pattern.bitwise_xor_(bits.bitwise_right_shift(31)).add_(_OCTAVES).long()


def _values(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values that are told apart, float32 [count]."""
    places = torch.arange(-(count // 2), count // 2, device=device)
    if dtype.itemsize == 2:
        return places.to(torch.int16).view(dtype).float()
    bits = places.bitwise_xor(places.bitwise_right_shift(63)).add_(_LEAST).bitwise_left_shift_(_DROPPED)
    return bits.to(torch.int32).view(torch.float32).copysign_(places + 0.5)


def _best(counts: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The cuts of a histogram float64 [BINS] over low .. high that round it best: low, high and symmetric end."""
    cuts = _CUTS.to(counts.device)
    width = (high - low) / BINS
    centres = low + width * (torch.arange(BINS, dtype=torch.float64, device=counts.device) + 0.5)
    # Zero stays inside: it has to be one of the levels.
    spans = torch.stack([cuts * low.clamp(max=0), cuts * high.clamp(min=0)], dim=1)
    best = spans[_errors(counts, centres, spans, LEVELS - 1).argmin()]
    reach = torch.maximum(low.abs(), high.abs())
    even = torch.stack([-cuts * reach, cuts * reach], dim=1)
    amax = even[_errors(counts, centres, even, LEVELS - 2).argmin(), 1]  # -127 .. 127
    return torch.cat([best, amax[None]])


def _errors(counts: Tensor, centres: Tensor, spans: Tensor, steps: int) -> Tensor:
    """Summed squared error [C] of rounding a histogram to `steps` equal steps over each span [C, 2]."""
    scale = ((spans[:, 1] - spans[:, 0]) / steps).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    first = (spans[:, :1] / scale).round()
    codes = ((centres / scale).round() - first).clamp(0, steps) + first
    return ((codes * scale - centres).square() * counts).sum(dim=1)

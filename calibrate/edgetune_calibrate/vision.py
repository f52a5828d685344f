"""Ranges of what the vision encoder's linear layers read, for int8 activations with scales that are fixed ahead.

The real tower reads the calibration pictures twice: once for the extremes of each layer's input, once for its
histogram. A range is then cut where the mean squared error of rounding it to 8 bits is smallest: outliers that are
few and not too far out are clipped, so that the rest gets finer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BINS = 4096
LEVELS = 256
_CUTS = torch.linspace(0.02, 1, 99, dtype=torch.float64)  # of the full range; finer cuts change the error by < 1 %

Images = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Each call gives the pictures anew: pixel_values [P, C] and image_grid_thw int64 [N, 3]."""

Ranges = dict[str, dict[str, float]]


@torch.no_grad()
def vision_ranges(model: nn.Module, root: str, images: Images, *, device: str = "cpu") -> Ranges:
    """Find the ranges of all linear layers of a vision tower.

    Args:
        model: the whole model.
        root: dotted name of the tower in it (`families.base.Modules.vision_root`).
        images: the calibration pictures; read twice.
        device: where to compute.

    Returns:
        Full module name of a layer -> {"low", "high"}, the range that 256 levels with a zero point should span, and
        {"amax"}, the magnitude that symmetric levels should reach.
    """
    tower = model.get_submodule(root)
    layers = {name: layer for name, layer in tower.named_modules() if isinstance(layer, nn.Linear)}
    home = next(tower.parameters()).device
    tower.to(device)
    try:
        spans: dict[str, tuple[Tensor, Tensor]] = {}
        counts: dict[str, Tensor] = {}

        def extremes(name: str, values: Tensor) -> None:
            low, high = values.aminmax()
            before = spans.get(name, (low, high))
            spans[name] = torch.minimum(before[0], low), torch.maximum(before[1], high)

        def histogram(name: str, values: Tensor) -> None:
            counted = torch.histc(values, BINS, *ends[name]).double()
            counts[name] = counts[name] + counted if name in counts else counted

        _watch(tower, layers, images, device, extremes)
        # Numbers of the host only once: each is a wait for the GPU.
        ends = {name: (float(low), float(high)) for name, (low, high) in spans.items()}
        _watch(tower, layers, images, device, histogram)
    finally:
        tower.to(home)
    return {f"{root}.{name}": _range(counts[name].cpu(), *ends[name]) for name in layers}


def _watch(
    tower: Any,
    layers: Mapping[str, nn.Linear],
    images: Images,
    device: str,
    observe: Callable[[str, Tensor], None],
) -> None:
    """Run the tower over all pictures and show each layer's input, as float32, to `observe`."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, inputs: observe(name, inputs[0].float())

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for pixels, grid in images():
            tower(pixels.to(device), grid.to(device))
    finally:
        for handle in handles:
            handle.remove()


def _range(counts: Tensor, low: float, high: float) -> dict[str, float]:
    """The cuts of a histogram [BINS] over low .. high that round it best."""
    width = (high - low) / BINS
    centres = low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)
    # Zero stays inside: it has to be one of the levels.
    spans = torch.stack([_CUTS * min(low, 0.0), _CUTS * max(high, 0.0)], dim=1)
    best = spans[_errors(counts, centres, spans, LEVELS - 1).argmin()]
    reach = max(abs(low), abs(high))
    even = torch.stack([-_CUTS * reach, _CUTS * reach], dim=1)
    amax = even[_errors(counts, centres, even, LEVELS - 2).argmin(), 1]  # -127 .. 127
    return {"low": float(best[0]), "high": float(best[1]), "amax": float(amax)}


def _errors(counts: Tensor, centres: Tensor, spans: Tensor, steps: int) -> Tensor:
    """Summed squared error [C] of rounding a histogram to `steps` equal steps over each span [C, 2]."""
    scale = ((spans[:, 1] - spans[:, 0]) / steps).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    first = (spans[:, :1] / scale).round()
    codes = ((centres / scale).round() - first).clamp(0, steps) + first
    return ((codes * scale - centres).square() * counts).sum(dim=1)

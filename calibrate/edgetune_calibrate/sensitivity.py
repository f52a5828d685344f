"""How much each part of a decoder matters, measured in boxes: its drift when that part alone is quantized.

A unit is what shares a format: the linears of a block that read one input, or the head. Its error in a format is the
square of the mean drift of the expected boxes of the calibration records (see `edgetune_core.coordinates`), of which a
few dozen tell layers apart. Shifts that units cause are nearly independent of each other, so their squares add up: the
drift of a mix of formats is estimated by the root of the sum of its units' errors. The mean is squared, not the squares
averaged, or the few boxes that the model is in two minds about would decide alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgetune_calibrate.activations import Activations, moved
from edgetune_calibrate.allocate import Choice, Unit
from edgetune_calibrate.capture import Held, Stream, Surroundings, VisionCache, output_head
from edgetune_calibrate.linears import group_of, input_groups, put_weight, untie, visible
from edgetune_calibrate.moments import Moments, TokenWeights
from edgetune_calibrate.solve import LinearGroup, SolveSettings, solve_group
from edgetune_core.blocks import of_block
from edgetune_core.coordinates import BoxPlaces, expected_boxes
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat

Candidates = Callable[[int], Sequence[SolveSettings]]
"""From a layer's number of inputs to the ways it may be solved."""


def stored_bytes(shape: tuple[int, int], fmt: BlockFormat) -> int:
    """Return what a weight [N, K] takes: codes, a float16 scale a group, and a zero point a group unless symmetric."""
    rows, columns = shape
    groups = columns // fmt.block
    return rows * (columns * fmt.bits + groups * (16 + (0 if fmt.symmetric else fmt.bits))) // 8


def drift(boxes: Tensor, reference: Tensor, sides: Tensor) -> Tensor:
    """Return how far boxes [boxes, 4] are from reference ones: float64 [boxes].

    The shifts of the four edges, each by the box's side across it, add up. That is 1 - IoU to first order, and unlike
    it still tells boxes apart when they no longer overlap.
    """
    shift = (boxes - reference).abs()
    return ((shift[:, :2] + shift[:, 2:]) / sides).sum(1)


class BoxMeter:
    """Measures the drift of a model's expected boxes from those it had when the meter was made.

    Args:
        model: its forward works as it is.
        batches: keyword arguments of its forward, one conversation each.
        places: of each batch where the boxes in its answer are.
        answers: of each batch how many tokens its answer has; they are the last.
        digits: token ids of the ten digits.
        device: where the model computes; by default where its weights are.

    Attributes:
        vision: stands in for the vision tower while it is set.

    Raises:
        InputError: no answer has a box.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        places: Sequence[BoxPlaces],
        answers: Sequence[int],
        digits: Tensor,
        device: torch.device | str | None = None,
    ) -> None:
        self._model, self._batches, self._places, self._answers = model, batches, places, answers
        self._digits, self._device = digits, device or next(model.parameters()).device
        self.vision: VisionCache | None = None
        self._asked = [number for number, place in enumerate(places) if place.digits]
        if not self._asked:
            raise InputError(
                "no calibration record has a box of whole numbers in brackets, and sensitivity is measured in those",
                hint="give --data with grounding records, or choose --bits instead of a budget",
            )
        self._sides = torch.cat([places[number].sides for number in self._asked])
        self._reference = self._boxes()

    def drift(self, model: Any = None) -> float:
        """Return the mean drift of all boxes, or of those that another model gives."""
        return float(drift(self._boxes(model), self._reference, self._sides).mean())

    @torch.no_grad()
    def _boxes(self, model: Any = None) -> Tensor:
        found = []
        for number in self._asked:
            if self.vision is not None:
                self.vision.batch = number
            inputs = moved(dict(self._batches[number]), self._device)
            count = self._answers[number]
            logits = (model or self._model)(**inputs, use_cache=False, logits_to_keep=count + 1).logits[0, :-1]
            found.append(expected_boxes(logits, self._places[number], self._digits))
        return torch.cat(found)


def measure(
    model: nn.Module,
    modules: Modules,
    batches: Sequence[Mapping[str, Any]],
    meter: BoxMeter,
    candidates: Candidates,
    *,
    head: SolveSettings | None = None,
    token_weights: Sequence[Tensor] | None = None,
    device: torch.device | str = "cpu",
    held: Held | None = None,
    kept: Activations | None = None,
    finished: Sequence[Unit] = (),
) -> Iterator[Unit]:
    """Yield each unit's sizes and errors, in the order they run; the model's weights end as they were.

    Args:
        model: a transformers causal language model.
        modules: where its blocks and linears are.
        batches: keyword arguments of its forward, one conversation each.
        meter: of the same model and batches.
        candidates: how a linear of so many inputs may be solved.
        head: how the language model head is solved, measured last; None leaves it out.
        token_weights: for each batch float32 [1, S], how much each token counts for the solver.
        device: where to compute; without `held` the model is moved there.
        held: see `quantize_decoder`.
        kept: see `quantize_decoder`.
        finished: the first units, measured by an earlier run; those of the last block begun are measured again.
    """
    where = torch.device(device)
    if held is None:
        model.to(where)
    held, kept = held or nullcontext, kept or Activations(where)
    blocks: list[nn.Module] = list(model.get_submodule(modules.blocks).children())
    weights = [TokenWeights.of(one, where) for one in token_weights or [visible(batch) for batch in batches]]
    with _cached(model.eval(), modules, kept, where, meter) as vision:
        around = Surroundings(model, blocks, batches, vision, kept, where)
        with held(vision.tower) if vision is not None else nullcontext():
            around.survey()
        stream = Stream(around, "sensitivity")
        every = [input_groups(of_block(modules, block)) for block in blocks]
        ends = list(itertools.accumulate(map(len, every)))
        start = sum(end <= len(finished) for end in ends)
        yield from finished[: ends[start - 1] if start else 0]
        for index, (block, groups) in enumerate(zip(blocks, every, strict=True)):
            with held(block):
                stream.enter(index)
                moments = _moments(stream, [group[0] for group in groups], weights) if index >= start else {}
                for group in groups if index >= start else []:
                    linears = {f"{modules.blocks}.{index}.{name}": block.get_submodule(name) for name in group}
                    settings = candidates(block.get_submodule(group[0]).get_parameter("weight").shape[1])
                    yield _tried(linears, group_of(linears, moments[group[0]]), settings, meter)
                stream.leave()
        if head is not None:
            output = output_head(model)
            with held(output):
                stream.enter(len(blocks))
                name = next(name for name, module in model.named_modules() if module is output)
                moments = _moments(stream, [""], weights)
                untie(output)
                yield _tried({name: output}, group_of({name: output}, moments[""]), [head], meter)
        stream.close()


@contextmanager
def _cached(
    model: nn.Module, modules: Modules, kept: Activations, device: torch.device, meter: BoxMeter
) -> Iterator[VisionCache | None]:
    """Let the vision tower run once for each batch, for the meter too."""
    if not modules.vision_root:
        yield None
        return
    vision = meter.vision = VisionCache(model.get_submodule(modules.vision_root), kept, device)
    try:
        yield vision
    finally:
        meter.vision = None
        vision.close()


def _moments(stream: Stream, names: Sequence[str], weights: Sequence[TokenWeights]) -> dict[str, Moments]:
    moments = {name: Moments() for name in names}
    for number, weight in enumerate(weights):
        for name, x in stream.inputs(number, names).items():
            moments[name].add(x, weight)
    return moments


def _tried(
    linears: Mapping[str, nn.Module], group: LinearGroup, settings: Sequence[SolveSettings], meter: BoxMeter
) -> Unit:
    """Solve a group each way, measure the drift with it in place, and put its weights back."""
    original = {name: linear.get_parameter("weight").detach().clone() for name, linear in linears.items()}
    group = replace(group, weights=original)  # not the parameters, which change below
    choices = []
    for chosen in settings:
        for name, weight in solve_group(group, chosen).items():
            put_weight(linears[name], weight)
        size = sum(stored_bytes((len(values), values.shape[1]), chosen.format) for values in original.values())
        choices.append(Choice(chosen.format, size, meter.drift() ** 2))
    for name, values in original.items():
        linears[name].get_parameter("weight").data.copy_(values)
    return Unit(group.names, tuple(choices))

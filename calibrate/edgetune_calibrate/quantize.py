"""Quantize a decoder block by block, each on what the already quantized blocks before it give it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgetune_calibrate.activations import Activations
from edgetune_calibrate.capture import Held, Stream, Surroundings, VisionCache, output_head
from edgetune_calibrate.fold import fold, seams
from edgetune_calibrate.linears import check_columns, group_of, input_groups, put_weight, untie, visible
from edgetune_calibrate.moments import Moments, TokenWeights, relative_error
from edgetune_calibrate.parts import Parts
from edgetune_calibrate.solve import LinearGroup, SolveSettings, solve_group
from edgetune_calibrate.solve.awq import search_factors
from edgetune_core.blocks import of_blocks
from edgetune_core.progress import Tell, no_one
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat, BlockWeight

Solver = Callable[[LinearGroup, SolveSettings], dict[str, BlockWeight]]
Factors = Callable[[LinearGroup, SolveSettings], Tensor]
_NONE: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class SolvedBlock:
    """A decoder block's solution, or the head's, which comes after the last block.

    Attributes:
        index: number of the block.
        weights: full module name -> quantized weight.
        overrides: full parameter name -> float32 values that replace a norm weight or bias.
        report: for each linear its share of output energy lost ("error"), the tokens it was solved on ("tokens"),
            and the block's "seconds".
    """

    index: int
    weights: dict[str, BlockWeight]
    overrides: dict[str, npt.NDArray[np.float32]]
    report: dict[str, Any]


@dataclass(frozen=True)
class DecoderSettings:
    """How a decoder is walked through and its linears are solved.

    Attributes:
        solve: method and format of the blocks' linears.
        head: method and format of the head, or None to leave it as it is.
        formats: full names of linears with a format of their own; linears that share an input share a format.
        true_sequential: the linears of a block see what the quantized ones before them in the same block give.
        compensate: also capture the unquantized model's inputs, for solvers that aim at its outputs (GPTAQ, arXiv
            2504.02692).
        offload: keep activations in host memory between uses.
    """

    solve: SolveSettings
    head: SolveSettings | None = None
    formats: Mapping[str, BlockFormat] | None = None
    true_sequential: bool = True
    compensate: bool = True
    offload: bool = False

    def of(self, name: str) -> SolveSettings:
        """Return how to solve a linear of a block."""
        fmt = (self.formats or {}).get(name)
        if fmt is None:
            return self.solve
        return replace(self.solve, bits=fmt.bits, group_size=fmt.block, symmetric=fmt.symmetric)


def quantize_decoder(
    model: nn.Module,
    modules: Modules,
    batches: Sequence[Mapping[str, Any]],
    settings: DecoderSettings,
    *,
    token_weights: Sequence[Tensor] | None = None,
    device: torch.device | str = "cpu",
    held: Held | None = None,
    watched: AbstractContextManager[object] | None = None,
    kept: Activations | None = None,
    finished: Sequence[SolvedBlock] = (),
    tell: Tell = no_one,
    solve: Solver = solve_group,
    factors: Factors = search_factors,
) -> Iterator[SolvedBlock]:
    """Yield block after block solved; the model's own weights become the dequantized ones as it goes.

    Args:
        model: a transformers causal language model, with images or without, its weights in any float dtype. Without
            `held` it is moved to the device.
        modules: where its blocks, linears and vision tower are (`vision_root` may be empty).
        batches: keyword arguments of the model's forward.
        settings: what to do.
        token_weights: for each batch float32 [B, S], how much each token counts; by default all do the same, and
            those that the batch's `attention_mask` hides do not.
        device: where to compute.
        held: loads the weights of a block, of the head or of the vision tower of a model that has them in files; they
            are needed only for the time of it.
        watched: entered while the vision tower reads each batch, which it does once, whatever is left to solve.
        kept: where activations rest; by default in memory, on the device or as the settings say.
        tell: called with how many batches the vision tower has read, before the first block.
        finished: the first blocks' solutions from an earlier run, which are taken as they are.
        solve: finds the codes of linears that share an input.
        factors: finds by what the method "awq" divides that input first, a factor a channel.

    Raises:
        InputError: a group size does not divide a layer's inputs, linears that share an input have different
            formats, no block has one of the family's linears, or there are no batches.
    """
    where = torch.device(device)
    if held is None:
        model.to(where)
    kept = kept or Activations("cpu" if settings.offload else where)
    walk = _Walk(model, modules, batches, settings, token_weights, where, held or nullcontext, kept, solve, factors)
    return walk.blocks(finished, watched or nullcontext(), tell)


class _Walk:
    def __init__(
        self,
        model: nn.Module,
        modules: Modules,
        batches: Sequence[Mapping[str, Any]],
        settings: DecoderSettings,
        token_weights: Sequence[Tensor] | None,
        device: torch.device,
        held: Held,
        kept: Activations,
        solve: Solver,
        factors: Factors,
    ) -> None:
        if not batches:
            raise InputError("no batches to calibrate on")
        self._model, self._modules, self._batches, self._settings = model.eval(), modules, batches, settings
        self._device, self._held, self._kept = device, held, kept
        self._solver, self._factors = solve, factors
        listed: Any = model.get_submodule(modules.blocks)
        self._blocks: list[nn.Module] = list(listed)
        self._names = of_blocks(modules, self._blocks)
        self._groups = [input_groups(names) for names in self._names]
        weights = token_weights or [visible(batch) for batch in batches]
        self._weights = [TokenWeights.of(weight, device) for weight in weights]
        self._check()

    def _check(self) -> None:
        """Refuse formats that do not fit before hours are spent."""
        for index, block in enumerate(self._blocks):
            for group in self._groups[index]:
                names = [self._name(index, name) for name in group]
                if len({self._settings.of(name).format for name in names}) > 1:
                    raise InputError(f"{' and '.join(names)} share an input, so they need the same format")
                check_columns(names[0], block.get_submodule(group[0]), self._settings.of(names[0]))
        if self._settings.head:
            check_columns(*self._head(), self._settings.head)

    def blocks(
        self, finished: Sequence[SolvedBlock], watched: AbstractContextManager[object], tell: Tell
    ) -> Iterator[SolvedBlock]:
        """Yield what is left to solve after the finished blocks."""
        start, last = len(finished), len(self._blocks)
        remaining = range(start, last + (self._settings.head is not None))
        vision = None
        if self._modules.vision_root:
            tower = self._model.get_submodule(self._modules.vision_root)
            vision = VisionCache(tower, self._kept, self._device)
        try:
            around = Surroundings(self._model, self._blocks, self._batches, vision, self._kept, self._device)
            with self._held(vision.tower) if vision is not None else nullcontext(), watched:
                around.survey(tell)
            if not remaining:
                return
            stream = Stream(around, "quantized")
            original = Stream(around, "original") if self._settings.compensate else None
            for index, solved in enumerate(finished):
                self._pass(index, stream, original, solved)
            for index in remaining:
                began = time.perf_counter()
                solved = self._pass(index, stream, original)
                yield replace(solved, report={**solved.report, "seconds": round(time.perf_counter() - began, 3)})
        finally:
            if vision is not None:
                vision.close()

    def _pass(
        self, index: int, stream: Stream, original: Stream | None, solved: SolvedBlock | None = None
    ) -> SolvedBlock:
        """Take all batches through a block (or up to the head), solving it on the way unless it is solved."""
        streams = [stream] if original is None else [original, stream]
        head = index == len(self._blocks)
        parts = (
            None
            if head or solved or not self._settings.true_sequential
            else Parts(self._blocks[index], self._names[index])
        )
        with self._held(self._head()[1] if head else self._blocks[index]):
            for each in streams:
                each.enter(index)
            if index == 0:
                stream.around.forget_first()
            if original is not None and not head:  # while the block is what it was
                original.leave([] if solved else [group[0] for group in self._groups[index]], parts)
            if solved is not None:
                self._apply(solved)
            elif head:
                solved = self._solve_head(stream, original)
            else:
                solved = self._solve_block(index, stream, original, parts)
            if not head:
                stream.leave(parts=parts)
        return solved

    def _solve_block(self, index: int, stream: Stream, original: Stream | None, parts: Parts | None) -> SolvedBlock:
        """Solve the groups of a block in order; their dequantized weights are in the block afterwards."""
        solved = SolvedBlock(index, {}, {}, {"error": {}, "tokens": {}})
        divisors = self._fold(index, stream, solved) if self._settings.solve.method == "awq" else {}
        every = self._groups[index]
        for groups in [[group] for group in every] if self._settings.true_sequential else [every]:
            moments = self._moments([group[0] for group in groups], stream, original, divisors, parts)
            for group in groups:
                linears = {self._name(index, name): self._blocks[index].get_submodule(name) for name in group}
                self._solve(linears, moments[group[0]], self._settings.of(next(iter(linears))), solved)
        return solved

    def _fold(self, index: int, stream: Stream, solved: SolvedBlock) -> dict[str, Tensor]:
        """Move factors into what makes the linears' inputs, and note the norms and biases that this changes.

        Returns:
            By what the inputs of linears are divided now.
        """
        block = self._blocks[index]
        moments = self._moments([group[0] for group in self._groups[index]], stream, None)
        divisors: dict[str, Tensor] = {}
        changed: set[str] = set()
        for seam in list(seams(self._names[index], block)):
            group = group_of(
                {self._name(index, name): block.get_submodule(name) for name in seam.readers}, moments[seam.readers[0]]
            )
            divisors[seam.readers[0]] = self._factors(group, self._settings.of(group.names[0]))
            changed.update(fold(block, seam, divisors[seam.readers[0]]))
        for name in sorted(changed):
            solved.overrides[self._name(index, name)] = block.get_parameter(name).detach().float().cpu().numpy()
        return divisors

    def _solve_head(self, stream: Stream, original: Stream | None) -> SolvedBlock:
        """Solve the head, which gets a weight of its own when it is tied to the embedding."""
        solved = SolvedBlock(len(self._blocks), {}, {}, {"error": {}, "tokens": {}})
        name, head = self._head()
        assert self._settings.head is not None
        moments = self._moments([""], stream, original)
        self._untie(head)
        self._solve({name: head}, moments[""], self._settings.head, solved)
        return solved

    def _moments(
        self,
        names: Sequence[str],
        stream: Stream,
        original: Stream | None,
        divisors: Mapping[str, Tensor] = _NONE,
        parts: Parts | None = None,
    ) -> dict[str, Moments]:
        """Run the entered block on all batches and add up the moments of what its linears `names` read.

        The original stream's inputs are divided by `divisors`, as those of a folded block are already. With `parts`
        the linears before `names` are as they will be.
        """
        moments = {name: Moments() for name in names}
        for number, weights in enumerate(self._weights):
            inputs = stream.inputs(number, names, parts)
            originals = original.inputs(number, names) if original is not None else {}
            for name in names:
                plain = originals.get(name)
                scaled = plain if plain is None or name not in divisors else plain.float() / divisors[name]
                moments[name].add(inputs[name], weights, scaled)
        return moments

    def _solve(
        self, linears: Mapping[str, nn.Module], moments: Moments, settings: SolveSettings, solved: SolvedBlock
    ) -> None:
        """Solve linears of one input, note the result, and give them the dequantized weights."""
        group = group_of(linears, moments)
        for name, weight in self._solver(group, settings).items():
            solved.report["error"][name] = relative_error(group.weights[name], weight, group.hessian)
            solved.report["tokens"][name] = moments.tokens
            put_weight(linears[name], weight)
            solved.weights[name] = weight

    def _apply(self, solved: SolvedBlock) -> None:
        """Put an earlier run's solution into the model."""
        for name, weight in solved.weights.items():
            linear = self._model.get_submodule(name)
            if linear is self._head()[1]:
                self._untie(linear)
            put_weight(linear, weight)
        for name, values in solved.overrides.items():
            self._model.get_parameter(name).data.copy_(torch.from_numpy(values))

    def _untie(self, head: nn.Module) -> None:
        embedding: Any = self._model
        if head.weight is embedding.get_input_embeddings().weight:
            untie(head)

    def _name(self, index: int, linear: str) -> str:
        return f"{self._modules.blocks}.{index}.{linear}"

    def _head(self) -> tuple[str, nn.Module]:
        head = output_head(self._model)
        return next(name for name, module in self._model.named_modules() if module is head), head

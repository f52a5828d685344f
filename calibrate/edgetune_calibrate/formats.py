"""Which format each layer gets: as told, or chosen by what it costs in boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgetune_calibrate.activations import Activations
from edgetune_calibrate.allocate import Allocation, Choice, Unit, plan
from edgetune_calibrate.capture import output_head
from edgetune_calibrate.journal import UnitLog
from edgetune_calibrate.linears import check_columns
from edgetune_calibrate.sensitivity import BoxMeter, measure
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_calibrate.solve import SolveSettings
from edgetune_core.blocks import of_block
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import Sample
from edgetune_core.coordinates import box_places, digit_tokens
from edgetune_core.streaming import StreamedModel
from edgetune_core.weightset import HEAD
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.blocks import BlockFormat


def told_formats(model: nn.Module, modules: Modules, settings: CalibrateSettings) -> dict[str, BlockFormat]:
    """Return each block linear's format: the largest of the group sizes that divides its inputs.

    Raises:
        InputError: none does.
    """
    formats = {}
    blocks = model.get_submodule(modules.blocks)
    for index, block in enumerate(blocks.children()):
        for role in of_block(modules, block).linears:
            name, linear = f"{modules.blocks}.{index}.{role}", block.get_submodule(role)
            candidates = settings.candidates(linear.get_parameter("weight").shape[1])
            check_columns(name, linear, candidates[0] if candidates else settings.solve)
            formats[name] = candidates[0].format
    return formats


def head_settings(model: Any, settings: CalibrateSettings) -> SolveSettings | None:
    """Return how the head is solved, or None where it is left as it is."""
    return settings.head_solve(output_head(model).get_parameter("weight").shape[1])


@dataclass(frozen=True)
class Chosen:
    """Formats chosen by sensitivity, and the measurements that they were chosen by."""

    plan: Allocation
    units: tuple[Unit, ...]

    @property
    def formats(self) -> dict[str, BlockFormat]:
        """Full names of the blocks' linears -> format."""
        return {name: fmt for name, fmt in self.plan.formats.items() if name != HEAD}

    def to_dict(self, settings: CalibrateSettings, measured: float) -> dict[str, Any]:
        """Return the manifest's account.

        Args:
            settings: with the budget or the limit.
            measured: mean drift of the calibration records' boxes with all layers quantized.
        """
        return {
            "budget_mb": settings.budget_mb,
            "max_drop": settings.max_drop,
            "layers_mb": round(self.plan.size / 1e6, 3),
            "expected_drop": float(f"{100 * self.plan.drift:.4g}"),
            "measured_drop": float(f"{100 * measured:.4g}"),
            "units": [
                {
                    "linears": list(unit.names),
                    "chosen": _told(self.plan.formats[unit.names[0]]),
                    "choices": [_tried(choice) for choice in unit.choices],
                }
                for unit in self.units
            ],
        }


def _told(fmt: BlockFormat) -> dict[str, int]:
    return {"bits": fmt.bits, "group_size": fmt.block}


def _tried(choice: Choice) -> dict[str, Any]:
    return {**_told(choice.format), "bytes": choice.size, "drop": float(f"{100 * choice.error**0.5:.4g}")}


class BoxPlanner:
    """Chooses formats for a model's linears, then measures what the quantized model's boxes became.

    Args:
        streamed: the unquantized model.
        source: its checkpoint.
        samples: the calibration records.
        batches: the same as keyword arguments of the model's forward.
        settings: with a budget or a limit.
        log: of units that are measured; kept until all layers are solved, so that a killed run measures none again.
        kept: where activations rest.

    Raises:
        InputError: no record has a box.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        source: HubCheckpoint,
        samples: Sequence[Sample],
        batches: Sequence[dict[str, Any]],
        settings: CalibrateSettings,
        log: UnitLog,
        kept: Activations,
    ) -> None:
        self._streamed, self._source, self._batches, self._settings = streamed, source, batches, settings
        places = [box_places(sample, source.tokenizer) for sample in samples]
        answers = [len(sample.answer_ids) for sample in samples]
        digits = digit_tokens(source.tokenizer)
        self._meter = BoxMeter(streamed.model, batches, places, answers, digits, settings.device)
        self._log, self._kept = log, kept

    def choose(self, token_weights: Sequence[Tensor], progress: Callable[[int], object]) -> Chosen:
        """Measure every unit, continuing where an interrupted run was, and choose.

        Args:
            token_weights: how much each token counts for the solver.
            progress: told how many units are measured.

        Raises:
            InputError: no choice is within the budget or the limit.
        """
        finished = self._log.finished()
        units = []
        for unit in measure(
            self._streamed.model,
            self._source.modules,
            self._batches,
            self._meter,
            self._settings.candidates,
            head=head_settings(self._streamed.model, self._settings),
            token_weights=token_weights,
            device=self._settings.device,
            held=self._streamed.loaded,
            kept=self._kept,
            finished=finished,
        ):
            units.append(unit)
            if len(units) > len(finished):
                self._log.add(unit)
            progress(len(units))
        budget, drop = self._settings.budget_mb, self._settings.max_drop
        chosen = plan(
            units,
            budget=None if budget is None else int(budget * 1e6),
            max_drift=None if drop is None else drop / 100,
        )
        return Chosen(chosen, tuple(units))

    def finish(self, quantized: StreamedModel) -> float:
        """Forget the log, and return how far the quantized model's boxes are from the unquantized model's."""
        self._log.close()
        return self._meter.drift(quantized.model)

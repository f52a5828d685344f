"""The knobs of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from edgetune_calibrate.batches import ROLES
from edgetune_calibrate.quantize import DecoderSettings
from edgetune_calibrate.solve import SolveSettings
from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.quant.blocks import BlockFormat

Device = Literal["cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class CalibrateSettings:
    """Everything that a calibration depends on besides its input files.

    Attributes:
        solve: method and format of the decoder blocks' linears.
        bits: what a linear's bits may be; empty for those of `solve`. Several need a budget or a limit to choose by.
        group_sizes: what its group size may be; empty for that of `solve`. Without a budget or a limit each linear
            gets the largest that divides its inputs.
        budget_mb: choose formats of least drift in boxes whose weights take at most so many megabytes (10^6 bytes).
        max_drop: choose formats of least size that are expected to cost at most so many points (percent) of box IoU.
        head: bits of the language model head; 16 leaves it as it is.
        samples: how many records to calibrate on; None takes 128, or all where there are fewer.
        seed: of their choice.
        modality_weights: role of a token ("image", "prompt", "answer") -> how much all tokens of that role together
            count; empty counts every token the same.
        true_sequential: linears of a block see what the quantized ones before them in the block give.
        compensate: aim at the unquantized model's outputs, not at those for quantized inputs ("rtn" aims at nothing).
        device: where to compute.
        precision: of the forward pass and the weights held; "auto" is float32 on the CPU, and on a GPU bfloat16 for a
            bfloat16 checkpoint. Statistics and solutions are float32.
        offload: keep activations in host memory between blocks.
    """

    solve: SolveSettings = field(default_factory=SolveSettings)
    bits: tuple[int, ...] = ()
    group_sizes: tuple[int, ...] = ()
    budget_mb: float | None = None
    max_drop: float | None = None
    head: int = 16
    samples: int | None = None
    seed: int = 0
    modality_weights: Mapping[str, float] = field(default_factory=dict)
    true_sequential: bool = True
    compensate: bool = True
    device: Device = "cpu"
    precision: Precision = "auto"
    offload: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.head not in (16, 8, 4):
            raise InputError(f"the head's bits are {self.head}, must be 16, 8 or 4")
        self._check_choice()
        if self.samples is not None and self.samples < 1:
            raise InputError(f"{self.samples} samples: at least one is needed")
        weights = self.modality_weights
        if weights and set(weights) != set(ROLES):
            raise InputError(f"modality weights name {', '.join(weights)}", hint=f"give all of {', '.join(ROLES)}")
        if weights and not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
            raise InputError(f"modality weights must be at least 0: {dict(weights)}")
        if weights and sum(weights.values()) == 0:
            raise InputError("modality weights are all 0: no token would count")

    def _check_choice(self) -> None:
        if self.budget_mb is not None and self.max_drop is not None:
            raise InputError("a budget and a limit of the drop exclude each other", hint="give one of them")
        for value, what in ((self.budget_mb, "the budget"), (self.max_drop, "the limit of the drop")):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{what} is {value}, must be above 0")
        if not self.chooses and len(self.bits) > 1:
            raise InputError(
                f"{' and '.join(map(str, self.bits))} bits: nothing says which layer gets which",
                hint="give --budget-mb or --max-drop, or one number of bits",
            )
        if self.chooses and max(len(self.bits), 1) * max(len(self.group_sizes), 1) == 1:
            raise InputError(
                "there is one format to choose from", hint="give several --bits (4,8) or --group-size (32,128)"
            )
        for bits in self.bits:
            for size in self.group_sizes:
                replace(self.solve, bits=bits, group_size=size)  # which refuses what no solver knows

    @property
    def chooses(self) -> bool:
        """Whether formats are chosen by what they cost in boxes."""
        return self.budget_mb is not None or self.max_drop is not None

    def candidates(self, columns: int) -> list[SolveSettings]:
        """Return the ways to solve a linear of so many inputs, those of fewest bytes first."""
        return [
            replace(self.solve, bits=bits, group_size=size)
            for bits in sorted(self.bits or (self.solve.bits,))
            for size in sorted(self.group_sizes or (self.solve.group_size,), reverse=True)
            if columns % size == 0
        ]

    def head_solve(self, columns: int) -> SolveSettings | None:
        """Return how to solve a head of so many inputs; None leaves it as it is."""
        if self.head == 16:
            return None
        sizes = [one.group_size for one in self.candidates(columns)]
        return replace(self.solve, bits=self.head, group_size=max(sizes, default=self.solve.group_size))

    def decoder(self, formats: Mapping[str, BlockFormat], head: SolveSettings | None) -> DecoderSettings:
        """Return how the decoder is solved.

        Args:
            formats: full names of linears -> format.
            head: how the head is solved, see `head_solve`.
        """
        return DecoderSettings(
            solve=self.solve,
            head=head,
            formats=formats,
            true_sequential=self.true_sequential,
            compensate=self.compensate and self.solve.method != "rtn",
            offload=self.offload,
        )

    def dtype(self, stored: str) -> torch.dtype:
        """Return what to hold the weights in, given the checkpoint's dtype as config.json names it."""
        if self.precision == "auto":
            return torch.bfloat16 if self.device == "cuda" and stored == "bfloat16" else torch.float32
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def check_device(self) -> None:
        """Raise MissingDependency where the device does not exist."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingDependency("--device cuda: torch finds no CUDA GPU here", hint="use --device cpu")

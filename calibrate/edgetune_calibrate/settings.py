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

Device = Literal["cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class CalibrateSettings:
    """Everything that a calibration depends on besides its input files.

    Attributes:
        solve: method and format of the decoder blocks' linears.
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
        if self.samples is not None and self.samples < 1:
            raise InputError(f"{self.samples} samples: at least one is needed")
        weights = self.modality_weights
        if weights and set(weights) != set(ROLES):
            raise InputError(f"modality weights name {', '.join(weights)}", hint=f"give all of {', '.join(ROLES)}")
        if weights and not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
            raise InputError(f"modality weights must be at least 0: {dict(weights)}")
        if weights and sum(weights.values()) == 0:
            raise InputError("modality weights are all 0: no token would count")

    @property
    def decoder(self) -> DecoderSettings:
        """How the decoder is solved."""
        return DecoderSettings(
            solve=self.solve,
            head=None if self.head == 16 else replace(self.solve, bits=self.head),
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

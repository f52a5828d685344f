"""What a user chooses about an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgetune_core.weightset import HEAD, WeightSet
from edgetune_runtime.errors import InputError
from edgetune_runtime.quant.blocks import BlockFormat

PRECISIONS = ("fp32", "fp16", "int8", "int4")
VISION_PRECISIONS = ("fp32", "fp16", "int8", "int8-static")
"""int8 finds the scale of activations at each call, int8-static has it from calibration."""

TARGETS = ("cpu", "cuda")
BLOCK_SIZES = (32, 64, 128)
DIALECTS = ("ort", "plain")
"""Operators of format "onnx": onnxruntime's own, or those of the ONNX standard only."""

ACCURACY_LEVELS = (0, 4)
"""Of quantized products: 0 leaves activations alone, 4 lets CPU kernels round them to int8 by block, the fast path."""

TRT_PROFILES = ("10.3", "10.13", "10.16")
"""Oldest TensorRT that is to read the graphs."""
DEFAULT_BLOCK = 32


@dataclass(frozen=True)
class ExportOptions:
    """Settings of one export.

    Attributes:
        precision: of the decoder's weights. fp16 also computes in float16.
        vision_precision: of the vision encoder; None follows `precision`, int8 standing in for int4.
        head_precision: of the language model head; None follows `precision`, int8 standing in for int4.
        target: "cuda" computes in float16, which onnxruntime's CUDA attention needs.
        block_size: weights that share a scale, along the input; None is 32, and for TensorRT 128 or 64.
        symmetric: leave zero points out of int4 weights.
        max_length: prompt and answer together, in tokens; None derives it from the image limit.
        accuracy_level: see ACCURACY_LEVELS.
        dialect: see DIALECTS.
        trt_profile: see TRT_PROFILES; None is the oldest, or the newest where `trt_targets` names RTX GPUs.
        trt_targets: compute capabilities, such as "8.6", to build TensorRT-RTX engines for.
    """

    precision: str = "int4"
    vision_precision: str | None = None
    head_precision: str | None = None
    target: str = "cpu"
    block_size: int | None = None
    symmetric: bool = False
    max_length: int | None = None
    accuracy_level: int = 4
    dialect: str = "ort"
    trt_profile: str | None = None
    trt_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _choose("precision", self.precision, PRECISIONS)
        _choose("target", self.target, TARGETS)
        _choose("block size", self.block_size, (None, *BLOCK_SIZES))
        _choose("vision precision", self.vision, VISION_PRECISIONS)
        _choose("head precision", self.head, PRECISIONS)
        _choose("dialect", self.dialect, DIALECTS)
        _choose("accuracy level", self.accuracy_level, ACCURACY_LEVELS)
        _choose("TensorRT profile", self.trt_profile, (None, *TRT_PROFILES))
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max length must be at least 1, not {self.max_length}")

    @property
    def half(self) -> bool:
        """Whether activations are float16."""
        return self.precision == "fp16" or self.target == "cuda"

    @property
    def vision(self) -> str:
        """Precision of the vision encoder; on CUDA, where int8 saves no time, float16 takes its place by default."""
        if self.vision_precision is not None:
            return self.vision_precision
        if self.target == "cuda" and self.precision != "fp32":
            return "fp16"
        return "int8" if self.precision == "int4" else self.precision

    @property
    def head(self) -> str:
        """Precision of the language model head."""
        return self.head_precision or ("int8" if self.precision == "int4" else self.precision)

    @property
    def table(self) -> str:
        """How the token table is stored: fp32, fp16, or int8 with one scale a token."""
        return "int8" if "int" in self.precision else self.precision

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded, so that the export must equal the checkpoint to float32 accuracy."""
        return not self.half and self.precision == self.vision == self.head == "fp32"

    def block_format(self, precision: str) -> BlockFormat | None:
        """Weight format of a precision; None for dense weights in the activation dtype."""
        block = self.block_size or DEFAULT_BLOCK
        if precision == "int4":
            return BlockFormat(4, block, self.symmetric)
        return BlockFormat(8, block, symmetric=True) if precision == "int8" else None

    def check_weights(self, weights: WeightSet | None) -> None:
        """Refuse options that contradict a weight set.

        Raises:
            InputError: a precision of the decoder or its head was chosen beside the set's own.
        """
        if weights is None:
            return
        if self.precision != "int4":
            raise InputError(
                f"precision {self.precision} and the weight set {weights.folder} exclude each other",
                hint="the set has the decoder's weights: leave one of the two out",
            )
        if self.head_precision is not None and HEAD in weights:
            raise InputError(
                f"head precision {self.head_precision}, but the weight set {weights.folder} has the head already",
                hint="leave the head's precision out",
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings with defaults resolved, as JSON values."""
        return {**asdict(self), "vision_precision": self.vision, "head_precision": self.head}


def _choose(what: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        names = ", ".join(str(name) for name in known if name is not None)
        raise InputError(f"unknown {what} {value!r}", hint=f"choose one of: {names}")

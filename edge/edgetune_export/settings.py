"""What a user chooses about an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgetune_core.options import Options, option
from edgetune_runtime.errors import InputError
from edgetune_runtime.pixels import parse_area

if TYPE_CHECKING:
    from edgetune_core.weightset import WeightSet
    from edgetune_runtime.quant.blocks import BlockFormat

Precision = Literal["fp32", "fp16", "int8", "int4"]
Purpose = Literal["lean", "server"]
Names = Literal["hub", "transformers"]
VisionPrecision = Literal["fp32", "fp16", "int8", "int8-static"]
Block = Literal[32, 64, 128]
DEFAULT_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Options):
    """Settings of one export.

    Attributes:
        precision: of the decoder's weights. fp16 also computes in float16.
        vision_precision: of the vision encoder; None follows `precision`, int8 standing in for int4. int8 finds the
            scale of activations at each call, int8-static has it from calibration.
        head_precision: of the language model head; None follows `precision`, int8 standing in for int4.
        target: "cuda" computes in float16, which onnxruntime's CUDA attention needs; "openvino" writes the vision
            encoder in standard operators.
        block_size: weights that share a scale, along the input; None is 32, for TensorRT 128 or 64, and for the head
            beside a weight set what most of the set's layers have.
        symmetric: leave zero points out of int4 weights.
        accuracy_level: of quantized products: 0 leaves activations alone, 4 lets CPU kernels round them to int8 by
            block, the fast path.
        dialect: operators of format "onnx": onnxruntime's own, or those of the ONNX standard only.
        trt_profile: oldest TensorRT that is to read the graphs; None is the oldest, or the newest where `trt_targets`
            names RTX GPUs.
        trt_targets: compute capabilities, such as "8.6", to build TensorRT-RTX engines for.
        max_length: prompt and answer together, in tokens; None derives it from the image limit.
        names: of tensors in formats that are checkpoints: those of the family's published ones ("hub", which None
            stands for), or those of the modules in transformers.
        purposes: what a bundle that can be several things is written for; empty is all of them.
        min_pixels: smallest area of a resized picture; None is the checkpoint's.
        max_pixels: largest area, likewise.
        check: how much of the self-check is done, see docs/export.md.
        device: where weights are rounded to nearest and the self-check's reference computes.
    """

    precision: Precision = option(
        "int4", help="Weights of the language model's layers; int8 and int4 are rounded to nearest by block."
    )
    vision_precision: VisionPrecision | None = option(
        None,
        help="Weights of the vision encoder; by default as --precision, but int8 with int4, and fp16 with int8 or "
        "int4 where the bundle is for cuda or of format trt. int8-static takes the scales of activations from "
        "the weight set, and is the default where one has them and the bundle is for openvino.",
    )
    head_precision: Precision | None = option(
        None,
        help="Weights of the language model head; by default as in the weight set, else as --precision, but "
        "int8 for int4.",
    )
    target: Literal["cpu", "cuda", "openvino"] = option(
        "cpu",
        help="Device that the bundle is for: cuda computes in float16; openvino is a CPU whose vision encoder runs in "
        "OpenVINO (run --engine openvino).",
    )
    block_size: Block | None = option(
        None,
        help="How many weights share a scale where they are rounded to nearest.",
        shown="32, or as a weight set's layers; for trt 128 or 64",
    )
    symmetric: bool = option(False, help="Round int4 weights without zero points: smaller and slightly less accurate.")
    accuracy_level: Literal[0, 4] = option(
        4,
        help="Activation rounding in quantized matrix products: 4 lets CPUs round activations to int8 by "
        "block, which is faster; 0 keeps them in float.",
    )
    dialect: Literal["ort", "plain"] = option(
        "ort",
        help="Operators of format onnx: onnxruntime's own (ort), or only those of the ONNX standard (plain), "
        "for other runtimes.",
    )
    trt_profile: Literal["10.3", "10.13", "10.16"] | None = option(
        None,
        help="Oldest TensorRT version that the graphs of format trt have to run on; 10.3 is the one of JetPack 6.2.",
        shown="10.3; with --trt-target 10.16",
    )
    trt_targets: tuple[str, ...] = option(
        (),
        help="Build TensorRT-RTX engines for these GPUs now, by compute capability with commas between them, "
        "such as sm86,sm120; otherwise the device builds its own.",
        flag="--trt-target",
        commas=True,
    )
    max_length: int | None = option(
        None,
        help="Longest prompt and answer together, in tokens; by default the largest image and 1024 more.",
        minimum=1,
    )
    names: Names | None = option(
        None,
        help="Names of tensors in checkpoints: those of the family's published ones, which servers know, or those of "
        "the modules in transformers, which GPTQModel needs.",
        shown="hub",
    )
    purposes: tuple[Purpose, ...] = option(
        (),
        help="What a checkpoint is written for: lean is our runtime without torch, server a plain Hugging Face "
        "checkpoint; one alone leaves out what only the other needs.",
        shown="lean,server",
        flag="--for",
        metavar="NAME[,NAME]",
        commas=True,
    )
    min_pixels: int | None = option(
        None,
        help="Smallest area of a resized picture in pixels.",
        shown="the checkpoint's",
        parse=parse_area,
        minimum=1,
    )
    max_pixels: int | None = option(
        None,
        help="Largest area of a resized picture in pixels, such as 400k: time and memory of an answer follow it.",
        shown="the checkpoint's",
        parse=parse_area,
        minimum=1,
    )

    check: Literal["full", "fast", "none"] = option(
        "full",
        help="Self-check against transformers: fast asks fewer questions and does not look for the model's own answers "
        "where they differ; none leaves the bundle unchecked, which its manifest says.",
    )
    device: Literal["cpu", "cuda"] = option(
        "cpu", help="Device on which weights are rounded to nearest and transformers computes for the self-check."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trt_targets:
            return
        from edgetune_runtime.backends.trt.build_engine import parse_target

        object.__setattr__(self, "trt_targets", tuple(parse_target(name) for name in self.trt_targets))

    @property
    def half(self) -> bool:
        """Whether activations are float16."""
        return self.precision == "fp16" or self.target == "cuda"

    @property
    def standard_vision(self) -> bool:
        """Whether the vision encoder is written in operators of the ONNX standard alone."""
        return self.dialect == "plain" or self.target == "openvino"

    @property
    def for_servers(self) -> bool:
        """Whether a checkpoint is written for servers alone, without graphs."""
        return self.purposes == ("server",)

    @property
    def tensor_names(self) -> Names:
        """Names of tensors in formats that are checkpoints."""
        return self.names or "hub"

    @property
    def vision(self) -> str:
        """Precision of the vision encoder; on CUDA, where int8 saves no time, float16 takes its place by default."""
        if self.for_servers:
            return "fp32"  # they run the checkpoint's own, which is not rounded
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

    def block_format(self, precision: str, beside: WeightSet | None = None) -> BlockFormat | None:
        """Weight format of a precision; None for dense weights in the activation dtype.

        Args:
            precision: of the weights.
            beside: a weight set whose layers it joins: where no size was chosen, it takes most of theirs.
        """
        from edgetune_runtime.quant.blocks import BlockFormat

        theirs = beside.usual.block if beside is not None else DEFAULT_BLOCK
        block = self.block_size or (theirs if theirs in get_args(Block) else DEFAULT_BLOCK)
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
        from edgetune_core.weightset import HEAD

        if self.head_precision is not None and HEAD in weights:
            raise InputError(
                f"head precision {self.head_precision}, but the weight set {weights.folder} has the head already",
                hint="leave the head's precision out",
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings with defaults resolved, as JSON values."""
        resolved = {"vision_precision": self.vision, "head_precision": self.head, "names": self.tensor_names}
        return {**asdict(self), **resolved}

"""What a user chooses about a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgetune_core.options import Options, option
from edgetune_runtime.errors import InputError, MissingDependency

if TYPE_CHECKING:
    import torch

    from edgetune_calibrate.quantize import DecoderSettings
    from edgetune_calibrate.solve import SolveSettings
    from edgetune_runtime.quant.blocks import BlockFormat

Method = Literal["gptq", "awq", "rtn"]
Device = Literal["cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
ROLES = ("image", "prompt", "answer")
"""What a token of a conversation belongs to."""


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(Options):
    """Everything that a calibration depends on besides its input files.

    Attributes:
        method: how codes are found.
        bits: what a linear's bits may be; none are 4, or 4 and 8 where a budget or a limit chooses.
        group_sizes: what its group size may be. Without a budget or a limit each linear gets the largest that divides
            its inputs.
        budget_mb: choose formats of least drift in boxes whose weights take at most so many megabytes (10^6 bytes).
        max_drop: choose formats of least size that are expected to cost at most so many points (percent) of box IoU.
        symmetric: zero points are left out.
        head: bits of the language model head; 16 leaves it as it is.
        samples: how many records to calibrate on; None takes 128, or all where there are fewer.
        seed: of their choice.
        modality_weights: role of a token (see `ROLES`) -> how much all tokens of that role together count; empty counts
            every token the same.
        compensate: aim at the unquantized model's outputs, not at those for quantized inputs ("rtn" aims at nothing).
        device: where to compute.
        precision: of the forward pass and the weights held; "auto" is float32 on the CPU, and on a GPU bfloat16 for a
            bfloat16 checkpoint. Statistics and solutions are float32.
        offload: keep activations in host memory between blocks.
        memory_gb: host memory of the whole run in GB (10^9 bytes); activations that do not fit rest in files. None
            takes half of what is free.
        true_sequential: linears of a block see what the quantized ones before them in the block give.
    """

    method: Method = option("gptq", help="Quantization algorithm; rtn is the fastest and the least accurate.")
    bits: tuple[Literal[3, 4, 8], ...] = option(
        (),
        help="Bits of a weight: 3, 4 or 8, by default 4. With --budget-mb or --max-drop several to choose "
        "from, by default 4,8.",
        metavar="N[,N]",
        commas=True,
    )
    group_sizes: tuple[Literal[32, 64, 128], ...] = option(
        (128,),
        help="How many weights share a scale: 32, 64 or 128. Of several, a layer gets the largest that "
        "divides its number of inputs.",
        flag="--group-size",
        metavar="N[,N]",
        commas=True,
        shown="128",
    )
    budget_mb: float | None = option(
        None,
        help="Choose each layer's bits and group size so that boxes move least within this many MB (10^6 "
        "bytes) of layers.",
        minimum=0,
        above=True,
    )
    max_drop: float | None = option(
        None,
        help="Choose each layer's bits and group size so that the layers are smallest and boxes are expected "
        "to lose at most this many points of IoU.",
        minimum=0,
        above=True,
    )
    symmetric: bool = option(False, help="Quantize without zero points: smaller and slightly less accurate.")
    head: Literal[16, 8, 4] = option(16, help="Bits of the language model head; 16 leaves it unquantized.")
    samples: int | None = option(
        None, help="How many records to calibrate on; by default 128, or all if there are fewer.", minimum=1
    )
    seed: int = option(0, help="Random seed for choosing the records.")
    modality_weights: Mapping[str, float] = option(
        {},
        help="How much all image, prompt or answer tokens together count, such as image=1; give all three. "
        "Every token counts the same unless given.",
        flag="--modality-weight",
        metavar="ROLE=SHARE",
        minimum=0,
    )
    compensate: bool = option(
        True,
        help="Let later layers make up for the errors of earlier ones, by aiming at the unquantized model's "
        "outputs; takes one more forward pass of each block.",
    )
    device: Device = option("cpu", help="Device to compute on.")
    precision: Precision = option(
        "auto",
        help="Dtype of the forward pass; auto is fp32 on the CPU and for fp32 checkpoints, and bf16 on a GPU "
        "for a bf16 checkpoint.",
    )
    offload: bool = option(False, help="Keep activations in host memory: takes less GPU memory and is a little slower.")
    memory_gb: float | None = option(
        None,
        help="Host memory that the whole run may take, in GB (10^9 bytes); by default half of what is free. "
        "Activations that do not fit rest in files beside the output.",
        minimum=0,
        above=True,
    )
    true_sequential: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.group_sizes:
            raise InputError("--group-size: no size given")
        if not self.bits:
            object.__setattr__(self, "bits", (4, 8) if self.chooses else (4,))
        if self.budget_mb is not None and self.max_drop is not None:
            raise InputError("a budget and a limit of the drop exclude each other", hint="give one of them")
        if not self.chooses and len(self.bits) > 1:
            raise InputError(
                f"{' and '.join(map(str, self.bits))} bits: nothing says which layer gets which",
                hint="give --budget-mb or --max-drop, or one number of bits",
            )
        if self.chooses and len(self.bits) * len(self.group_sizes) == 1:
            raise InputError(
                "there is one format to choose from", hint="give several --bits (4,8) or --group-size (32,128)"
            )
        weights = self.modality_weights
        if weights and set(weights) != set(ROLES):
            raise InputError(f"modality weights name {', '.join(weights)}", hint=f"give all of {', '.join(ROLES)}")
        if weights and sum(weights.values()) == 0:
            raise InputError("modality weights are all 0: no token would count")

    @property
    def solve(self) -> SolveSettings:
        """How a linear is solved where nothing is chosen."""
        from edgetune_calibrate.solve import SolveSettings

        return SolveSettings(self.method, self.bits[0], max(self.group_sizes), self.symmetric)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values."""
        fields = asdict(self)
        del fields["method"], fields["symmetric"], fields["memory_gb"]
        return {"solve": asdict(self.solve), **fields}

    @property
    def chooses(self) -> bool:
        """Whether formats are chosen by what they cost in boxes."""
        return self.budget_mb is not None or self.max_drop is not None

    def candidates(self, columns: int) -> list[SolveSettings]:
        """Return the ways to solve a linear of so many inputs, those of fewest bytes first."""
        return [
            replace(self.solve, bits=bits, group_size=size)
            for bits in sorted(self.bits)
            for size in sorted(self.group_sizes, reverse=True)
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
        from edgetune_calibrate.quantize import DecoderSettings

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
        import torch

        if self.precision == "auto":
            return torch.bfloat16 if self.device == "cuda" and stored == "bfloat16" else torch.float32
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def check_device(self) -> None:
        """Raise MissingDependency where the device does not exist."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingDependency("--device cuda: torch finds no CUDA GPU here", hint="use --device cpu")

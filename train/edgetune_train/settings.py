"""What a user chooses about a training, supervised or by GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from edgetune_core.options import Options, option
from edgetune_runtime.errors import InputError

Precision = Literal["auto", "bf16", "fp32"]
Quantization = Literal["none", "nf4"]
Attention = Literal["auto", "sdpa", "torch_varlen", "flash_attention_2", "flash_attention_3"]
Keep = Literal["last", "best"]
DEFAULT_REWARDS: Mapping[str, float] = MappingProxyType({"format": 1.0, "iou": 1.0, "refusal": 1.0, "answer": 1.0})


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's shape.

    Attributes:
        rank: inner size r of the update B·A (LoRA, arXiv 2106.09685).
        alpha: the update is scaled by alpha/r, or alpha/√r with `rslora`.
        dropout: probability of dropping an input of the update while training.
        rslora: rank-stabilised scaling (arXiv 2312.03732).
        dora: weight-decomposed update (arXiv 2402.09353): direction by LoRA, magnitude learned apart.
        targets: "auto", names of linear layers (whole or the end of one, as "q_proj"), or regular
            expressions matched against whole dotted names.
        vision: let "auto" and plain names reach the vision tower too.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ("auto",)
    vision: bool = False


@dataclass(frozen=True, kw_only=True)
class RunSettings(Options):
    """What every kind of training depends on besides its input files.

    Attributes:
        epochs: passes over the records.
        batch_size: records per device and step.
        accumulate: steps whose gradients are added up before the optimizer moves.
        learning_rate: its peak; a linear warm-up over 3 % of the steps, then a cosine to zero.
        precision: "bf16" holds the base in bfloat16 and computes under autocast, the adapter stays in float32;
            "auto" is bf16 where the hardware multiplies it natively.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        checkpoint_steps: optimizer steps between two checkpoints that an interrupted run continues from.
        val_limit: records of the validation file that are scored after each epoch.
        cache_mb: memory for image features (or for preprocessed images when the vision tower is trained), in MiB.
        trainer_args: further fields of the trainer's arguments.
        seed: of initial weights, the order of records, and whatever else is random.
    """

    epochs: float = option(3.0, help="Passes over the training records.", minimum=0, above=True)
    batch_size: int = option(8, help="Records in a batch, on each device.", minimum=1)
    accumulate: int = option(1, help="Batches whose gradients are added up for one optimizer step.", minimum=1)
    learning_rate: float = option(
        2e-4,
        help="Peak learning rate: warm-up over the first 3 % of the steps, then a cosine to zero.",
        minimum=0,
        above=True,
    )
    precision: Precision = option(
        "auto", help="Dtype of base weights and compute; auto is bf16 where the hardware has it."
    )
    gradient_checkpointing: bool = option(
        False, help="Recompute activations in the backward pass: less memory, more time."
    )
    checkpoint_steps: int = option(
        100, help="Optimizer steps between two points from which an interrupted run continues.", minimum=1
    )
    val_limit: int = option(200, help="Score at most this many validation records.", minimum=1)
    cache_mb: int = option(2048, help="Memory in which image features are kept between epochs, in MiB.", minimum=0)
    seed: int = option(0, help="Random seed of the adapter's first weights, the order of records and dropout.")
    trainer_args: Mapping[str, Any] = option(
        {},
        help="Any other field of transformers' TrainingArguments. Repeatable.",
        flag="--trainer-arg",
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RunSettings):
    """Everything that a training run depends on besides its input files.

    Attributes:
        rank: see `LoraSettings`, as are alpha, dropout, rslora, dora and targets.
        vision_lora: `LoraSettings.vision`.
        box_loss: weight of the box term in the loss, see `edgetune_train.box_loss`; 0 is cross entropy alone.
        pack: tokens of a sequence that records are packed into, one per device and step; 0 pads batches instead, and
            otherwise `batch_size` is that of validation only.
        attention: how the samples of a pack are kept apart, see `edgetune_train.attention`.
        compile: compile the language blocks, see `edgetune_train.compiled`.
        quantize: "nf4" holds the language blocks in 4 bits (QLoRA, arXiv 2305.14314).
        unfreeze: parts of the vision tower to train whole, "vision.last:N" (blocks) and "merger".
        loraplus_ratio: learning rate of LoRA's B over that of A (LoRA+, arXiv 2402.12354); None is one for both.
        early_stop: validations without a better grounding score after which training ends; None goes on.
        keep: the adapter to keep, of the "last" step or of the "best" validation.
    """

    rank: int = option(16, help="Rank of the LoRA matrices.", minimum=1)
    alpha: int = option(32, help="LoRA alpha: the update is scaled by alpha/rank.", minimum=1)
    dropout: float = option(
        0.0, help="Dropout on the inputs of the LoRA matrices, 0 to 1.", minimum=0, maximum=1, below=True
    )
    rslora: bool = option(False, help="Scale the update by alpha/sqrt(rank) instead (rank-stabilised LoRA).")
    dora: bool = option(False, help="Train direction and magnitude of the weights separately (DoRA).")
    targets: tuple[str, ...] = option(
        ("auto",),
        help="Layers to adapt: auto (every linear layer of the language model), a name such as q_proj, or a "
        "regular expression that matches whole names. Repeatable.",
        flag="--target",
    )
    vision_lora: bool = option(False, help="Adapt the vision tower as well, which stays as it is otherwise.")
    box_loss: float = option(
        0.0,
        help="Weight of an additional loss on the distance of the expected boxes from the true ones (L1 and "
        "GIoU); 0 leaves it out.",
        metavar="WEIGHT",
        minimum=0,
    )
    pack: int = option(
        0,
        help="Pack records into sequences of this many tokens, one on each device in a step; 0 pads batches instead.",
        metavar="TOKENS",
        minimum=0,
    )
    attention: Attention = option(
        "auto", help="Attention implementation for packs and vision towers; auto is the fastest that is installed."
    )
    compile: bool = option(
        False, help="Compile the language blocks with torch.compile, for which the first step takes up to a minute."
    )
    quantize: Quantization = option(
        "none",
        help="nf4 holds the language model's weights in 4 bits while training (QLoRA); merge takes the "
        "unquantized base.",
    )
    unfreeze: tuple[str, ...] = option(
        (),
        help="Parts of the vision tower to train without LoRA: vision.last:N (the last N blocks), merger, or "
        "both with a comma.",
        metavar="PARTS",
        commas=True,
    )
    loraplus_ratio: float | None = option(
        None, help="Learning rate of the LoRA matrices B as a multiple of that of A (LoRA+), such as 16.", minimum=1
    )
    early_stop: int | None = option(
        None, help="Stop after this many validations in a row without a better mIoU.", metavar="PATIENCE", minimum=1
    )
    keep: Keep = option(
        "last", help="Which adapter to keep: the last one, or the one with the best mIoU on the --val records."
    )

    @property
    def lora(self) -> LoraSettings:
        """The adapter's shape."""
        return LoraSettings(self.rank, self.alpha, self.dropout, self.rslora, self.dora, self.targets, self.vision_lora)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values; the adapter's shape is an object of its own."""
        lora = asdict(self.lora)
        return {"lora": lora} | {key: value for key, value in asdict(self).items() if key not in (*lora, "vision_lora")}


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(RunSettings):
    """Everything that a GRPO run (arXiv 2402.03300) depends on besides its input files.

    Attributes:
        rank: of a new adapter, as are alpha and targets; None is the default of `LoraSettings`. One that is trained
            further has its own shape.
        rewards: weight of each reward, see `edgetune_train.rewards.REWARDS`; those that are not named keep theirs, and
            those of weight 0 are left out.
        generations: answers that are sampled for a record and compared with each other.
        temperature: of the sampling.
        max_tokens: of an answer; None is the longest target of the data and half as much again.
        beta: weight of the divergence (KL) from where training started; 0 does without.
        clip: the policy's ratio is clipped to 1 - clip, 1 + clip (epsilon).
        clip_high: the upper clip where it is another one (arXiv 2503.14476), or None.
        batch_size: records per device and step, each with all its answers.
        accumulate: steps whose gradients are added up; their answers are sampled together.
        cache_mb: memory for preprocessed images, in MiB.
    """

    rewards: Mapping[str, float] = option(
        {},
        help="Weight of a reward, which is format, iou, refusal or answer; 1 unless given. Repeatable.",
        flag="--reward",
        metavar="NAME=WEIGHT",
        minimum=0,
    )
    generations: int = option(8, help="Answers sampled for each record.", minimum=2)
    temperature: float = option(1.0, help="Sampling temperature.", minimum=0, above=True)
    max_tokens: int | None = option(
        None,
        help="Longest sampled answer, in tokens; by default 1.5 times the longest answer of the records.",
        minimum=1,
    )
    beta: float = option(
        0.0, help="Weight of the KL divergence from the model that training starts with; 0 leaves it out.", minimum=0
    )
    clip: float = option(
        0.2,
        help="Clipping epsilon: how far a token's probability ratio may leave 1 before it is clipped.",
        minimum=0,
        above=True,
    )
    clip_high: float | None = option(
        None, help="Clipping epsilon above 1; the value of --clip unless given.", minimum=0, above=True
    )
    epochs: float = option(1.0, help="Passes over the training records.", minimum=0, above=True)
    batch_size: int = option(4, help="Records in a batch on each device, each with all its sampled answers.", minimum=1)
    accumulate: int = option(
        1,
        help="Batches whose gradients are added up for one optimizer step; their answers are sampled together.",
        minimum=1,
    )
    learning_rate: float = option(
        2e-5,
        help="Peak learning rate: warm-up over the first 3 % of the steps, then a cosine to zero.",
        minimum=0,
        above=True,
    )
    rank: int | None = option(None, help="LoRA rank of a new adapter; 16 unless given.", minimum=1)
    alpha: int | None = option(None, help="LoRA alpha of a new adapter; 32 unless given.", minimum=1)
    targets: tuple[str, ...] = option(
        (), help="Layers of a new adapter, as --target of edgetune train. Repeatable.", flag="--target"
    )
    checkpoint_steps: int = option(
        50, help="Optimizer steps between two points from which an interrupted run continues.", minimum=1
    )
    cache_mb: int = option(2048, help="Memory in which preprocessed images are kept, in MiB.", minimum=0)
    seed: int = option(0, help="Random seed of a new adapter's weights, the order of records and sampling.")
    trainer_args: Mapping[str, Any] = option(
        {}, help="Any other field of TRL's GRPOConfig. Repeatable.", flag="--trainer-arg", metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rewards:
            if name not in DEFAULT_REWARDS:
                raise InputError(
                    f"--reward {name}: no reward of this name", hint=f"the rewards are {', '.join(DEFAULT_REWARDS)}"
                )
        object.__setattr__(self, "rewards", {**DEFAULT_REWARDS, **self.rewards})
        if not any(self.rewards.values()):
            raise InputError("--reward: all weights are 0, so there is nothing to learn from")

    @property
    def shape(self) -> dict[str, Any]:
        """What was said of a new adapter."""
        named = {"rank": self.rank, "alpha": self.alpha, "targets": self.targets}
        return {name: value for name, value in named.items() if value}

    @property
    def lora(self) -> LoraSettings:
        """The shape of a new adapter."""
        return LoraSettings(**self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the result besides the adapter's shape, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("rank", "alpha", "targets")}

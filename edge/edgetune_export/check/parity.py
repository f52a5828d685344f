"""The self-check of an export: the written graphs, run by the runtime, against the checkpoint in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers

from edgetune_export.check.reference import Sample
from edgetune_export.settings import ExportSettings
from edgetune_runtime.backends import ImageFeatures
from edgetune_runtime.errors import ParityError

Float = npt.NDArray[np.float32]

EXACT_TOLERANCE = 1e-4
"""Largest difference of logits and of vision features at fp32, relative to their root mean square where that is over 1
(float32 errors grow with the numbers). Summation in another order was seen to cost up to 5e-5."""

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "int8-static": 0.99}
"""Smallest mean cosine of vision features by precision. Sound exports lie far above (fp16 ~0.999999, int8 ~0.9998);
below, some layer overflows or has activations that the precision cannot hold."""

MAX_LOST_INFORMATION = 0.5
"""Largest mean KL from the reference, as a share of the KL of a model that knows nothing (uniform). Rounding costs a
few percent; past one half the export is broken, not coarse. Finer judgement needs the task's own accuracy: `edgetune
eval`."""


@dataclass(frozen=True)
class Predictions:
    """How far next-token predictions are from a reference, over `steps` predicted tokens.

    Attributes:
        logits_rms: root mean square of the reference's logits.
        logits_max_abs_diff: largest difference of any logit.
        mean_kl: mean KL(reference || export) of the next-token distributions, in nats.
        lost_information: that KL as a share of the KL to the uniform distribution.
        token_agreement: share of steps with the same most likely token.
    """

    steps: int
    logits_rms: float
    logits_max_abs_diff: float
    mean_kl: float
    lost_information: float
    token_agreement: float

    def require_exact(self, what: str) -> None:
        """Raise `ParityError` unless the predictions are the reference's to float32 accuracy."""
        allowed = EXACT_TOLERANCE * max(1.0, self.logits_rms)
        if not self.logits_max_abs_diff <= allowed:
            raise ParityError(
                f"{what}: logits_max_abs_diff {self.logits_max_abs_diff:.2e}, at most {allowed:.2e} allowed"
            )
        if self.token_agreement < 1:
            share = 1 - self.token_agreement
            raise ParityError(f"{what}: chooses other tokens in {share:.1%} of the steps")


@dataclass(frozen=True)
class Parity(Predictions):
    """How far an export is from the checkpoint in transformers, over the generated pictures.

    Attributes:
        image_tokens: of each picture.
        vision_max_abs_diff: largest difference of any feature; vision_min_cosine and vision_mean_cosine are over image
            tokens, vision_rms is of the reference.
        packed_max_abs_diff: largest change of features when all images go through the encoder in one call.
    """

    reference: str
    image_tokens: list[int]
    vision_rms: float
    vision_max_abs_diff: float
    vision_min_cosine: float
    vision_mean_cosine: float
    packed_max_abs_diff: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def measure(ours: Sequence[Sample], theirs: Sequence[Sample], packed: ImageFeatures) -> Parity:
    """Compare answers of an export with what the reference makes of them.

    Args:
        ours: the export's answers about the generated pictures.
        theirs: the reference's reading of the same.
        packed: features that the export's encoder gives for all the pictures in one call.
    """
    own, other = _stack([sample.features for sample in ours]), _stack([sample.features for sample in theirs])
    cosine = (own * other).sum(-1) / np.maximum(np.linalg.norm(own, axis=-1) * np.linalg.norm(other, axis=-1), 1e-30)
    return Parity(
        reference=f"transformers {transformers.__version__}, float32",
        image_tokens=[len(sample.features[0]) for sample in theirs],
        vision_rms=_rms(other),
        vision_max_abs_diff=float(np.abs(own - other).max()),
        vision_min_cosine=float(cosine.min()),
        vision_mean_cosine=float(cosine.mean()),
        packed_max_abs_diff=float(np.abs(_stack([(packed.embeddings, *packed.deepstack)]) - own).max()),
        **asdict(compare([sample.logits for sample in theirs], [sample.logits for sample in ours])),
    )


def compare(expected: Sequence[Float], logits: Sequence[Float]) -> Predictions:
    """Compare logits [steps, V] of some answers with the reference's, one answer at a time."""
    divergence, uniform, squares, equal, apart = [], [], 0.0, 0, 0.0
    for theirs, ours in zip(expected, logits, strict=True):
        log_p, log_q = _log_softmax(theirs), _log_softmax(ours)
        shares = np.exp(log_p)
        divergence.append((shares * (log_p - log_q)).sum(-1))
        uniform.append((shares * (log_p + np.log(log_p.shape[-1]))).sum(-1))
        squares += float(np.square(theirs, dtype=np.float64).sum())
        apart = float(np.maximum(apart, np.abs(ours - theirs).max()))
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    steps = sum(map(len, expected))
    mean = float(np.concatenate(divergence).mean())
    return Predictions(
        steps=steps,
        logits_rms=float(np.sqrt(squares / sum(theirs.size for theirs in expected))),
        logits_max_abs_diff=apart,
        mean_kl=mean,
        lost_information=mean / max(float(np.concatenate(uniform).mean()), 1e-30),
        token_agreement=equal / steps,
    )


def require(parity: Parity, options: ExportSettings) -> None:
    """Raise `ParityError` where an export is worse than rounding explains; see the constants of this module."""
    for name, value in parity.to_dict().items():
        if isinstance(value, float) and not np.isfinite(value):
            half = options.half or options.vision == "fp16"
            fix = "float16 overflows on this model: choose another precision" if half else None
            raise ParityError(f"the exported model computes NaN or infinity ({name})", hint=fix)
    if parity.vision_mean_cosine < MIN_COSINE[options.vision]:
        raise ParityError(
            f"{options.vision} vision features are off: mean cosine {parity.vision_mean_cosine:.5f} with transformers, "
            f"at least {MIN_COSINE[options.vision]} expected",
            hint="choose --vision-precision fp32 or fp16",
        )
    if parity.lost_information > MAX_LOST_INFORMATION:
        raise ParityError(
            f"{options.precision} predictions are off: KL {parity.mean_kl:.3f} from transformers, "
            f"{parity.lost_information:.0%} of that of a blind guess",
            hint="choose a smaller --block-size or a higher precision",
        )
    if options.exact:
        _require_exact(parity)


def _require_exact(parity: Parity) -> None:
    for name in ("vision_max_abs_diff", "packed_max_abs_diff"):
        value, allowed = getattr(parity, name), EXACT_TOLERANCE * max(1.0, parity.vision_rms)
        if value > allowed:
            raise ParityError(
                f"fp32 export differs from transformers: {name} {value:.2e}, at most {allowed:.2e} allowed"
            )
    parity.require_exact("fp32 export differs from transformers")


def _stack(features: list[tuple[Float, ...]]) -> Float:
    """All features of several images as [outputs, tokens, H]."""
    return np.stack([np.concatenate(parts) for parts in zip(*features, strict=True)])


def _log_softmax(logits: Float) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def _rms(values: Float) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))

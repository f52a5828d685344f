"""The self-check of an export: the written graphs, run by the runtime, against transformers in float32.

The reference generates greedily from several images; the export then reads the same tokens and is compared at every
step. Where its most likely token is the reference's at every step, free greedy generation gives the same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from edgetune.export.checkpoint import Checkpoint
from edgetune.export.options import ExportOptions
from edgetune_runtime.backends import Backend, ImageFeatures
from edgetune_runtime.decode import Prompt, prefill, step
from edgetune_runtime.errors import ParityError
from edgetune_runtime.image import Pixels, preprocess
from edgetune_runtime.rope import mrope_positions
from edgetune_runtime.tokens import TextTokenizer

Float = npt.NDArray[np.float32]

EXACT_TOLERANCE = 1e-4
"""Largest difference of logits and of vision features at fp32, relative to their root mean square where that is over 1
(float32 errors grow with the numbers). Summation in another order was seen to cost up to 5e-5."""

MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}
"""Smallest mean cosine of vision features by precision. Sound exports lie far above (fp16 ~0.999999, int8 ~0.9998);
below, some layer overflows or has activations that the precision cannot hold."""

MAX_LOST_INFORMATION = 0.5
"""Largest mean KL from the reference, as a share of the KL of a model that knows nothing (uniform). Rounding costs a
few percent; past one half the export is broken, not coarse. Finer judgement needs the task's own accuracy: `edgetune
eval`."""

_SHAPES = {"square": (8, 8), "wide": (4, 14), "tall": (13, 3)}
"""Test images as (rows, columns) of image tokens; the checkpoint's own limits may enlarge them."""

_NEW_TOKENS = 16
_PHRASE = "the red cup to the left of the clock"


@dataclass(frozen=True)
class Sample:
    """One prompt and what the reference makes of it: features [tokens, H] each, logits [steps, V], greedy token ids."""

    name: str
    pixels: Pixels
    token_ids: npt.NDArray[np.int64]
    features: tuple[Float, ...]
    logits: Float
    tokens: list[int]


@dataclass(frozen=True)
class Parity:
    """How far an export is from its reference, over all samples.

    Attributes:
        vision_max_abs_diff: largest difference of any feature; vision_min_cosine and vision_mean_cosine are over image
            tokens.
        packed_max_abs_diff: largest change of features when all images go through the encoder in one call.
        logits_max_abs_diff: largest difference of any logit; vision_rms and logits_rms are root mean squares of the
            reference.
        mean_kl: mean KL(reference || export) of the next-token distributions, in nats.
        lost_information: that KL as a share of the KL to the uniform distribution.
        token_agreement: share of steps with the same most likely token.
    """

    reference: str
    grids: list[list[int]]
    steps: int
    vision_rms: float
    vision_max_abs_diff: float
    vision_min_cosine: float
    vision_mean_cosine: float
    packed_max_abs_diff: float
    logits_rms: float
    logits_max_abs_diff: float
    mean_kl: float
    lost_information: float
    token_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def reference_samples(checkpoint: Checkpoint) -> list[Sample]:
    """Run transformers on the test images."""
    tokenizer = TextTokenizer(checkpoint.folder / "tokenizer.json")
    text = checkpoint.family.ground_prompt.format(phrase=_PHRASE)
    samples = []
    for seed, (name, (rows, columns)) in enumerate(_SHAPES.items()):
        factor = checkpoint.spec.factor
        pixels = preprocess(test_image(columns * factor, rows * factor, seed), checkpoint.spec)
        ids = tokenizer.prompt(
            checkpoint.family.chat, text, image_tokens=pixels.image_tokens, image_token=checkpoint.tokens["image"]
        )
        samples.append(_run_reference(checkpoint, name, pixels, ids))
    return samples


def test_image(width: int, height: int, seed: int) -> Image.Image:
    """A picture with structure at several scales, the same for the same seed."""
    generator = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3), np.float64)
    for cells in (3, 9, 27):
        noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((layers / 3).astype(np.uint8))


@torch.no_grad()
def _run_reference(checkpoint: Checkpoint, name: str, pixels: Pixels, ids: npt.NDArray[np.int64]) -> Sample:
    model, values, grid = checkpoint.model, torch.from_numpy(pixels.pixel_values), torch.from_numpy(pixels.grid_thw)
    vision = model.model.get_image_features(values, grid, return_dict=True)
    # DeepStack features come one tuple a layer, split by image; Qwen2.5-VL has none.
    features = (vision.pooler_output, *(getattr(vision, "deepstack_features", None) or ()))
    prompt = torch.from_numpy(ids)[None]
    result = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=values,
        image_grid_thw=grid,
        mm_token_type_ids=(prompt == checkpoint.tokens["image"]).int(),
        # Without the checkpoint's own settings, which may ask for sampling or penalties.
        generation_config=transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            eos_token_id=checkpoint.tokens["eos"],
            pad_token_id=checkpoint.tokens["pad"],
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    logits = np.concatenate([row.float().numpy() for row in result.logits])
    tokens = result.sequences[0, len(ids) :].tolist()
    return Sample(name, pixels, ids, tuple(torch.cat(part).numpy() for part in features), logits, tokens)


def measure(samples: list[Sample], backend: Backend, *, image_token: int, merge_size: int) -> Parity:
    """Compare a backend with the reference."""
    encoded = [backend.encode_images(sample.pixels.pixel_values, sample.pixels.grid_thw) for sample in samples]
    packed = backend.encode_images(
        np.concatenate([sample.pixels.pixel_values for sample in samples]),
        np.concatenate([sample.pixels.grid_thw for sample in samples]),
    )
    ours, theirs = _stack([_features(image) for image in encoded]), _stack([sample.features for sample in samples])
    cosine = (ours * theirs).sum(-1) / np.maximum(
        np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1), 1e-30
    )
    logits = np.concatenate(
        [
            np.stack(list(_teacher_forced(sample, image, backend, image_token, merge_size)))
            for sample, image in zip(samples, encoded, strict=True)
        ]
    )
    expected = np.concatenate([sample.logits for sample in samples])
    log_p, log_q = _log_softmax(expected), _log_softmax(logits)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    uniform = (np.exp(log_p) * (log_p + np.log(log_p.shape[-1]))).sum(-1)
    return Parity(
        reference=f"transformers {transformers.__version__}, float32",
        grids=[sample.pixels.grid_thw[0].tolist() for sample in samples],
        steps=len(expected),
        vision_rms=_rms(theirs),
        vision_max_abs_diff=float(np.abs(ours - theirs).max()),
        vision_min_cosine=float(cosine.min()),
        vision_mean_cosine=float(cosine.mean()),
        packed_max_abs_diff=float(np.abs(_stack([_features(packed)]) - ours).max()),
        logits_rms=_rms(expected),
        logits_max_abs_diff=float(np.abs(logits - expected).max()),
        mean_kl=float(divergence.mean()),
        lost_information=float(divergence.mean() / max(uniform.mean(), 1e-30)),
        token_agreement=float((logits.argmax(-1) == expected.argmax(-1)).mean()),
    )


def require(parity: Parity, options: ExportOptions) -> None:
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
    for name, scale in (
        ("vision_max_abs_diff", parity.vision_rms),
        ("packed_max_abs_diff", parity.vision_rms),
        ("logits_max_abs_diff", parity.logits_rms),
    ):
        value, allowed = getattr(parity, name), EXACT_TOLERANCE * max(1.0, scale)
        if value > allowed:
            raise ParityError(
                f"fp32 export differs from transformers: {name} {value:.2e}, at most {allowed:.0e} allowed"
            )
    if parity.token_agreement < 1:
        share = 1 - parity.token_agreement
        raise ParityError(f"fp32 export chooses other tokens than transformers in {share:.1%} of the steps")


def _teacher_forced(
    sample: Sample, image: ImageFeatures, backend: Backend, image_token: int, merge_size: int
) -> Iterator[Float]:
    """Logits [V] of each step when the reference's tokens are read."""
    positions, following = mrope_positions(
        sample.token_ids, sample.pixels.grid_thw, image_token=image_token, merge_size=merge_size
    )
    prompt = Prompt(sample.token_ids, positions, following, image_token, image)
    yield prefill(backend, prompt, room=len(sample.tokens)).copy()
    for count, token in enumerate(sample.tokens[:-1]):
        yield step(backend, token, following + count).copy()


def _features(image: ImageFeatures) -> tuple[Float, ...]:
    return (image.embeddings, *image.deepstack)


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

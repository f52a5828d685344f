"""What an export for TensorRT makes of the user's choices, and which of them TensorRT cannot hold."""

from __future__ import annotations

from dataclasses import replace

from edgetune_export.decoder.dialects.trt import DecomposedTrtDialect
from edgetune_export.decoder.dialects.trt_fused import PROFILES, FusedTrtDialect
from edgetune_export.decoder.linear import Linear
from edgetune_export.decoder.weights import DecoderWeights
from edgetune_export.job import ExportJob
from edgetune_export.settings import Block, VisionPrecision
from edgetune_runtime.errors import InputError

BLOCKS: tuple[Block, ...] = (128, 64)
"""Block lengths of TensorRT's INT4, the better one first. TensorRT-RTX reads shorter ones too."""


def resolve(job: ExportJob) -> tuple[ExportJob, type[DecomposedTrtDialect] | type[FusedTrtDialect]]:
    """Fill in TensorRT's defaults: float16, int8 vision with calibrated scales, blocks that divide every layer.

    Raises:
        InputError: a precision, block length or profile that TensorRT cannot hold.
    """
    options = job.options
    profile = options.trt_profile or ("10.16" if options.trt_targets else "10.3")
    if options.precision == "fp32" or options.head == "fp32" or options.vision_precision == "fp32":
        raise InputError("TensorRT bundles compute in float16", hint="choose precision fp16, int8 or int4")
    asked = options.vision_precision or "fp16"
    vision: VisionPrecision = "int8-static" if asked == "int8" else asked
    columns = {linear.columns for linear in _linears(job.decoder)}
    block = options.block_size or next((size for size in BLOCKS if not any(n % size for n in columns)), BLOCKS[-1])
    options = replace(
        options,
        target="cuda",
        vision_precision=vision,
        block_size=block,
        trt_profile=profile,
    )
    decoder = DecoderWeights(
        job.checkpoint.model,
        job.checkpoint.modules,
        layers_format=options.block_format(options.precision) if job.weights is None else None,
        head_format=options.block_format(options.head),
        weights=job.weights,
        values=job.checkpoint.streamed.values,
        device=options.device,
    )
    if not options.trt_targets:
        for linear in _linears(decoder):
            if linear.format is not None and linear.format.block not in BLOCKS:
                raise InputError(
                    f"{linear.name} has blocks of {linear.format.block}, and TensorRT's INT4 needs 64 or 128",
                    hint="choose another group size; TensorRT-RTX reads 32 too, with --trt-target",
                )
    return replace(job, options=options, decoder=decoder), PROFILES[profile]


def _linears(decoder: DecoderWeights) -> list[Linear]:
    return [*decoder.linears(), decoder.head()]

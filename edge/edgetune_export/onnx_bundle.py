"""Format "onnx": three graphs for onnxruntime, laid out so that other Hugging Face style ONNX loaders find them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.dialects.plain import PlainDialect
from edgetune_export.decoder.embed import build_embed
from edgetune_export.graph import save_model
from edgetune_export.job import ExportJob
from edgetune_export.vision.graph import build_vision
from edgetune_runtime.backends.onnx.cache import GROWING, METADATA
from edgetune_runtime.backends.onnx.engine import OnnxBackend

FILES = {
    "vision": "onnx/vision_encoder.onnx",
    "embed": "onnx/embed_tokens.onnx",
    "decoder": "onnx/decoder_model_merged.onnx",
    "tokenizer": "tokenizer.json",
}


def export_onnx(job: ExportJob) -> dict[str, Any]:
    """Write a bundle's files and check them.

    Returns:
        The "result" of the manifest: {"bundle": {...}}, see docs/bundle.md.

    Raises:
        InputError: the checkpoint or the options cannot be exported.
        ParityError: the written graphs do not compute what transformers computes.
    """
    work, options = job.work, job.options
    (work / "onnx").mkdir()
    job.progress("vision")
    save_model(build_vision(job), work / FILES["vision"])
    job.progress("embeddings")
    save_model(build_embed(job.decoder.embedding(), options.table), work / FILES["embed"])
    job.progress("decoder")
    save_model(_decoder(job), work / FILES["decoder"])
    job.copy_files()
    measured = check_graphs(job)
    return job.result("onnx", FILES, measured, accuracy_level=options.accuracy_level, dialect=options.dialect)


def _decoder(job: ExportJob) -> ir.Model:
    dtype = ir.DataType.FLOAT16 if job.options.half else ir.DataType.FLOAT
    if job.options.dialect == "ort":
        level = job.options.accuracy_level
        return build_decoder(job.decoder, lambda graph, spec: OrtDialect(graph, spec, dtype, accuracy_level=level))
    model = build_decoder(job.decoder, lambda graph, spec: PlainDialect(graph, spec, dtype))
    model.metadata_props[METADATA] = GROWING
    return model


def check_graphs(job: ExportJob, weights: Mapping[str, NDArray[Any]] | None = None) -> Mapping[str, Any]:
    """Load what was written as the runtime does, on the CPU, and compare.

    Args:
        job: the export.
        weights: values of weights that the decoder's graph leaves out, by name.
    """
    load = partial(OnnxBackend, vision=job.work / FILES["vision"], embed=job.work / FILES["embed"], weights=weights)
    decoder = job.work / FILES["decoder"]
    shipped = load(decoder=decoder, accuracy_level=job.options.accuracy_level)
    if not job.rounds:
        return job.check(shipped, None)
    exact = with_exact_products(decoder)
    try:
        return job.check(shipped, load(decoder=exact, accuracy_level=0))
    finally:
        exact.unlink()


def with_exact_products(path: Path) -> Path:
    """Write a graph again beside itself, over the same data file, with activations that are not rounded."""
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes.add(ir.AttrInt64("accuracy_level", 0))
    exact = path.with_name(f"exact_{path.name}")
    ir.save(model, exact)
    return exact

"""Format "onnx": three graphs for onnxruntime, laid out so that other Hugging Face style ONNX loaders find them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.check.exact import GraphDecoder, for_every_step
from edgetune_export.decoder.builder import build_decoder, require_known
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.dialects.plain import PlainDialect
from edgetune_export.decoder.embed import build_embed
from edgetune_export.graph import save_model
from edgetune_export.job import ExportJob, spell_out_steps
from edgetune_export.vision.graph import build_vision
from edgetune_export.vision.pixels import take_pixels
from edgetune_runtime.backends.onnx.cache import GROWING, METADATA
from edgetune_runtime.backends.onnx.engine import PIXELS, OnnxBackend

FILES = {
    "vision": "onnx/vision_encoder.onnx",
    PIXELS: "onnx/vision_encoder_pixels.onnx",
    "embed": "onnx/embed_tokens.onnx",
    "decoder": "onnx/decoder_model_merged.onnx",
    "tokenizer": "tokenizer.json",
}

_INLINE = 1 << 30
"""Bytes of weights that the graph for raw pixels may hold itself."""


def export_onnx(job: ExportJob) -> dict[str, Any]:
    """Write a bundle's files and check them.

    Returns:
        The "result" of the manifest: {"bundle": {...}}, see docs/bundle.md.

    Raises:
        InputError: the checkpoint or the options cannot be exported.
        ParityError: the written graphs do not compute what transformers computes.
    """
    work, options = job.work, job.options
    require_known(job.decoder.spec, OrtDialect if options.dialect == "ort" else PlainDialect)
    (work / "onnx").mkdir()
    write_vision(job)
    job.progress("decoder")
    decoder = _decoder(job)
    save_model(decoder, work / FILES["decoder"], job.tell)
    job.progress("embeddings")
    shared = decoder if options.dialect == "ort" else None
    save_model(build_embed(job.decoder, options.table, shared), work / FILES["embed"], job.tell)
    job.copy_files()
    spell_out_steps(job.work, job.checkpoint.spec)
    measured = check_graphs(job)
    return job.result("onnx", files_in(work), measured, accuracy_level=options.accuracy_level, dialect=options.dialect)


def write_vision(job: ExportJob) -> None:
    """Write the vision encoder for normalised pixels, which other engines feed, and where it can be for raw ones.

    Both share one data file. The dialect of standard operators is for other engines alone.
    """
    job.progress("vision")
    model = build_vision(job)
    save_model(model, job.work / FILES["vision"], job.tell)
    if job.options.dialect == "ort" and take_pixels(model, job.checkpoint.spec):
        # What is its own lies in the graph: a data file beside it would hold one weight.
        save_model(model, job.work / FILES[PIXELS], inline_limit=_INLINE)


def files_in(work: Path) -> dict[str, str]:
    """Those of `FILES` that were written."""
    return {role: name for role, name in FILES.items() if (work / name).is_file()}


def _decoder(job: ExportJob) -> ir.Model:
    dtype = ir.DataType.FLOAT16 if job.options.half else ir.DataType.FLOAT
    if job.options.dialect == "ort":
        level = job.options.accuracy_level
        dialect = partial(OrtDialect, dtype=dtype, accuracy_level=level)
        return build_decoder(job.decoder, dialect, job.answer_tokens)
    model = build_decoder(job.decoder, lambda graph, spec: PlainDialect(graph, spec, dtype))
    model.metadata_props[METADATA] = GROWING
    return model


def check_graphs(job: ExportJob, weights: Mapping[str, NDArray[Any]] | None = None) -> Mapping[str, Any]:
    """Load what was written as the runtime does, on the CPU, and compare.

    Args:
        job: the export.
        weights: values of weights that the decoder's graph leaves out, by name.
    """
    paths = {role: job.work / name for role, name in files_in(job.work).items()}
    decoder = paths["decoder"]
    load = partial(
        OnnxBackend,
        vision=paths["vision"],
        pixels=paths.get(PIXELS),
        embed=paths["embed"],
        decoder=decoder,
        weights=weights,
        accuracy_level=job.options.accuracy_level,
    )
    every = decoder.with_name(f"every_step_{decoder.name}")

    def exact() -> GraphDecoder:
        ir.save(for_every_step(ir.load(decoder)), every)
        return GraphDecoder(every, weights)

    try:
        return job.check(load, exact)
    finally:
        every.unlink(missing_ok=True)

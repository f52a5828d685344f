"""Format "trt": graphs in TensorRT's grammar, and engines where they can be built here.

An engine runs only on the TensorRT version and GPU that it was built with. So the graphs always go into the bundle, and
engines too when this machine can build them: with TensorRT for its own GPU, or with TensorRT-RTX for GPUs that it names
(no GPU needed). Otherwise `edgetune-run build-engine` builds them on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgetune_export import describe
from edgetune_export.check.exact import for_every_step
from edgetune_export.check.trt import OnnxTrtBackend, TrtDecoder
from edgetune_export.decoder.builder import build_decoder, require_known
from edgetune_export.decoder.dialects.trt_fused import PROFILES
from edgetune_export.graph import save_model
from edgetune_export.job import ExportJob
from edgetune_export.trt_options import resolve
from edgetune_export.vision.towers import tower_of
from edgetune_export.vision.trt import build_trt_vision
from edgetune_runtime.backends.trt.cuda import Cuda
from edgetune_runtime.backends.trt.engines import build_engines, make_graphs
from edgetune_runtime.backends.trt.library import Library, load_library
from edgetune_runtime.errors import MissingDependency
from edgetune_runtime.manifest import sha256_file

FILES = {
    "vision": "trt/vision.onnx",
    "embed": "trt/embeddings.npy",
    "decoder": "trt/decoder.onnx",
    "tokenizer": "tokenizer.json",
}

MAX_CHUNK = 2048
"""Most tokens of one prefill call; the runtime reads longer prompts in pieces, which bounds the engine's memory."""


def export_trt(job: ExportJob) -> dict[str, Any]:
    """Write a bundle's files, check them, and build engines where this machine can.

    Returns:
        The "result" of the manifest: {"bundle": {...}}, see docs/tensorrt.md.

    Raises:
        InputError: the checkpoint or the options cannot be exported.
        ParityError: the written graphs do not compute what transformers computes.
        BundleError: TensorRT refuses a graph.
        MissingDependency: engines for other GPUs were asked for, and TensorRT-RTX is not installed.
    """
    builders = list(_builders(job))
    job, dialect = resolve(job)
    require_known(job.decoder.spec, dialect)
    work = job.work
    length = describe.limits(job.checkpoint, job.options.max_length)["max_length"]
    (work / "trt").mkdir()
    job.progress("vision")
    save_model(build_trt_vision(job), work / FILES["vision"], job.tell)
    job.progress("embeddings")
    shape = (job.decoder.spec.vocabulary, job.decoder.spec.hidden)
    table = np.lib.format.open_memmap(work / FILES["embed"], "w+", np.float16, shape)
    for rows, part in job.decoder.embedding_parts():
        table[rows] = part
    table.flush()
    job.progress("decoder")
    save_model(
        build_decoder(job.decoder, lambda graph, spec: dialect(graph, spec, length)), work / FILES["decoder"], job.tell
    )
    job.copy_files()
    measured = _check(job, length)
    facts = {"profile": job.options.trt_profile, "in_place": dialect.in_place, "profiles": _profiles(job, length)}
    result = job.result("trt", FILES, measured, trt=facts)
    job.progress("engines")
    facts |= _build(work, result["bundle"], builders)
    return result


def _check(job: ExportJob, length: int) -> Mapping[str, Any]:
    """Run what was written in onnxruntime, and the decoder against the reference, in float32 where it was rounded."""
    files = {role: job.work / FILES[role] for role in ("vision", "decoder")}
    load = partial(OnnxTrtBackend, **files, embeddings=job.work / FILES["embed"])
    dialect = PROFILES[str(job.options.trt_profile)]
    wide = job.work / "trt" / "exact.onnx"

    def exact() -> TrtDecoder:
        if job.rounds:
            model = build_decoder(job.decoder, lambda graph, spec: dialect(graph, spec, length, ir.DataType.FLOAT))
        else:
            model = ir.load(files["decoder"])
        save_model(for_every_step(model), wide)
        return TrtDecoder(wide)

    try:
        return job.check(load, exact)
    finally:
        for path in (wide, wide.with_name(f"{wide.name}.data")):
            path.unlink(missing_ok=True)


def _profiles(job: ExportJob, length: int) -> dict[str, list[dict[str, list[list[int]]]]]:
    """Ranges of the free dimensions, one for each use of a network; see `trt_build.Profile`."""
    spec, checkpoint = job.decoder.spec, job.checkpoint
    tokens = describe.limits(job.checkpoint, job.options.max_length)["max_image_tokens"]

    def decoder(*counts: int) -> dict[str, list[list[int]]]:
        states = ["inputs_embeds", *(f"deepstack_embeds.{layer}" for layer in range(spec.deepstack))]
        shapes = {name: [[1, count, spec.hidden] for count in counts] for name in states}
        shapes["position_ids"] = [[3, 1, count] for count in counts]
        return shapes | {"cache_position": [[count] for count in counts]}

    most = min(length, MAX_CHUNK)
    return {
        "vision": [dict(tower_of(checkpoint.family.tower).sizes(checkpoint.vision, checkpoint.spec, tokens))],
        "decoder": [decoder(1, 1, 1), decoder(1, min(most, tokens + 64), most)],
    }


def _builders(job: ExportJob) -> Iterator[tuple[Library, str]]:
    """Libraries that build engines here, each with a compute capability.

    Raises:
        MissingDependency: targets were named, and TensorRT-RTX is not installed.
    """
    if job.options.trt_targets:
        library = load_library("tensorrt_rtx")
        yield from ((library, target) for target in job.options.trt_targets)
        return
    try:
        yield load_library("tensorrt"), Cuda().capability
    except MissingDependency:
        return


def _build(work: Path, fields: Mapping[str, Any], builders: list[tuple[Library, str]]) -> dict[str, Any]:
    """Build engines, and say which; or say why not and what to do."""
    if not builders:
        return {"engines": [], "deferred": "no engine was built here: run `edgetune-run build-engine` on the device"}
    hashes = {name: sha256_file(work / name) for name in _graph_files(work)}
    graphs = make_graphs(work, fields, hashes)
    built = [build_engines(work, graphs, library, capability)[0] for library, capability in builders]
    told = [
        {"library": engines.flavour, "version": engines.version, "capability": engines.capability} for engines in built
    ]
    return {"engines": told}


def _graph_files(work: Path) -> list[str]:
    return [path.relative_to(work).as_posix() for path in sorted((work / "trt").glob("*.onnx*"))]

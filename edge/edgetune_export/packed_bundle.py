"""Formats "gptq", "awq" and "compressed-tensors": a Hugging Face checkpoint, and graphs that run it without torch.

The decoder's graph is that of format "onnx" less the quantized weights, which are in the checkpoint already and which
the runtime repacks at load. A bundle for servers is checked by the same graphs and loses them then; one for the lean
runtime alone keeps of the checkpoint the quantized layers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from edgetune_core.checkpoint import SINGLE
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.decoder.embed import build_embed
from edgetune_export.decoder.linear import Linear
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.graph import GraphBuilder, leave_out, save_model
from edgetune_export.hf_checkpoint import write_checkpoint, write_json
from edgetune_export.hf_config import awq_config, compressed_config, gptq_config
from edgetune_export.job import ExportJob
from edgetune_export.onnx_bundle import FILES, check_graphs, files_in, write_vision
from edgetune_export.readers import readers_of
from edgetune_export.settings import Purpose
from edgetune_runtime.backends.onnx.packed import read_weights
from edgetune_runtime.errors import InputError
from edgetune_runtime.families.base import Modules
from edgetune_runtime.quant.layouts import LAYOUTS


def export_gptq(job: ExportJob) -> dict[str, Any]:
    """Write and check a GPTQ checkpoint (v1) that is a bundle."""
    weights, modules = _source(job, "gptq")
    config = gptq_config({name: weights.format(name) for name in weights.names}, modules)
    if _for(job, "server"):
        write_json(job.work / "quantize_config.json", config)  # where readers before transformers look for it
    return _export(job, "gptq", weights, modules, config)


def export_awq(job: ExportJob) -> dict[str, Any]:
    """Write and check an AWQ checkpoint (version "gemm") that is a bundle."""
    weights, modules = _source(job, "awq")
    config = awq_config({name: weights.format(name) for name in weights.names}, modules)
    return _export(job, "awq", weights, modules, config)


def export_compressed(job: ExportJob) -> dict[str, Any]:
    """Write and check a compressed-tensors checkpoint ("pack-quantized") that is a bundle."""
    weights, modules = _source(job, "compressed-tensors")
    config = compressed_config({name: weights.format(name) for name in weights.names}, modules)
    return _export(job, "compressed-tensors", weights, modules, config)


def _source(job: ExportJob, format_: str) -> tuple[WeightSet, Modules]:
    """The weight set, which must hold all layers of the decoder's blocks, and the family's names."""
    if job.checkpoint.quantized is not None:
        raise InputError(
            f"{job.checkpoint.folder}: is quantized already, and layouts are not converted into each other",
            hint="export --format onnx or trt, or calibrate the original",
        )
    if job.weights is None:
        raise InputError(
            f"--format {format_} needs calibrated weights", hint="give --weights SET or --data calibration.jsonl"
        )
    modules = job.checkpoint.family.modules
    assert modules is not None
    for part in (part for linear in job.decoder.linears() for part in linear.parts):
        if part.name not in job.weights:
            raise InputError(
                f"{job.weights.folder}: {part.name} is not quantized, and readers of {format_} checkpoints disagree on "
                "how exceptions are spelled",
                hint="calibrate all layers of the decoder, or export --format onnx",
            )
    return job.weights, modules


def _export(
    job: ExportJob, format_: str, weights: WeightSet, modules: Modules, quantization: Mapping[str, Any]
) -> dict[str, Any]:
    work, options, layout = job.work, job.options, LAYOUTS[format_]
    lean, server = _for(job, "lean"), _for(job, "server")
    job.progress("checkpoint")
    checkpoint = job.checkpoint
    if server:
        job.copy_files()
    else:
        shutil.copyfile(checkpoint.folder / FILES["tokenizer"], work / FILES["tokenizer"])
    prefixes = modules.hub_prefixes if options.tensor_names == "hub" else ()
    names = write_checkpoint(
        checkpoint.folder,
        work,
        weights,
        modules,
        layout.pack,
        checkpoint.config,
        quantization,
        prefixes=prefixes,
        whole=server,
    )
    (work / "onnx").mkdir()
    write_vision(job)
    job.progress("decoder")
    decoder, products = _write_decoder(job)
    job.progress("embeddings")
    shared = None if HEAD in weights else decoder  # a head of the set is in the checkpoint's layout
    save_model(build_embed(job.decoder, options.table, shared), work / FILES["embed"], job.tell)
    filled = read_weights([work / name for name in names], layout, products, half=options.half, prefixes=prefixes)
    measured = check_graphs(job, filled)
    graphs = files_in(work)
    if not lean:
        shutil.rmtree(work / "onnx")
        graphs = {"tokenizer": FILES["tokenizer"]}
    roles = {"weights" if len(names) == 1 else f"weights.{i}": name for i, name in enumerate(names)}
    names_of = {"blocks": modules.blocks, "text_root": modules.text_root, "vision_root": modules.vision_root}
    packed = {
        "files": list(roles),
        "modules": names_of,
        "prefixes": [list(pair) for pair in prefixes],
        "products": products,
    }
    told: dict[str, Any] = {"for": [name for name, wanted in (("lean", lean), ("server", server)) if wanted]}
    if server:
        formats = {name: weights.format(name) for name in weights.names}
        names_told = options.tensor_names if modules.hub_prefixes else None
        told["readers"] = readers_of(format_, formats, checkpoint.family.name, names_told)
    level = options.accuracy_level
    return job.result(format_, {**graphs, **roles}, measured, accuracy_level=level, packed=packed, **told)


def _for(job: ExportJob, purpose: Purpose) -> bool:
    """Whether the bundle is to serve a purpose."""
    return purpose in (job.options.purposes or ("lean", "server"))


class _PackedDialect(OrtDialect):
    """Keeps account of the products whose weights come from the weight set."""

    def __init__(self, graph: GraphBuilder, spec: DecoderSpec, dtype: ir.DataType, *, accuracy_level: int) -> None:
        super().__init__(graph, spec, dtype, accuracy_level=accuracy_level)
        self.calibrated: list[Linear] = []

    def linear(self, states: ir.Value, linear: Linear) -> ir.Value:
        if linear.calibrated:
            self.calibrated.append(linear)
        return super().linear(states, linear)


def _write_decoder(job: ExportJob) -> tuple[ir.Model, dict[str, dict[str, Any]]]:
    """Write the decoder without the quantized weights; also returns what each left-out product is made of."""
    dialects: list[_PackedDialect] = []

    def dialect(graph: GraphBuilder, spec: DecoderSpec) -> _PackedDialect:
        dtype = ir.DataType.FLOAT16 if job.options.half else ir.DataType.FLOAT
        dialects.append(_PackedDialect(graph, spec, dtype, accuracy_level=job.options.accuracy_level))
        return dialects[0]

    model = build_decoder(job.decoder, dialect, job.answer_tokens)
    products: dict[str, dict[str, Any]] = {}
    for linear in dialects[0].calibrated:
        fmt = linear.parts[0].format
        assert fmt is not None
        products[linear.name] = {
            "layers": [part.name for part in linear.parts],
            "bits": fmt.bits,
            "group_size": fmt.block,
            "symmetric": fmt.symmetric,
        }
        kinds = ("codes", "scales") if fmt.symmetric else ("codes", "scales", "zeros")
        leave_out(model, [f"{linear.name}.weight_{kind}" for kind in kinds], SINGLE)
    save_model(model, job.work / FILES["decoder"], job.tell)
    return model, products

"""Format "onnx": three graphs for onnxruntime, laid out so that other Hugging Face style ONNX loaders find them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch

from edgetune.export import parity
from edgetune.export.checkpoint import COPIED, Checkpoint, load_checkpoint
from edgetune.export.decoder import build_decoder
from edgetune.export.dialects.ort import OrtDialect
from edgetune.export.embed import build_embed
from edgetune.export.graph import save_model
from edgetune.export.options import ExportOptions
from edgetune.export.vision import export_vision, exportable_vision
from edgetune.export.vision_int8 import dynamic_layers, quantize_linears
from edgetune.export.weights import DecoderSpec, DecoderWeights
from edgetune_runtime.backends.onnx import OnnxBackend
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import MANIFEST, read_manifest

FILES = {
    "vision": "onnx/vision_encoder.onnx",
    "embed": "onnx/embed_tokens.onnx",
    "decoder": "onnx/decoder_model_merged.onnx",
    "tokenizer": "tokenizer.json",
}

STEPS = ("load", "reference", "vision", "embeddings", "decoder", "parity")
"""What `progress` is called with, in order."""

_TEXT_ROOM = 1024
"""Tokens that the default `max_length` leaves for the prompt's text and the answer, beside the largest image."""


def export_onnx(
    folder: Path, work: Path, options: ExportOptions, *, progress: Callable[[str], object] = lambda step: None
) -> dict[str, Any]:
    """Write a bundle's files into `work` and check them.

    Args:
        folder: a merged Hugging Face checkpoint.
        work: existing empty folder.
        options: what to write.
        progress: called with the name of each step as it starts.

    Returns:
        The "result" of the manifest: {"bundle": {...}}, see docs/bundle.md.

    Raises:
        InputError: the checkpoint or the options cannot be exported.
        ParityError: the written graphs do not compute what transformers computes.
    """
    progress("load")
    checkpoint = load_checkpoint(folder)
    weights = DecoderWeights(
        checkpoint.model,
        layers_format=options.block_format(options.precision),
        head_format=options.block_format(options.head),
    )
    limits = _limits(checkpoint, options)
    progress("reference")
    samples = parity.reference_samples(checkpoint)
    (work / "onnx").mkdir()
    progress("vision")
    save_model(_vision(checkpoint, samples, options), work / FILES["vision"])
    progress("embeddings")
    table = {"fp32": "fp32", "fp16": "fp16"}.get(options.precision, "int8")
    save_model(build_embed(weights.embedding(), table), work / FILES["embed"])
    progress("decoder")
    dtype = ir.DataType.FLOAT16 if options.half else ir.DataType.FLOAT
    save_model(build_decoder(weights, lambda graph, spec: OrtDialect(graph, spec, dtype)), work / FILES["decoder"])
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, work / name)
    progress("parity")
    measured = _check(checkpoint, samples, work, options)
    return {"bundle": _describe(checkpoint, weights.spec, options, limits, measured)}


def _vision(checkpoint: Checkpoint, samples: list[parity.Sample], options: ExportOptions) -> ir.Model:
    tower = checkpoint.model.model.visual
    wrapper = exportable_vision(checkpoint.config["model_type"], tower)
    if options.vision == "fp16":
        wrapper = wrapper.half()
    model = export_vision(wrapper)
    fmt = options.block_format(options.vision)
    if fmt is not None:
        images = [(torch.from_numpy(s.pixels.pixel_values), torch.from_numpy(s.pixels.grid_thw)) for s in samples]
        # Integer products are an advantage of CPUs; CUDA's are not used by onnxruntime for these operators.
        dynamic = dynamic_layers(wrapper, images) if options.target == "cpu" else frozenset()
        quantize_linears(model, fmt, dynamic)
    return model


def _limits(checkpoint: Checkpoint, options: ExportOptions) -> dict[str, int]:
    """The bundle's limits in tokens."""
    image = checkpoint.spec.max_pixels // checkpoint.spec.factor**2
    window = int(checkpoint.model.config.get_text_config().max_position_embeddings)
    length = min(window, image + _TEXT_ROOM) if options.max_length is None else options.max_length
    if length > window:
        raise InputError(f"max length {length} is over the model's {window}", hint=f"choose at most {window}")
    return {"max_length": length, "max_image_tokens": image}


def _check(checkpoint: Checkpoint, samples: list[parity.Sample], work: Path, options: ExportOptions) -> dict[str, Any]:
    """Load what was written as the runtime does, on the CPU, and compare."""
    backend = OnnxBackend(vision=work / FILES["vision"], embed=work / FILES["embed"], decoder=work / FILES["decoder"])
    measured = parity.measure(
        samples, backend, image_token=checkpoint.tokens["image"], merge_size=checkpoint.spec.merge_size
    )
    parity.require(measured, options)
    return measured.to_dict()


def _describe(
    checkpoint: Checkpoint, spec: DecoderSpec, options: ExportOptions, limits: dict[str, int], measured: dict[str, Any]
) -> dict[str, Any]:
    family = checkpoint.family
    rope = checkpoint.model.config.get_text_config().rope_parameters
    return {
        "format": "onnx",
        "precision": options.precision,
        "vision_precision": options.vision,
        "head_precision": options.head,
        "target": options.target,
        "family": family.name,
        "box_frame": family.box_frame,
        "image": checkpoint.spec.to_dict(),
        "chat": asdict(family.chat),
        "ground_prompt": family.ground_prompt,
        "tokens": checkpoint.tokens,
        "rope": {
            "theta": rope["rope_theta"],
            "mrope_section": list(rope["mrope_section"]),
            "interleaved": bool(rope.get("mrope_interleaved", False)),
            "head_dim": spec.head_dim,
        },
        "model": {
            "layers": spec.layers,
            "hidden": spec.hidden,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocabulary": spec.vocabulary,
            "deepstack": spec.deepstack,
        },
        "limits": limits,
        "files": FILES,
        "parity": measured,
        "provenance": _provenance(checkpoint.folder),
    }


def _provenance(folder: Path) -> dict[str, Any]:
    """Where the checkpoint comes from, as its own manifest tells, and the engine that checked the export."""
    told: dict[str, Any] = {"checkpoint": str(folder), "checked_with": f"onnxruntime {onnxruntime.__version__}"}
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        told["made_by"] = {key: manifest.get(key) for key in ("stage", "fingerprint", "inputs", "settings", "versions")}
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]

"""What a bundle says of itself in its manifest, whatever its format; every field is explained in docs/bundle.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime

from edgetune_core.weightset import HEAD, WeightSet
from edgetune_export.checkpoint import OpenCheckpoint
from edgetune_export.decoder.weights import DecoderSpec
from edgetune_export.settings import ExportSettings
from edgetune_runtime.bundle import SCHEMA
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import MANIFEST, data_hashes, read_manifest

_TEXT_ROOM = 1024
"""Tokens that the default `max_length` leaves for the prompt's text and the answer, beside the largest image."""


def limits(checkpoint: OpenCheckpoint, max_length: int | None) -> dict[str, int]:
    """The bundle's limits in tokens.

    Raises:
        InputError: `max_length` is over the model's own window.
    """
    image = checkpoint.spec.most_tokens
    window = int(checkpoint.model.config.get_text_config().max_position_embeddings)
    length = min(window, image + _TEXT_ROOM) if max_length is None else max_length
    if length > window:
        raise InputError(f"max length {length} is over the model's {window}", hint=f"choose at most {window}")
    return {"max_length": length, "max_image_tokens": image}


def describe(
    checkpoint: OpenCheckpoint, spec: DecoderSpec, options: ExportSettings, weights: WeightSet | None
) -> dict[str, Any]:
    """The fields that do not depend on the format: all but format, files and parity."""
    family = checkpoint.family
    rope = checkpoint.model.config.get_text_config().rope_parameters
    calibration = None if weights is None else calibration_of(weights)
    head = None if calibration is None else calibration["head_bits"]
    return {
        "schema": SCHEMA,
        "precision": options.precision if calibration is None else f"int{calibration['bits']}",
        "vision_precision": options.vision,
        "head_precision": options.head if head is None else f"int{head}",
        "target": options.target,
        "calibration": calibration,
        "family": family.name,
        "boxes": family.box_format.to_dict(),
        "image": checkpoint.spec.to_dict(),
        "chat": asdict(family.chat),
        "ground_prompt": family.ground_prompt,
        "tokens": checkpoint.tokens,
        "rope": {
            "theta": rope["rope_theta"],
            "mrope_section": list(rope.get("mrope_section", (spec.rope.shape[1], 0, 0))),
            "interleaved": bool(rope.get("mrope_interleaved", False)),
            "head_dim": spec.head_dim,
            "rotary_dim": 2 * spec.rope.shape[1],
        },
        "model": {
            "layers": spec.layers,
            "hidden": spec.hidden,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocabulary": spec.vocabulary,
            "deepstack": spec.deepstack,
        },
        "limits": limits(checkpoint, options.max_length),
        "provenance": _provenance(checkpoint.folder),
    }


def calibration_of(weights: WeightSet) -> dict[str, Any]:
    """What a bundle tells of the weight set it was written from; bits and group size are those of most layers."""
    most = weights.usual
    return {
        "method": weights.method,
        "bits": most.bits,
        "group_size": most.block,
        "symmetric": most.symmetric,
        "mixed": len({weights.format(name) for name in weights.names if name != HEAD}) > 1,
        "head_bits": weights.format(HEAD).bits if HEAD in weights else None,
        "samples": _samples(weights.fields.get("calibration")),
        "sha256": weights.sha256,
        "data": data_hashes(weights.manifest),
    }


def _samples(calibration: object) -> int | None:
    """How many records were used, where the set tells."""
    told = calibration.get("samples") if isinstance(calibration, Mapping) else None
    return told if isinstance(told, int) else len(told) if isinstance(told, list | dict) else None


def _provenance(folder: Path) -> dict[str, Any]:
    """Where the checkpoint comes from, as its own manifest tells, and the engine that checked the export."""
    told: dict[str, Any] = {"checkpoint": str(folder), "checked_with": f"onnxruntime {onnxruntime.__version__}"}
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        told["made_by"] = {key: manifest.get(key) for key in ("stage", "fingerprint", "inputs", "settings", "versions")}
        told["trained_on"] = (manifest.get("result") or {}).get("trained_on") or {}
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]

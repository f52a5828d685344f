"""Our solver on the same samples: `quantize_decoder`, which `edgetune calibrate` runs on records."""

from __future__ import annotations

from typing import Any

from worker import group_size, load_model

PACKAGES = ("edgetune",)


def quantize(job: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The dequantized weights and the parameters that scales were moved into."""
    import torch

    from edgetune_calibrate.quantize import DecoderSettings, quantize_decoder
    from edgetune_calibrate.solve import SolveSettings
    from edgetune_runtime.quant.blocks import BlockFormat

    model = load_model(job["checkpoint"])
    modules = modules_of(model)
    solve = SolveSettings(
        method=job["method"], bits=job["bits"], group_size=job["group_size"], symmetric=job["symmetric"]
    )
    names = [
        f"{modules.blocks}.{i}.{n}" for i in range(len(model.get_submodule(modules.blocks))) for n in modules.linears
    ]
    formats = {
        name: BlockFormat(job["bits"], group_size(job, name), job["symmetric"])
        for name in names
        if group_size(job, name) != job["group_size"]
    }
    settings = DecoderSettings(solve=solve, formats=formats or None)
    result: dict[str, Any] = {}
    for block in quantize_decoder(model, modules, samples, settings):
        result |= {f"{name}.weight": torch.from_numpy(weight.dequantize()) for name, weight in block.weights.items()}
        result |= {name: torch.from_numpy(values) for name, values in block.overrides.items()}
    return result


def modules_of(model: Any) -> Any:
    """Where the layers are: the family's facts, and for a plain Llama those of a decoder without images."""
    from dataclasses import replace

    from edgetune_runtime.families import get_family

    if model.config.model_type != "llama":
        return get_family(model.config.model_type).modules
    facts = get_family("qwen3_vl").modules
    assert facts is not None
    return replace(facts, blocks="model.layers", text_root="model", vision_root="", lora_targets="")

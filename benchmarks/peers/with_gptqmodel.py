"""GPTQModel on the CPU.

What it needs to run here, none of which changes what it computes: `requests`, which it imports and does not require;
a stand-in for torchvision while it is imported (a model family that is not ours asks for it, and the registry's wheel
does not work beside torch for the CPU); no processor (transformers' needs torchvision for videos), the samples being
tensors already; and two workers (GPTQMODEL_CPU_WORKERS) on a machine of two cores, where it asks for one and needs two.
"""

from __future__ import annotations

import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from worker import group_size

PACKAGES = ("gptqmodel",)
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Act-order, with group boundaries that stay where they are, and a search for the range of each group.
    "tuned": {"desc_act": True, "act_group_aware": False, "static_groups": True, "mse": 2.0},
}


def import_library() -> Any:
    """GPTQModel, in an environment without torchvision."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import transformers  # noqa: F401 - it looks for torchvision on its own

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    for name in names:
        module: Any = types.ModuleType(name)
        module.transforms, module.InterpolationMode = module, None
        sys.modules[name] = module
    import gptqmodel

    for name in names:
        del sys.modules[name]
    import gptqmodel.models.base as base

    base.AutoProcessor = types.SimpleNamespace(from_pretrained=lambda *_, **__: None)
    return gptqmodel


def quantize(job: dict[str, Any], samples: list[dict[str, Any]]) -> Any:
    """Quantize, and return what writes the checkpoint and reads it back."""
    library = import_library()
    import torch

    settings: dict[str, Any] = {
        "bits": job["bits"],
        "group_size": job["group_size"],
        "sym": job["symmetric"],
        "offload_to_disk": False,
        "device": "cpu",
        **PRESETS[job["preset"]],
    }
    if job["method"] == "awq":
        settings |= {"method": "awq", "format": "gemm"}
    if job.get("wide"):
        settings["dynamic"] = {rf"+:.*{end}$": {"group_size": size} for end, size in job["wide"].items()}
    model = library.GPTQModel.load(job["checkpoint"], library.QuantizeConfig(**settings), dtype=torch.float32)
    if "pixel_values" in samples[0]:
        model.prepare_dataset = lambda *_, **__: [dict(sample) for sample in samples]
    model.quantize(samples, batch_size=1)

    def read() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            return dequantize(Path(folder), job)

    return read


def dequantize(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The float32 weights that a GPTQ checkpoint stands for, and the biases, which it rounds to float16."""
    from safetensors.torch import load_file

    stored = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    result = {}
    for name in [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]:
        qweight, qzeros = stored[f"{name}.qweight"], stored[f"{name}.qzeros"]
        groups, bits = stored[f"{name}.g_idx"].long(), job["bits"]
        assert stored[f"{name}.scales"].shape[0] == len(groups) // group_size(job, name), name
        codes = unpack(qweight.T, bits).T  # [K, N]
        zeros = unpack(qzeros, bits) + 1  # the first layout stores them less one
        scales = stored[f"{name}.scales"].float()
        result[f"{name}.weight"] = ((codes - zeros[groups]) * scales[groups]).T
        if f"{name}.bias" in stored:
            result[f"{name}.bias"] = stored[f"{name}.bias"].float()
    return result


def unpack(words: Any, bits: int) -> Any:
    """int32 [R, W] -> int32 [R, W · 32 / bits], low bits first."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).flatten(1)

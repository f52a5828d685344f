"""Load a bundle with another library, write the logits it gives: run by load_checks.py in that one's environment.

    python load_reader.py READER FOLDER SAMPLES.pt LOGITS.pt

Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast


def transformers_gptqmodel(folder: str) -> Any:
    """Transformers, whose reader of GPTQ and AWQ weights is GPTQModel, with its plain kernel.

    The kernel that it picks for a CPU computes in bfloat16.
    """
    import torch
    from with_gptqmodel import import_library

    import_library()
    from transformers import AutoModelForImageTextToText, AwqConfig, GPTQConfig

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    plain: Any = GPTQConfig(bits=4, backend="gptq_torch")
    if config["quantization_config"]["quant_method"] == "awq":
        plain = cast(Any, AwqConfig)(backend="torch_awq")
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", quantization_config=plain
    )


def transformers_plain(folder: str) -> Any:
    """Transformers, with the compressed-tensors package as its reader."""
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, device_map="cpu")


def gptqmodel(folder: str) -> Any:
    """GPTQModel itself, with its plain kernel."""
    import torch
    from with_gptqmodel import import_library

    library = import_library()
    backend = library.BACKEND.AWQ_TORCH if "awq" in folder else library.BACKEND.GPTQ_TORCH
    return library.GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=backend).model


READERS = {"transformers-gptqmodel": transformers_gptqmodel, "gptqmodel": gptqmodel, "transformers": transformers_plain}


def main() -> None:
    """Write logits float32 [S, V] of each sample and weights [out, in] by layer; the kernel's name goes to stdout."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    reader, folder, samples, output = sys.argv[1:]
    import torch

    model = READERS[reader](folder).eval()
    torch.nn.Module.float(model)  # its scales too; transformers forbids its own method on quantized models
    with torch.no_grad():
        logits = [model(**sample).logits[0] for sample in torch.load(samples)]
        weights = {
            name: weight(layer) for name, layer in model.named_modules() if name.endswith("_proj") and "layers" in name
        }
    torch.save({"logits": logits, "weights": weights}, output)
    blocks = (module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    print("LINEAR", type(next(blocks)).__name__)


def weight(layer: Any) -> Any:
    """The weight [out, in] that a linear layer computes with: what it makes of the unit vectors."""
    import torch

    product = layer(torch.eye(layer.in_features))
    return (product - layer(torch.zeros(1, layer.in_features))).T.contiguous()


if __name__ == "__main__":
    main()

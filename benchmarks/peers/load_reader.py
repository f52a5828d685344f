"""Load a bundle with another library, write the logits it gives: run by load_checks.py in that one's environment.

    python load_reader.py READER FOLDER SAMPLES.pt LOGITS.pt

Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def transformers_gptqmodel(folder: str) -> Any:
    """Transformers, whose reader of GPTQ and AWQ weights is GPTQModel, with its plain kernel.

    The kernel that it picks for a CPU computes in bfloat16.
    """
    import torch
    from with_gptqmodel import import_library

    import_library()
    from transformers import AutoModelForImageTextToText, AwqConfig, GPTQConfig

    method = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["quantization_config"][
        "quant_method"
    ]
    plain: Any = GPTQConfig(bits=4, backend="gptq_torch") if method == "gptq" else AwqConfig(backend="torch_awq")
    load = AutoModelForImageTextToText.from_pretrained
    return load(folder, dtype=torch.float32, device_map="cpu", quantization_config=plain)


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
    return library.GPTQModel.load(folder, device="cpu", dtype=torch.float16, backend=backend).model.float()


READERS = {"transformers-gptqmodel": transformers_gptqmodel, "gptqmodel": gptqmodel, "transformers": transformers_plain}


def main() -> None:
    """Write float32 [S, V] for each sample, and the kinds of the linear layers to stdout."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    reader, folder, samples, output = sys.argv[1:]
    import torch

    model = READERS[reader](folder).eval()
    with torch.no_grad():
        logits = [model(**sample).logits[0].float() for sample in torch.load(samples)]
    torch.save(logits, output)
    blocks = (module for name, module in model.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    print("LINEAR", type(next(blocks)).__name__)


if __name__ == "__main__":
    main()

"""The codec's modules load fast on a robot: no engine, no tokenizer, no training library."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "bench.metrics",
    "bundle",
    "codec.grammar",
    "codec.grounding",
    "draw",
    "families",
    "images.load",
    "images.smart",
    "manifest",
    "records",
)
HEAVY = {"click", "onnxruntime", "scipy", "tokenizers", "torch", "tqdm", "transformers"}


def test_nothing_heavy_is_imported() -> None:
    imports = "; ".join(f"import edgetune_runtime.{name}" for name in MODULES)
    code = f"import sys, edgetune_runtime; {imports}; print(*{{name.split('.')[0] for name in sys.modules}})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "edgetune_runtime" in output.split()
    assert HEAVY.isdisjoint(output.split())

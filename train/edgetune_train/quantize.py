"""QLoRA: the frozen language blocks held in 4 bits, so that the base of an adapter fits a small GPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_runtime.errors import MissingDependency, install_command


def nf4(checkpoint: HubCheckpoint, dtype: torch.dtype) -> Any:
    """Return transformers' config for NF4 with double quantization (QLoRA, arXiv 2305.14314).

    The vision tower, the merger and the output head stay as they are: they are small, frozen, and read by every token.

    Args:
        checkpoint: the base.
        dtype: what the products are computed in.

    Raises:
        MissingDependency: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependency(
            "--quantize nf4: the Python package 'bitsandbytes' is not installed",
            hint=install_command("qlora"),
        )
    modules = checkpoint.modules
    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[modules.vision_root, *modules.mergers, "lm_head"],
    )

"""The vision tower of transformers with the checkpoint's weights: a server has room for it, and it is the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from edgetune_runtime.backends.triton.weights import PackedCheckpoint
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError


def load_vision(bundle: Bundle, checkpoint: PackedCheckpoint, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The tower, called with patches [P, C] and grids int64 [N, 3].

    Raises:
        BundleError: transformers cannot build it, or tensors are missing.
    """
    root = checkpoint.modules["vision_root"]
    try:
        config: Any = AutoConfig.from_pretrained(bundle.folder, local_files_only=True)
        with torch.device("meta"):  # to learn its class; only the tower is then made for real
            whole = AutoModelForImageTextToText.from_config(config)
        kind: Any = type(whole.get_submodule(root))
        tower: nn.Module = kind(config.vision_config)
        tower.load_state_dict(checkpoint.under(root))
    except (OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{bundle.folder}: transformers cannot load the vision tower: {str(error)[:300]}") from error
    return tower.to(device, dtype).eval().requires_grad_(False)

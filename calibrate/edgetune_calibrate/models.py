"""The models that a calibration runs: the checkpoint's, and the one that the weight set stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.streaming import FileTensors, Replaced, StreamedModel
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_runtime.errors import InputError


def open_model(source: HubCheckpoint, dtype: torch.dtype, device: str, keep: int = 0) -> StreamedModel:
    """Return a checkpoint's model, its weights in their files.

    Args:
        source: the checkpoint.
        dtype: of weights and activations.
        device: where to compute.
        keep: bytes of weights that may stay in memory.

    Raises:
        InputError: the weights do not fit the config, or some are missing.
    """
    try:
        config: Any = AutoConfig.from_pretrained(source.folder, local_files_only=True)
        tensors = FileTensors(source.folder, source.modules)
        return StreamedModel(
            config, tensors, source.modules, dtype=dtype, device=device, keep=keep, name=str(source.folder)
        )
    except InputError:
        raise
    except Exception as error:  # a config that makes no sense raises almost anything, such as ZeroDivisionError
        raise InputError(f"{source.folder}: the model cannot be loaded: {str(error)[:300]}") from error


def quantized_model(source: HubCheckpoint, weights: WeightSet, dtype: torch.dtype, device: str) -> StreamedModel:
    """Return the model that a weight set of a checkpoint stands for; a head that it holds is tied no more."""
    values: dict[str, Callable[[], Tensor]] = {
        f"{name}.weight": partial(_weight, weights, name) for name in weights.names
    }
    values |= {name: partial(_override, weights, name) for name in weights.overrides}
    config: Any = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    shapes = {}
    if HEAD in weights:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        head = weights.weight(HEAD)
        shapes[f"{HEAD}.weight"] = (len(head.codes), head.columns)
    tensors = Replaced(FileTensors(source.folder, source.modules), values, shapes)
    return StreamedModel(config, tensors, source.modules, dtype=dtype, device=device, name=str(source.folder))


def _weight(weights: WeightSet, name: str) -> Tensor:
    return torch.from_numpy(weights.dequantized(name))


def _override(weights: WeightSet, name: str) -> Tensor:
    return torch.from_numpy(weights.override(name))

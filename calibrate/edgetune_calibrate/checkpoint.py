"""The checkpoint that is calibrated: a Hugging Face folder, read before its weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family, get_family
from edgetune_runtime.families.base import Modules
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.tokens import TextTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """What calibration needs to know of a checkpoint.

    Attributes:
        folder: where it is.
        family: facts of its model family.
        modules: the family's module names.
        spec: its image preprocessing.
        tokenizer: its tokenizer.
        dtype: of its weights, as config.json says.
    """

    folder: Path
    family: Family
    modules: Modules
    spec: ImageSpec
    tokenizer: TextTokenizer
    dtype: str

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read everything but the weights.

        Raises:
            InputError: no checkpoint, one of an unsupported family, or one that is quantized already.
            BundleError: tokenizer.json is missing or broken.
        """
        path = folder / "config.json"
        if not path.is_file():
            adapter = (folder / "adapter_config.json").is_file()
            hint = "merge the adapter first: edgetune merge" if adapter else "give a Hugging Face checkpoint folder"
            raise InputError(f"{folder}: no config.json", hint=hint)
        config = read_json(path)
        family = get_family(str(config.get("model_type")))
        if family.modules is None or not family.exports:
            raise InputError(f"{folder}: {family.title} cannot be exported, so there is nothing to calibrate for")
        if "quantization_config" in config:
            raise InputError(f"{folder}: the weights are quantized", hint="give the checkpoint it was made from")
        dtype = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype")
        tokenizer = TextTokenizer(folder / "tokenizer.json")
        return cls(folder, family, family.modules, ImageSpec.from_checkpoint(folder), tokenizer, str(dtype))

    def load_model(self, dtype: torch.dtype) -> Any:
        """Return the transformers model with its weights in `dtype`, in evaluation mode.

        Raises:
            InputError: the weights do not fit the config, or some are missing.
        """
        loader: Any = AutoModelForImageTextToText
        notices: Any = logging
        notices.set_verbosity_error()
        notices.disable_progress_bar()  # stages draw their own
        try:
            model, report = loader.from_pretrained(
                self.folder, dtype=dtype, output_loading_info=True, local_files_only=True
            )
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder}: the model cannot be loaded: {str(error)[:300]}") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise InputError(f"{self.folder}: {len(report['missing_keys'])} weights are missing, such as {some}")
        return model.eval()

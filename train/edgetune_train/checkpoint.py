"""Reading a Hugging Face checkpoint folder: its family, tokenizer, preprocessing, weights."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family, family_of
from edgetune_runtime.families.base import Modules
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.rules import open_preprocessing
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.tokens import TextTokenizer

# Stages draw their own progress bars.
_notices: Any = logging
_notices.set_verbosity_error()
_notices.disable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """What training and merging need to know of a checkpoint before its weights are loaded.

    Attributes:
        folder: where it is.
        config: content of its config.json.
        family: facts of its model family.
        modules: the family's module names.
        spec: its image preprocessing.
        tokenizer: its tokenizer.
    """

    folder: Path
    config: dict[str, Any]
    family: Family
    modules: Modules
    spec: Preprocessing
    tokenizer: TextTokenizer

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read everything but the weights.

        Raises:
            InputError: a file is missing or broken, the family is unknown or not trainable here, or the
                weights are quantized.
            BundleError: tokenizer.json is missing or broken.
        """
        config = read_json(folder / "config.json")
        if "model_type" not in config:
            raise InputError(f"{folder / 'config.json'}: no 'model_type'", hint="give a Hugging Face checkpoint folder")
        tokenizer = TextTokenizer(folder / "tokenizer.json")
        family = family_of(config["model_type"], tokenizer.control)
        if family.modules is None:
            raise InputError(f"{folder}: {family.title} is supported for its boxes only, not for training")
        if "quantization_config" in config:
            raise InputError(
                f"{folder}: the weights are quantized", hint="give the checkpoint that it was quantized from"
            )
        return cls(folder, config, family, family.modules, open_preprocessing(folder, family), tokenizer)

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        """Return the transformers model with its weights in `dtype`.

        Args:
            dtype: of the weights, or of those that are not quantized.
            quantization: a quantization config of transformers', to quantize while loading.

        Raises:
            InputError: the weights do not fit the config, or some are missing.
        """
        loader: Any = AutoModelForImageTextToText
        try:
            model, report = loader.from_pretrained(
                self.folder,
                dtype=dtype,
                quantization_config=quantization,
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder}: the model cannot be loaded: {error}") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise InputError(f"{self.folder}: {len(report['missing_keys'])} weights are missing, such as {some}")
        return model


@contextlib.contextmanager
def library_warnings_off() -> Iterator[None]:
    """Silence what transformers and peft warn about and this package deals with: deprecations, tied embeddings."""
    with warnings.catch_warnings():
        for category in (FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft)\.")
        yield


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted.

    With an index file, those are exactly the files that it names.

    Raises:
        InputError: there are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise InputError(f"{index}: names {missing[0] if missing else 'no file'}, which is not in the folder")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise InputError(f"{folder}: no model.safetensors", hint="convert the weights to safetensors first")
    return [single]


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a checkpoint's files, by its name there.

    Raises:
        InputError: a file is missing or broken.
    """
    shapes = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file: {error}") from error
    return shapes


def weights_sha256(folder: Path) -> str:
    """Return one sha256 over the names and contents of a checkpoint's weight files."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()

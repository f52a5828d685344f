"""The one reader of a Hugging Face checkpoint folder: whatever a stage does with it, the same things are refused."""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_core.template import check_template, own_template
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import Family, all_families, family_of
from edgetune_runtime.families.base import Modules
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.rules import open_preprocessing
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.tokens import TextTokenizer

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class HubCheckpoint:
    """What is known of a checkpoint before its weights are loaded.

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
    def open(cls, folder: Path, *, exported: bool = False, quantized: bool = False) -> HubCheckpoint:
        """Read everything but the weights, of which names and shapes are looked at.

        Args:
            folder: the checkpoint.
            exported: it has to be of a family that calibration and export know.
            quantized: its weights may be quantized already.

        Raises:
            InputError: a file is missing or broken, files contradict each other, or the family or the weights are not
                what the caller can use.
            BundleError: tokenizer.json is missing or broken.
        """
        config = _read_config(folder)
        if not (folder / "tokenizer.json").is_file():
            raise InputError(
                f"{folder}: no tokenizer.json", hint="save the tokenizer with AutoTokenizer(...).save_pretrained"
            )
        tokenizer = TextTokenizer(folder / "tokenizer.json")
        family = family_of(config["model_type"], tokenizer.control)
        if family.modules is None:
            raise InputError(f"{folder}: {family.title} is supported for its boxes only, not for training or running")
        if exported and not family.exports:
            known = ", ".join(one.title for one in all_families() if one.exports)
            raise InputError(
                f"{folder}: {family.title} (model type {config['model_type']!r}) cannot be exported",
                hint=f"only {known} can; the others are trained, merged, scored and run as checkpoints",
            )
        if "quantization_config" in config and not quantized:
            raise InputError(
                f"{folder}: the weights are quantized", hint="give the checkpoint that it was quantized from"
            )
        spec = open_preprocessing(folder, family)
        _check_tower(folder, config, spec)
        if "quantization_config" not in config:
            _check_sizes(folder, config, family.modules)
        return cls(folder, config, family, family.modules, spec, tokenizer)

    @property
    def dtype(self) -> str:
        """Of its weights, as config.json says."""
        text = self.config.get("text_config")
        nested = text.get("dtype") if isinstance(text, dict) else None
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or nested)

    def check_template(self) -> None:
        """Refuse a chat template that is missing, broken, or renders another prompt than the family's.

        Raises:
            InputError: what is wrong with it.
        """
        check_template(self.folder, own_template(self.folder), self.family.chat)

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        """Return the transformers model with its weights in `dtype`, in evaluation mode.

        Args:
            dtype: of the weights, or of those that are not quantized.
            quantization: a quantization config of transformers', to quantize while loading.

        Raises:
            InputError: the weights do not fit the config, or some are missing.
        """
        from transformers import AutoModelForImageTextToText

        quiet_libraries()
        loader: Any = AutoModelForImageTextToText
        try:
            model, report = loader.from_pretrained(
                self.folder,
                dtype=dtype,
                quantization_config=quantization,
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:  # a config that makes no sense raises almost anything, such as ZeroDivisionError
            raise InputError(f"{self.folder}: the model cannot be loaded: {str(error)[:300]}") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise InputError(f"{self.folder}: {len(report['missing_keys'])} weights are missing, such as {some}")
        return model.eval()


def quiet_libraries() -> None:
    """Switch off what transformers prints and draws: stages draw their own progress bars."""
    from transformers.utils import logging

    notices: Any = logging
    notices.set_verbosity_error()
    notices.disable_progress_bar()


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
        InputError: there are none, the index is no index or names a file that is not in the folder, or an unsharded
            file beside it is not part of it: transformers would read that one, and other readers the shards.
    """
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if not single.is_file():
            pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
            hint = f"convert {pickled[0]} to safetensors first: a pickle may run code" if pickled else None
            raise InputError(f"{folder}: no {SINGLE}", hint=hint or "convert the weights to safetensors first")
        return [single]
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{index}: 'weight_map' must name a file for each weight")
    names = sorted(set(named.values()))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise InputError(f"{index}: names {name!r}, which is not a file of this folder")
        if not (folder / name).is_file():
            raise InputError(f"{index}: names {name}, which is not in the folder", hint="download the file again")
    if single.is_file() and SINGLE not in names:
        raise InputError(
            f"{folder}: has {SINGLE} beside {INDEX}, which does not name it",
            hint="remove the one that is stale: transformers reads the first, other tools the second",
        )
    return [folder / name for name in names]


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a checkpoint's files, by its name there.

    Raises:
        InputError: a file is missing or broken.
    """
    return {name: shape for name, (_, shape) in tensor_places(folder).items()}


def tensor_places(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return the file and the shape of every tensor of a checkpoint, by its name there.

    Raises:
        InputError: a file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    places = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as file:
                names = file.keys()
                places.update({name: (path, tuple(file.get_slice(name).get_shape())) for name in names})
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file: {error}") from error
    return places


def weights_sha256(folder: Path) -> str:
    """Return one sha256 over the names and contents of a checkpoint's weight files."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        hint = "give the folder of a Hugging Face checkpoint"
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"{folder}: is a LoRA adapter, not a whole checkpoint",
                hint="merge it into its base first: edgetune merge",
            )
        if not folder.is_dir():
            if _HUB_NAME.fullmatch(str(folder)):
                hint = (
                    f"if it is a name on the hub: hf download {folder} --local-dir {folder.name}, then give that folder"
                )
            raise InputError(f"{folder}: no such checkpoint folder", hint=hint)
        raise InputError(f"{folder}: no config.json", hint=hint)
    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise InputError(
            f"{path}: 'model_type' must be a text, got {kind!r}", hint="give a Hugging Face checkpoint folder"
        )
    for name in ("text_config", "vision_config"):
        if name in config and not (isinstance(config[name], dict) and config[name]):
            raise InputError(
                f"{path}: {name!r} must describe a part of the model, got {config[name]!r}",
                hint="copy the config.json of the published checkpoint",
            )
    return config


def _check_tower(folder: Path, config: dict[str, Any], spec: Preprocessing) -> None:
    """Refuse a preprocessor that cuts other patches than the vision tower takes."""
    tower = config.get("vision_config")
    if not isinstance(spec, ImageSpec) or not isinstance(tower, dict):
        return
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        declared = tower.get(theirs)
        if declared is not None and declared != getattr(spec, ours):
            raise InputError(
                f"{folder}: the preprocessor's {ours} is {getattr(spec, ours)}, config.json's vision tower has "
                f"{theirs} {declared!r}",
                hint="copy the preprocessor_config.json of the published checkpoint",
            )


def _check_sizes(folder: Path, config: dict[str, Any], modules: Modules) -> None:
    """Refuse a config.json of a larger model than the weights are of: to build one may take gigabytes or hours."""
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)) and not any(folder.glob("pytorch_model*.bin")):
        return  # no weights yet: whatever asks for them says so
    shapes = {modules.memory_name(name): shape for name, shape in tensor_shapes(folder).items()}
    text = config.get("text_config", config)
    for part, key in ((text, "num_hidden_layers"), (config.get("vision_config", {}), "depth")):
        layers = part.get(key)
        if layers is not None and not (type(layers) is int and 0 < layers <= len(shapes)):
            raise InputError(
                f"{folder}: config.json says {key} {layers!r}, the weights are {len(shapes)} tensors in all",
                hint="the weights and config.json must belong to the same model",
            )
    shape = shapes.get(f"{modules.text_root}.embed_tokens.weight")
    if shape is None:
        return  # loading says what is missing
    declared = text.get("hidden_size", config.get("hidden_size"))
    if len(shape) != 2 or declared != shape[1]:
        raise InputError(
            f"{folder}: config.json says hidden_size {declared!r}, the token embeddings are {list(shape)}",
            hint="the weights and config.json must belong to the same model",
        )

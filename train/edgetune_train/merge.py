"""The merge stage: an adapter folded into its base, written under the base's own tensor names and dtypes.

The base's files are the template: every tensor keeps its name, dtype and shard, and whatever the adapter does not
change is copied as it is. Saving through transformers would rename tensors and rewrite configs, which converters and
servers that know the published names do not survive.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint, library_warnings_off, weight_files, weights_sha256
from edgetune_runtime.errors import InputError, ParityError
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import MANIFEST, data_hashes, read_manifest
from edgetune_train.proof import BAD_NUMBERS, compare, logits, proof_inputs

_HEAD = "lm_head.weight"
_INDEX = "model.safetensors.index.json"


def _trained_on(folder: Path) -> dict[str, str]:
    """Return the sha256 of the data that an adapter, or a merged base, was trained on, by role, where that is told."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_manifest(folder)
    told: dict[str, str] = (manifest.get("result") or {}).get("trained_on") or data_hashes(manifest)
    return told


def merge(base: HubCheckpoint, adapter: Adapter, folder: Path) -> dict[str, Any]:
    """Write the merged checkpoint into `folder` and prove it against the adapter.

    The arithmetic is float32; results are rounded once, to the base's dtype.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: any LoRA adapter of peft's (rsLoRA, DoRA, modules_to_save included).
        folder: an existing folder.

    Returns:
        The manifest's `result`: the proof, the base's weights_sha256, how many tensors changed.

    Raises:
        InputError: the adapter does not fit the base.
        ParityError: the merged checkpoint does not answer as the base with the adapter does.
    """
    model = base.load_model(torch.float32)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied and (adapter.touches("lm_head") or adapter.touches("embed_tokens")) and not _keeps_tie(adapter):
        # The adapter moves one of the two and not the other; sharing memory would merge it into both.
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    inputs = proof_inputs(base)
    with library_warnings_off():
        adapted = adapter.attach(model)
        active = logits(adapted, inputs)
        with adapted.disable_adapter():
            plain = logits(adapted, inputs)
        try:
            merged_model = adapted.merge_and_unload(safe_merge=True)
        except RuntimeError as error:  # what peft makes of biases that the base's layers have no place for
            raise InputError(
                f"{adapter.folder}: cannot be merged: {error}", hint="train it without lora_bias"
            ) from error
        except ValueError as error:  # what peft's safe merge makes of weights that are not finite
            raise ParityError(f"{adapter.folder}: cannot be merged: {error}", hint=BAD_NUMBERS) from error
    merged = logits(merged_model, inputs)
    untie = tied and not torch.equal(
        merged_model.get_output_embeddings().weight, merged_model.get_input_embeddings().weight
    )
    changed, dtype = _write(base, merged_model.state_dict(), folder, untie=untie)
    del model, adapted, merged_model  # one copy of the weights in memory is enough
    written = logits(HubCheckpoint.open(folder).load_model(torch.float32), inputs)
    proof = compare(plain, active, merged, written, dtype)
    return {
        "family": base.family.name,
        "base_weights_sha256": weights_sha256(base.folder),
        "trained_on": _trained_on(base.folder) | _trained_on(adapter.folder),
        "changed_tensors": changed,
        "dtype": str(dtype).removeprefix("torch."),
        "untied_head": untie,
        "proof": proof.to_dict(),
    }


def _keeps_tie(adapter: Adapter) -> bool:
    return bool(getattr(adapter.config, "ensure_weight_tying", False))


def _write(
    base: HubCheckpoint, weights: Mapping[str, torch.Tensor], folder: Path, *, untie: bool
) -> tuple[int, torch.dtype]:
    """Write the base with new weights under the base's names.

    Args:
        base: the template.
        weights: float32 tensors under transformers' names.
        folder: where to.
        untie: the output head has become a tensor of its own.

    Returns:
        How many tensors changed, and the coarsest dtype among them.
    """
    files = weight_files(base.folder)
    _copy_others(base.folder, folder, {path.name for path in files})
    head = _head_name(base, files)
    changed, dtypes = 0, {torch.float32}
    for path in tqdm(files, desc="write", unit="file", disable=None, delay=2):
        with safe_open(path, framework="pt") as source:
            metadata = source.metadata()
            tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        for name, old in tensors.items():
            new = weights.get(base.modules.memory_name(name), weights.get(name))
            if new is None or torch.equal(new, old.float()):
                continue
            tensors[name] = new.to(old.dtype).contiguous()
            dtypes.add(old.dtype)
            changed += 1
        if untie and path == files[-1] and not _has(files, head):
            like = next(iter(tensors.values())).dtype
            tensors[head] = weights[_HEAD].to(like).contiguous()
            _add_to_index(folder, head, path.name)
            changed += 1
        save_file(tensors, folder / path.name, metadata=metadata)
    if untie:
        _untie_config(folder)
    return changed, max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _copy_others(source: Path, target: Path, skip: set[str]) -> None:
    """Copy everything but the weight files, hidden files (such as a version control folder) and our manifest."""
    for path in sorted(source.iterdir()):
        if path.name in skip or path.name == MANIFEST or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _head_name(base: HubCheckpoint, files: list[Path]) -> str:
    """Return the output head's name in this checkpoint: beside published names stands its published one."""
    embeddings = f"{base.modules.text_root}.embed_tokens.weight"
    published = base.modules.hub_name(embeddings)
    return base.modules.hub_name(_HEAD) if published != embeddings and _has(files, published) else _HEAD


def _has(files: list[Path], name: str) -> bool:
    for path in files:
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return True
    return False


def _add_to_index(folder: Path, name: str, file_name: str) -> None:
    path = folder / _INDEX
    if path.is_file():
        index = read_json(path)
        index["weight_map"][name] = file_name
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _untie_config(folder: Path) -> None:
    """Tell loaders that the head has weights of its own; transformers looks in both places."""
    path = folder / "config.json"
    config = read_json(path)
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

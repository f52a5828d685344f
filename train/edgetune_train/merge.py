"""The merge stage: an adapter folded into its base, written under the base's own tensor names and dtypes.

The base's files are the template: every tensor keeps its name, dtype and shard, and whatever the adapter does not
change is copied as it is. Tensors are read, merged and written one at a time. Saving through transformers would rename
tensors and rewrite configs, which converters and servers that know the published names do not survive.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import INDEX, SINGLE, HubCheckpoint, library_warnings_off, weight_files, weights_sha256
from edgetune_core.tensor_file import Bytes, TensorFile, TensorLayout, raw, write_sharded, write_tensors
from edgetune_runtime.json_file import read_json
from edgetune_runtime.manifest import MANIFEST, data_hashes, read_manifest
from edgetune_train.adapted import HEAD, AdaptedBase, streamed
from edgetune_train.proof import compare, logits, proof_inputs

SHARD = 5 * 10**9
"""Bytes of a file above which the hub's libraries cut a checkpoint into shards."""


def _trained_on(folder: Path) -> dict[str, str]:
    """Return the sha256 of the data that an adapter, or a merged base, was trained on, by role, where that is told."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_manifest(folder)
    told: dict[str, str] = (manifest.get("result") or {}).get("trained_on") or data_hashes(manifest)
    return told


def merge(base: HubCheckpoint, adapter: Adapter, folder: Path, *, shard: int = SHARD) -> dict[str, Any]:
    """Write the merged checkpoint into `folder` and prove it against the adapter.

    The arithmetic is float32; results are rounded once, to the base's dtype. One block of the model is in memory at a
    time, and nothing else that grows with the model but an output head that the adapter changes.

    Args:
        base: the checkpoint that the adapter was trained on.
        adapter: any LoRA adapter of peft's (rsLoRA, DoRA, modules_to_save included).
        folder: an existing folder.
        shard: bytes of a file above which a base of one file becomes several.

    Returns:
        The manifest's `result`: the proof, the base's weights_sha256, how many tensors changed.

    Raises:
        InputError: the adapter does not fit the base.
        ParityError: the merged checkpoint does not answer as the base with the adapter does.
    """
    adapted = AdaptedBase(base, adapter)
    inputs = proof_inputs(base)
    with library_warnings_off():
        plain, active = logits(adapted.plain, inputs), logits(adapted.active, inputs)
    (changed, dtype), unties = _write(base, adapted, folder, shard), adapted.unties
    written = HubCheckpoint.open(folder)
    merged = logits(streamed(written, adapted.tensors()), inputs)
    del adapted  # the adapter's weights
    proof = compare(plain, active, merged, logits(streamed(written), inputs), dtype)
    return {
        "family": base.family.name,
        "base_weights_sha256": weights_sha256(base.folder),
        "trained_on": _trained_on(base.folder) | _trained_on(adapter.folder),
        "changed_tensors": changed,
        "dtype": str(dtype).removeprefix("torch."),
        "untied_head": unties,
        "proof": proof.to_dict(),
    }


class _Pieces:
    """The tensors of the merged checkpoint, piece by piece, under the base's names.

    Args:
        base: the base.
        adapted: it with its adapter.

    Attributes:
        files: what the files are going to hold: what they hold in the base, and the last one a head that was unshared.
        head: its name, or "".
        changed: names of the tensors that turned out to differ from the base's.
        dtypes: of these tensors in the files, and float32.
    """

    def __init__(self, base: HubCheckpoint, adapted: AdaptedBase) -> None:
        sources = [TensorFile(path) for path in weight_files(base.folder)]
        self._adapted, self._memory_name = adapted, base.modules.memory_name
        self._sources = {name: source for source in sources for name in source.layouts}
        self.files = {source: dict(source.layouts) for source in sources}
        self.head = _head_name(base, self._sources) if adapted.unties else ""
        self.head = "" if self.head in self._sources else self.head
        if self.head:
            table = next(name for name in self._sources if self._memory_name(name) == adapted.table)
            self.files[sources[-1]][self.head] = self._sources[table].layouts[table]
        self.changed: set[str] = set()
        self.dtypes = {torch.float32}

    def __call__(self, name: str) -> Iterator[Bytes]:
        """Return the bytes of a tensor."""
        if name == self.head:
            yield from self._new_head()
            return
        source, inside = self._sources[name], self._memory_name(name)
        if inside not in self._adapted.changed:
            yield from source.pieces(name)
            return
        dtype, merged, start = source.layouts[name].torch_dtype, self._adapted.merged(inside).reshape(-1), 0
        for piece in source.pieces(name):
            old = torch.from_numpy(piece).view(dtype)
            new = merged[start : start + len(old)]
            start += len(old)
            if torch.equal(new, old.float()):
                yield piece
                continue
            self.changed.add(name)
            self.dtypes.add(dtype)
            yield raw(new.to(dtype))

    def _new_head(self) -> Iterator[Bytes]:
        layout = next(layouts[self.head] for layouts in self.files.values() if self.head in layouts)
        self.changed.add(self.head)
        self.dtypes.add(layout.torch_dtype)
        values = self._adapted.merged(HEAD)
        for first, end in layout.row_slices():
            yield raw(values[first:end].to(layout.torch_dtype))


def _write(base: HubCheckpoint, adapted: AdaptedBase, folder: Path, shard: int) -> tuple[int, torch.dtype]:
    """Write the base with new weights under the base's names.

    Args:
        base: the template.
        adapted: it with its adapter.
        folder: where to.
        shard: as for `merge`.

    Returns:
        How many tensors changed, and the coarsest dtype among them.
    """
    tensors = _Pieces(base, adapted)
    _copy_others(base.folder, folder, {source.path.name for source in tensors.files})
    count = sum(len(layouts) for layouts in tensors.files.values())
    with tqdm(desc="write", total=count, unit="tensor", disable=None, delay=2) as bar:

        def pieces(name: str) -> Iterator[Bytes]:
            yield from tensors(name)
            bar.update()

        for source, layouts in tensors.files.items():
            if source.path.name == SINGLE and sum(layout.bytes for layout in layouts.values()) > shard:
                write_sharded(folder, layouts, pieces, shard)
            else:
                write_tensors(folder / source.path.name, layouts, pieces, source.metadata)
                _add_to_index(folder, tensors.head, layouts, source.path.name)
    if adapted.unties:
        _untie_config(folder)
    return len(tensors.changed), max(tensors.dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _copy_others(source: Path, target: Path, skip: set[str]) -> None:
    """Copy everything but the weight files, hidden files (such as a version control folder) and our manifest."""
    for path in sorted(source.iterdir()):
        if path.name in skip or path.name == MANIFEST or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _head_name(base: HubCheckpoint, names: Container[str]) -> str:
    """Return the output head's name in this checkpoint: beside published names stands its published one."""
    embeddings = f"{base.modules.text_root}.embed_tokens.weight"
    published = base.modules.hub_name(embeddings)
    return base.modules.hub_name(HEAD) if published != embeddings and published in names else HEAD


def _add_to_index(folder: Path, head: str, layouts: Mapping[str, TensorLayout], file_name: str) -> None:
    """Name a new head in the index, where it is in the file that was written last."""
    path = folder / INDEX
    if head in layouts and path.is_file():
        index = read_json(path)
        index["weight_map"][head] = file_name
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += layouts[head].bytes
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _untie_config(folder: Path) -> None:
    """Tell loaders that the head has weights of its own; transformers looks in both places."""
    path = folder / "config.json"
    config = read_json(path)
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

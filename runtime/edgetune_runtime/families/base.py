"""What one model family is: plain facts, no code that depends on a framework.

A family file states how the model writes boxes, how its prompt is put together, and where its
layers are. Everything else in the project reads these facts and never asks for a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgetune_runtime.chat import Chat as Chat
from edgetune_runtime.codec.box_format import BoxFormat

Resize = Literal["smart", "pad_square", "tiles", "split", "anyres", "square", "naflex"]
Prefixes = Sequence[tuple[str, str]]
"""Pairs of what tensors' names begin with in memory and in files; the first match wins."""


def file_name(name: str, prefixes: Prefixes) -> str:
    """Return what files call the tensor that transformers calls `name`."""
    for ours, theirs in prefixes:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


@dataclass(frozen=True)
class Modules:
    """Where training, calibration and export find the layers in the transformers (v5) module tree.

    Attributes:
        blocks: dotted name of the decoder layer list; layer i is `f"{blocks}.{i}"`.
        linears: the linear layers of one block, relative to it; where blocks are of several kinds, of all of them.
        norm_linears: a norm of the block -> the linears that read its output directly.
        text_root: dotted name of the text model (embeddings, blocks, final norm).
        vision_root: dotted name of the vision tower; the mergers may lie inside or outside of it.
        lora_targets: regular expression (full match on dotted names) of what `auto` LoRA adapts.
        hub_prefixes: (prefix in memory, prefix in published checkpoints) pairs, the first match wins.
        linear_pairs: a linear of the block -> the one that reads its output channel by channel, with nothing but
            products and sums over tokens between them: a factor on a channel can move from one to the other.
        vision_blocks: dotted name of the vision tower's layer list, empty where it cannot be trained in part.
        mergers: dotted names of what turns the tower's output into image tokens (mergers, projectors, connectors); a
            list of modules stands for all of them.
        norm_offset: what the weights of the decoder's norms count from: 1 where a checkpoint keeps their difference
            from it, which does not go for the norm inside of a delta net.
        spelled: Llama's name of a part of the decoder ("mlp.up_proj", "norm") -> this family's, where that is another.
    """

    blocks: str
    linears: tuple[str, ...]
    norm_linears: Mapping[str, tuple[str, ...]] = field(hash=False)
    text_root: str
    vision_root: str
    lora_targets: str
    hub_prefixes: tuple[tuple[str, str], ...] = ()
    linear_pairs: Mapping[str, str] = field(default_factory=dict, hash=False)
    vision_blocks: str = ""
    mergers: tuple[str, ...] = ()
    norm_offset: float = 0.0
    spelled: Mapping[str, str] = field(default_factory=dict, hash=False)

    def called(self, role: str) -> str:
        """Return the family's name of a part of the decoder, such as "mlp.up_proj", which is Llama's."""
        return self.spelled.get(role, role)

    def within(self, has: Callable[[str], bool]) -> Modules:
        """Return the names of one block, where blocks are of several kinds.

        Args:
            has: whether the block has a module of this name, relative to it.
        """
        return replace(
            self,
            linears=tuple(filter(has, self.linears)),
            norm_linears={norm: tuple(filter(has, linears)) for norm, linears in self.norm_linears.items()},
            linear_pairs={one: other for one, other in self.linear_pairs.items() if has(one) and has(other)},
        )

    def sees(self, name: str) -> bool:
        """Whether a dotted module name lies on the way of images into the language model: vision tower and mergers."""
        return any(name == root or name.startswith(root + ".") for root in (self.vision_root, *self.mergers))

    def hub_name(self, name: str) -> str:
        """Return the published checkpoints' name of the tensor that transformers calls `name`."""
        return file_name(name, self.hub_prefixes)

    def memory_name(self, name: str) -> str:
        """Return what transformers calls the tensor `name` of a checkpoint, published or saved by transformers.

        Where several published prefixes have one in memory, the first pair is the one that `hub_name` writes.
        """
        for ours, theirs in self.hub_prefixes:
            if theirs.startswith(ours) and name.startswith(theirs):  # it begins as the name in memory does
                return ours + name[len(theirs) :]
        if not any(name.startswith(ours) for ours, _ in self.hub_prefixes):
            for ours, theirs in self.hub_prefixes:
                if name.startswith(theirs):
                    return ours + name[len(theirs) :]
        return name


@dataclass(frozen=True)
class Family:
    """The facts of one model family.

    Attributes:
        name: the project's name for it, e.g. "qwen3_vl".
        title: the name people use, e.g. "Qwen3-VL".
        model_types: values of `model_type` in config.json that belong to it.
        box_format: the frame and the text that boxes are written in.
        resize: the rule that turns pictures into the model's input, see `edgetune_runtime.images`.
        patch_size: pixels per vision patch side; a checkpoint's own value wins.
        temporal_patch_size: frames per patch (an image is repeated).
        merge_size: patches merged per side into one image token.
        chat: the prompt's pieces.
        ground_prompt: the request for a box, with `{phrase}`.
        stop_tokens: tokens that end an answer.
        special_tokens: role -> token text, for the ids that a bundle carries.
        modules: module names, or None for families that are supported for their boxes only.
        tower: name of what writes its vision tower as a graph, ours or an entry point of the group "edgetune.towers";
            without it a family is trained, merged and run under torch only.
        recurrent: whether layers carry a state from token to token, so that samples cannot share a sequence.
        marker: control token that only this family's tokenizers have, where families share a model_type.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    box_format: BoxFormat
    resize: Resize
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    chat: Chat
    ground_prompt: str
    stop_tokens: tuple[str, ...]
    special_tokens: Mapping[str, str] = field(default_factory=dict, hash=False)
    modules: Modules | None = None
    tower: str = ""
    recurrent: bool = False
    marker: str = ""

    @property
    def exports(self) -> bool:
        """Whether `calibrate` and `export` take its checkpoints."""
        return bool(self.tower)

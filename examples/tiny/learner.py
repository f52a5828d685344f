"""A tiny model on the training device with all it needs there: sprites, views, averaged weights, and its loss."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import batches as data
import render
import scenes
from blueprint import SLOT, Blueprint
from internvl import TileView, TinyInternVL
from layers import Network
from qwen3_vl import QwenView, TinyQwen3VL
from view import View

ARCHITECTURES: dict[str, tuple[type[Network], type[View]]] = {
    "qwen3_vl": (TinyQwen3VL, QwenView),
    "internvl": (TinyInternVL, TileView),
}

WRITES = ("proj.weight", "linear_fc2.weight", "projection_layer.weight", "fc2.weight")
"""Ends of the names of what writes to the residual; it begins smaller."""


class Learner:
    """A freshly initialised model and what a training step takes.

    Args:
        folder: checkpoint folder; its config, preprocessor and tokenizer are read.
        device: "cuda" (bf16 autocast) or "cpu" (float32).
        compiled: whether blocks, drawing and loss run through `torch.compile`.

    Attributes:
        blueprint: the checkpoint without its weights.
        views: of every canvas.
        net: the model in training.
        average: exponential moving average of its parameters by name; what is scored and saved.
    """

    def __init__(self, folder: Path, device: str, compiled: bool) -> None:
        self.device = device
        self.blueprint = Blueprint.open(folder)
        network, view = ARCHITECTURES[self.blueprint.family.name]
        torch.manual_seed(0)
        self.net = network(self.blueprint.config).to(device)
        for name, parameter in self.net.named_parameters():
            if parameter.ndim >= 2:
                deep = name.endswith(WRITES) and "patch" not in name
                torch.nn.init.normal_(parameter, std=0.02 / (4 if deep else 1))
            elif name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        self.average = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.assets = render.load_assets(device)
        self.views = [view(self.blueprint, canvas, device) for canvas in range(len(scenes.CANVASES))]
        self.draw = render.render
        if compiled:
            # Blocks share one compiled function each; whole-model compilation would take minutes per grid.
            torch._dynamo.config.cache_size_limit = 64
            for block in self.net.blocks:
                block.compile(dynamic=False)
            self.draw = torch.compile(render.render, dynamic=False)
            self._cross_entropy = torch.compile(self._cross_entropy, dynamic=False)  # type: ignore[method-assign]

    def pixels(self, canvas: int, things: Tensor, photos: Tensor, vary: bool) -> Tensor:
        """Patches of drawn scenes, through the same resize as at inference."""
        with torch.no_grad():
            pictures = self.draw(self.assets, things, photos, *scenes.CANVASES[canvas])
            return self.views[canvas].patches(data.vary(pictures) if vary else pictures)

    def hidden(self, canvas: int, patches: Tensor, sequence: Tensor) -> Tensor:
        """Hidden states [B, SLOTS * SLOT, H] of the queries, in bf16 on a GPU."""
        view, fast = self.views[canvas], self.device == "cuda"
        with torch.autocast(self.device, torch.bfloat16, enabled=fast):
            out: Tensor = self.net(patches.bfloat16() if fast else patches, sequence, view)
        return out[:, view.queries]

    def loss(self, canvas: int, things: Tensor, photos: Tensor, queries: Tensor, spans: Tensor) -> Tensor:
        """Mean loss over the answer tokens of a batch from `batches.Layouts`."""
        view = self.views[canvas]
        patches = self.pixels(canvas, things, photos, vary=True)
        sequence = view.sequences(queries)
        place = torch.arange(SLOT, device=self.device)
        # Position p predicts token p + 1, so an answer over [start, end) is predicted from [start - 1, end - 1).
        wanted = (place >= spans[..., :1] - 1) & (place < spans[..., 1:] - 1)
        targets = sequence[:, view.queries].roll(-1, 1)
        return self._cross_entropy(self.hidden(canvas, patches, sequence), targets, wanted.flatten(1).float())

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean over hidden [B, Q, H], targets and weights [B, Q]."""
        logits = F.linear(hidden, self.net.head.to(hidden.dtype)).float()
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy weights, by name, into the model in training."""
        for name, parameter in self.net.named_parameters():
            parameter.copy_(weights[name])

"""The tiny model on the training device with all it needs there: sprites, grids, averaged weights, and its loss."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import batches as data
import render
import scenes
from grid import Grid
from network import TinyQwen3VL


class Learner:
    """A freshly initialised model and what a training step takes.

    Args:
        folder: checkpoint folder; its config and tokenizer are read.
        device: "cuda" (bf16 autocast) or "cpu" (float32).
        compiled: whether blocks, drawing and loss run through `torch.compile`.

    Attributes:
        net: the model in training.
        average: exponential moving average of its parameters by name; what is scored and saved.
    """

    def __init__(self, folder: Path, device: str, compiled: bool) -> None:
        self.device = device
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        torch.manual_seed(0)
        self.net = TinyQwen3VL(self.config).to(device)
        for name, parameter in self.net.named_parameters():
            if parameter.ndim >= 2:
                deep = name.endswith(("proj.weight", "linear_fc2.weight")) and "patch" not in name
                torch.nn.init.normal_(parameter, std=0.02 / (4 if deep else 1))
            elif name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        self.average = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.assets = render.load_assets(device)
        self.prefix = torch.tensor(self.tokenizer.encode("<|im_start|>user\n<|vision_start|>").ids, device=device)
        self.grids, self.resizers = [], []
        for (width, height), (w, h) in zip(scenes.CANVASES, data.TARGETS, strict=True):
            self.grids.append(
                Grid(self.config, h // 16, w // 16, data.LENGTH, data.IMAGE_AT, data.SLOTS, data.SLOT, device)
            )
            self.resizers.append((data.cubic(height, h).to(device), data.cubic(width, w).to(device)))
        self.draw = render.render
        if compiled:
            # Blocks share one compiled function each; whole-model compilation would take minutes per grid.
            torch._dynamo.config.cache_size_limit = 64
            for block in [*self.net.model.visual.blocks, *self.net.model.language_model.layers]:
                block.compile(dynamic=False)
            self.draw = torch.compile(render.render, dynamic=False)
            self._cross_entropy = torch.compile(self._cross_entropy, dynamic=False)  # type: ignore[method-assign]

    def pixels(self, canvas: int, things: Tensor, photos: Tensor, vary: bool) -> Tensor:
        """Patches [B, N, 768] of drawn scenes, through the same resize as at inference."""
        width, height = scenes.CANVASES[canvas]
        with torch.no_grad():
            pictures = self.draw(self.assets, things, photos, width, height)
            pictures = data.vary(pictures) if vary else pictures
            return data.patchify(
                data.resize(pictures, *self.resizers[canvas]), self.grids[canvas].order.to(self.device)
            )

    def tokens(self, canvas: int, queries: Tensor) -> Tensor:
        """Whole sequences int64 [B, LENGTH] around queries [B, SLOTS, SLOT]."""
        w, h = data.TARGETS[canvas]
        ids = self.config["image_token_id"], self.config["vision_end_token_id"]
        return data.sequences(queries, self.prefix, (w // 32) * (h // 32), *ids)

    def hidden(self, canvas: int, patches: Tensor, sequence: Tensor) -> Tensor:
        """Hidden states [B, SLOTS * SLOT, H] of the queries, in bf16 on a GPU."""
        grid, fast = self.grids[canvas], self.device == "cuda"
        with torch.autocast(self.device, torch.bfloat16, enabled=fast):
            out: Tensor = self.net(patches.bfloat16() if fast else patches, sequence, grid)
        return out[:, grid.queries]

    def loss(self, canvas: int, things: Tensor, photos: Tensor, queries: Tensor, spans: Tensor) -> Tensor:
        """Mean loss over the answer tokens of a batch from `batches.Layouts`."""
        patches = self.pixels(canvas, things, photos, vary=True)
        sequence = self.tokens(canvas, queries)
        place = torch.arange(data.SLOT, device=self.device)
        # Position p predicts token p + 1, so an answer over [start, end) is predicted from [start - 1, end - 1).
        wanted = (place >= spans[..., :1] - 1) & (place < spans[..., 1:] - 1)
        targets = sequence[:, self.grids[canvas].queries].roll(-1, 1)
        return self._cross_entropy(self.hidden(canvas, patches, sequence), targets, wanted.flatten(1).float())

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean over hidden [B, Q, H], targets and weights [B, Q]."""
        logits = F.linear(hidden, self.net.model.language_model.embed_tokens.weight.to(hidden.dtype)).float()
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy weights, by name, into the model in training."""
        for name, parameter in self.net.named_parameters():
            parameter.copy_(weights[name])

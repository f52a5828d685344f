"""What depends only on the size of a picture and the layout of the queries after it: positions, masks, pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

import scenes
from blueprint import SLOT, SLOTS, Blueprint


class View(ABC):
    """A canvas as a model sees it; each architecture adds the positions and pixels that it takes.

    Args:
        blueprint: the checkpoint.
        canvas: index among the canvases of scenes.
        device: where the tensors lie.

    Attributes:
        size: (width, height) of the canvas, and `resized` of the picture that the model sees, in pixels.
        length: tokens of the sequence.
        image, queries: slices of the sequence.
        mask: [S, S] additive attention mask: causal, and no query sees another.
        text_cos, text_sin: [S, text head] rotary tables.
    """

    text_cos: Tensor
    text_sin: Tensor

    def __init__(self, blueprint: Blueprint, canvas: int, device: str) -> None:
        self.blueprint, self.device = blueprint, device
        self.size = scenes.CANVASES[canvas]
        plan = blueprint.plan(canvas)
        self.resized = plan.geometry.resized_width, plan.geometry.resized_height
        start = len(blueprint.opening)
        self.image = slice(start, start + plan.image_tokens)
        start = self.image.stop + 1
        self.queries = slice(start, start + SLOTS * SLOT)
        self.length = -(-self.queries.stop // 8) * 8
        owner = torch.full((self.length,), -1)
        owner[:start] = 0
        for index, own in enumerate(self.slots()):
            owner[own] = index + 1
        causal = torch.arange(self.length)[:, None] >= torch.arange(self.length)[None]
        see = causal & ((owner[None] == 0) | (owner[:, None] == owner[None]))
        see |= torch.eye(self.length, dtype=torch.bool)
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        self.mask = torch.where(see, 0.0, float("-inf")).to(device, dtype)

    def slots(self) -> list[slice]:
        """Where each query lies in the sequence."""
        return [slice(at, at + SLOT) for at in range(self.queries.start, self.queries.stop, SLOT)]

    @abstractmethod
    def patches(self, pictures: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] in 0..255 of this canvas to what the network takes, as at inference."""

    def sequences(self, queries: Tensor) -> Tensor:
        """Queries [B, SLOTS, SLOT] and the picture's placeholders as whole sequences int64 [B, length]."""
        out = torch.zeros(len(queries), self.length, dtype=torch.long, device=queries.device)
        out[:, : self.image.start] = torch.tensor(self.blueprint.opening, device=queries.device)
        out[:, self.image] = self.blueprint.image
        out[:, self.image.stop] = self.blueprint.closing
        out[:, self.queries] = queries.flatten(1).long()
        return out


def rotary_table(angle: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines float32 [S, head] of angles [S, head / 2]."""
    angle = torch.cat((angle, angle), 1)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def cubic(size: int, target: int) -> Tensor:
    """Weights [target, size] of an antialiased bicubic resize as Pillow computes it (Keys 1981, a = -0.5)."""
    scale = max(size / target, 1.0)
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * size / target
    x = ((torch.arange(size) + 0.5)[None] - centre[:, None]).abs() / scale
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(1, keepdim=True)).float()


def resize(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize [B, H, W, 3] in 0..255 with weights [h, H] and [w, W]; rounded to whole values like a picture file."""
    wide = torch.einsum("wx,byxc->bywc", columns, pictures.round())
    return torch.einsum("hy,bywc->bhwc", rows, wide).round().clamp(0, 255)

"""The tiny InternVL for training on a GPU: batches of equal tile grids, several queries to one image.

The modules carry the parameter names of transformers' `InternVLForConditionalGeneration`, so weights move both ways
unchanged; `tests/examples/test_tiny_model.py` holds the two implementations against each other. It has what the tiny
Qwen3-VL has not: tiles and a thumbnail, a class token, layer scales, a pixel shuffle, and ordinary rotary positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blueprint import SLOT, Blueprint
from edgetune_runtime.images.tiles import DynamicTiles
from layers import Holder, Network, text_model
from view import View, cubic, resize, rotary_table

PATCH, SHRINK = 14, 2  # pixels of a patch, and patches per side of an image token


class TileView(View):
    """A grid of tiles and the picture as one more, with a position for every token."""

    def __init__(self, blueprint: Blueprint, canvas: int, device: str) -> None:
        super().__init__(blueprint, canvas, device)
        spec, text = blueprint.spec, blueprint.config["text_config"]
        assert isinstance(spec, DynamicTiles)
        (width, height), self.side = self.size, spec.side
        self.stretching = cubic(height, self.resized[1]).to(device), cubic(width, self.resized[0]).to(device)
        self.shrinking = cubic(height, self.side).to(device), cubic(width, self.side).to(device)
        self.mean = torch.tensor(spec.normalise.mean, device=device)
        self.std = torch.tensor(spec.normalise.std, device=device)
        position = torch.arange(self.length).float()
        for own in self.slots():
            position[own] = self.queries.start + torch.arange(SLOT)
        head = text["head_dim"]
        frequency = text["rope_parameters"]["rope_theta"] ** -(torch.arange(0, head, 2) / head)
        self.text_cos, self.text_sin = rotary_table(position[:, None] * frequency, device)

    def patches(self, pictures: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] in 0..255 to normalised patches [B, tiles, N, 3*14*14], row by row."""
        batch, side = len(pictures), self.side
        rows, columns = self.resized[1] // side, self.resized[0] // side
        tiles = resize(pictures, *self.stretching).view(batch, rows, side, columns, side, 3)
        tiles = tiles.transpose(2, 3).reshape(batch, rows * columns, side, side, 3)
        if rows * columns > 1:
            tiles = torch.cat((tiles, resize(pictures, *self.shrinking)[:, None]), 1)
        tiles = (tiles / 255 - self.mean) / self.std
        along = side // PATCH
        tiles = tiles.view(batch, -1, along, PATCH, along, PATCH, 3).permute(0, 1, 2, 4, 6, 3, 5)
        return tiles.reshape(batch, -1, along * along, 3 * PATCH * PATCH)


class Block(nn.Module):
    """Pre-norm transformer block of InternViT, with layer scales (arXiv 2103.17239)."""

    def __init__(self, width: int, inner: int, heads: int, bias: bool, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = Holder(
            q_proj=nn.Linear(width, width, bias=bias),
            k_proj=nn.Linear(width, width, bias=bias),
            v_proj=nn.Linear(width, width, bias=bias),
            projection_layer=nn.Linear(width, width),
        )
        self.mlp = Holder(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))
        self.lambda_1, self.lambda_2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Class token and patches x [B, 1 + N, width]; same shape."""
        batch, length, width = x.shape
        attention, y = self.attention, self.layernorm_before(x)
        split = (batch, length, self.heads, -1)
        q, k, v = (
            project(y).view(split).transpose(1, 2) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.lambda_1.to(x.dtype) * attention.projection_layer(y)
        y = self.mlp.fc2(F.gelu(self.mlp.fc1(self.layernorm_after(x))))
        out: Tensor = x + self.lambda_2.to(x.dtype) * y
        return out


class TinyInternVL(Network):
    """Built from the checkpoint's config.json; `forward` returns hidden states before the (tied) head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        t, v = config["text_config"], config["vision_config"]
        width, along = v["hidden_size"], v["image_size"][0] // PATCH
        block = width, v["intermediate_size"], v["num_attention_heads"], v["attention_bias"]
        self.model = Holder(
            vision_tower=Holder(
                embeddings=Holder(patch_embeddings=Holder(projection=nn.Conv2d(3, width, PATCH, PATCH))),
                encoder=Holder(
                    layer=nn.ModuleList(
                        Block(*block, v["layer_scale_init_value"]) for _ in range(v["num_hidden_layers"])
                    )
                ),
            ),
            multi_modal_projector=Holder(
                layer_norm=nn.LayerNorm(SHRINK**2 * width),
                linear_1=nn.Linear(SHRINK**2 * width, t["hidden_size"]),
                linear_2=nn.Linear(t["hidden_size"], t["hidden_size"]),
            ),
            language_model=text_model(t),
        )
        embeddings = self.model.vision_tower.embeddings
        embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 1 + along * along, width))

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks of the tower and of the decoder."""
        return [*self.model.vision_tower.encoder.layer, *self.model.language_model.layers]

    def see(self, patches: Tensor) -> Tensor:
        """Patches [B, tiles, N, 3*14*14] to image tokens [B, tiles * N/4, H]."""
        tower, projector = self.model.vision_tower, self.model.multi_modal_projector
        batch, tiles, count, values = patches.shape
        conv = tower.embeddings.patch_embeddings.projection
        kernel, bias = conv.weight.flatten(1).to(patches.dtype), conv.bias.to(patches.dtype)
        x = F.linear(patches.view(batch * tiles, count, values), kernel, bias)
        x = torch.cat((tower.embeddings.cls_token.to(x.dtype).expand(len(x), -1, -1), x), 1)
        x = x + tower.embeddings.position_embeddings.to(x.dtype)
        for block in tower.encoder.layer:
            x = block(x)
        along, width = int(count**0.5), x.shape[-1]
        # The pixel shuffle puts a square's columns beside each other, and then its rows.
        x = x[:, 1:].reshape(-1, along // SHRINK, SHRINK, along // SHRINK, SHRINK, width)
        x = x.transpose(2, 3).reshape(batch, -1, SHRINK**2 * width)
        y: Tensor = projector.linear_2(F.gelu(projector.linear_1(projector.layer_norm(x))))
        return y

    def forward(self, patches: Tensor, tokens: Tensor, view: TileView) -> Tensor:
        """Hidden states [B, S, H] of tokens [B, S] whose image placeholders lie at `view.image`."""
        image, text = self.see(patches), self.model.language_model
        x = text.embed_tokens(tokens).to(image.dtype)
        x = torch.cat((x[:, : view.image.start], image, x[:, view.image.stop :]), 1)
        for layer in text.layers:
            x = layer(x, view.text_cos, view.text_sin, view.mask)
        hidden: Tensor = text.norm(x)
        return hidden

"""The tiny Qwen3-VL for training on a GPU: batches of equal image grids, several queries to one image.

The modules carry the parameter names of transformers' `Qwen3VLForConditionalGeneration`, so weights move both ways
unchanged; `tests/examples/test_tiny_model.py` holds the two implementations against each other. Two things differ, both
for speed: images of one batch share a grid, so vision attention is one batched call (stock attention loops over
images), and one sequence holds an image and several queries that see the image but not each other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blueprint import SLOT, Blueprint
from layers import Holder, Network, rotate, text_model
from view import View, cubic, resize, rotary_table

PATCH = 16


class QwenView(View):
    """A grid of patches in merge order, with interleaved M-RoPE.

    Attributes:
        order: [N] row-major index of the patch at every place of the merge order (2 x 2 neighbours in a row).
        corners, weights: [N, 4] learned positions to mix for a patch, and how.
        vision_cos, vision_sin: [N, vision head] rotary tables.
    """

    def __init__(self, blueprint: Blueprint, canvas: int, device: str) -> None:
        super().__init__(blueprint, canvas, device)
        v, t = blueprint.config["vision_config"], blueprint.config["text_config"]
        columns, rows = (side // PATCH for side in self.resized)
        self.scaling = cubic(self.size[1], self.resized[1]).to(device), cubic(self.size[0], self.resized[0]).to(device)
        side = int(v["num_position_embeddings"] ** 0.5)
        # Patches come in merge order: 2 x 2 neighbours in a row.
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        order = torch.arange(rows * columns).view(rows // 2, 2, columns // 2, 2).permute(0, 2, 1, 3).flatten()
        y, x = y.flatten()[order], x.flatten()[order]
        self.order = order.to(device)
        # Learned positions, resampled bilinearly with aligned corners.
        fy, fx = y * (side - 1) / max(rows - 1, 1), x * (side - 1) / max(columns - 1, 1)
        y0, x0 = fy.floor().long(), fx.floor().long()
        y1, x1 = (y0 + 1).clamp(max=side - 1), (x0 + 1).clamp(max=side - 1)
        wy, wx = fy - y0, fx - x0
        self.corners = torch.stack((y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1), 1).to(device)
        self.weights = torch.stack(((1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx), 1).float().to(device)
        half = v["hidden_size"] // v["num_heads"] // 2
        frequency = 10000.0 ** -(torch.arange(0, half, 2) / half)
        angle = torch.cat((y[:, None] * frequency, x[:, None] * frequency), 1)
        self.vision_cos, self.vision_sin = rotary_table(angle, device)
        # Text positions (temporal, height, width): the image spreads over the last two, text counts on all three.
        merged_rows, merged_columns, start = rows // 2, columns // 2, self.image.start
        position = torch.zeros(3, self.length)
        position[:, :start] = torch.arange(start)
        position[0, self.image] = start
        position[1, self.image] = start + torch.arange(merged_rows).repeat_interleave(merged_columns)
        position[2, self.image] = start + torch.arange(merged_columns).repeat(merged_rows)
        after = start + max(merged_rows, merged_columns)
        position[:, self.image.stop] = after
        for own in self.slots():
            position[:, own] = after + 1 + torch.arange(SLOT)
        head, sections = t["head_dim"], t["rope_parameters"]["mrope_section"]
        frequency = t["rope_parameters"]["rope_theta"] ** -(torch.arange(0, head, 2) / head)
        axis = torch.zeros(head // 2, dtype=torch.long)
        for dimension in (1, 2):  # interleaved: T H W T H W …, the rest is T
            axis[dimension : sections[dimension] * 3 : 3] = dimension
        self.text_cos, self.text_sin = rotary_table(position[axis].T * frequency, device)

    def patches(self, pictures: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] in 0..255 to normalised patches [B, N, 3*16*16] in merge order."""
        pictures = resize(pictures, *self.scaling)
        batch, height, width, _ = pictures.shape
        x = (pictures / 127.5 - 1).view(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        return x.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, 3 * PATCH * PATCH)[:, self.order]


class VisionBlock(nn.Module):
    """Pre-norm transformer block of the vision tower."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Holder(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = Holder(linear_fc1=nn.Linear(width, inner), linear_fc2=nn.Linear(inner, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Patches x [B, N, width] with rotary tables [N, head]; same shape."""
        batch, patches, width = x.shape
        qkv = self.attn.qkv(self.norm1(x)).view(batch, patches, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.attn.proj(y.transpose(1, 2).reshape(batch, patches, width))
        y = self.mlp.linear_fc2(F.gelu(self.mlp.linear_fc1(self.norm2(x)), approximate="tanh"))
        out: Tensor = x + y
        return out


class Merger(nn.Module):
    """2 x 2 patches to one token of the text width."""

    def __init__(self, width: int, out: int, after: bool) -> None:
        super().__init__()
        self.after = after  # DeepStack's mergers normalise after joining the patches
        self.norm = nn.LayerNorm(4 * width if after else width, eps=1e-6)
        self.linear_fc1, self.linear_fc2 = nn.Linear(4 * width, 4 * width), nn.Linear(4 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] in merge order to [B, N/4, out]."""
        batch, patches, width = x.shape
        joined = (batch, patches // 4, 4 * width)
        x = self.norm(x.reshape(joined)) if self.after else self.norm(x).reshape(joined)
        y: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(x)))
        return y


class TinyQwen3VL(Network):
    """Built from the checkpoint's config.json; `forward` returns hidden states before the (tied) head."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        t, v = config["text_config"], config["vision_config"]
        self.deepstack = v["deepstack_visual_indexes"]
        width = v["hidden_size"]
        self.model = Holder(
            visual=Holder(
                patch_embed=Holder(proj=nn.Conv3d(3, width, (2, 16, 16), (2, 16, 16))),
                pos_embed=nn.Embedding(v["num_position_embeddings"], width),
                blocks=nn.ModuleList(
                    VisionBlock(width, v["intermediate_size"], v["num_heads"]) for _ in range(v["depth"])
                ),
                merger=Merger(width, v["out_hidden_size"], after=False),
                deepstack_merger_list=nn.ModuleList(
                    Merger(width, v["out_hidden_size"], after=True) for _ in self.deepstack
                ),
            ),
            language_model=text_model(t),
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks of the tower and of the decoder."""
        return [*self.model.visual.blocks, *self.model.language_model.layers]

    def see(self, patches: Tensor, view: QwenView) -> tuple[Tensor, list[Tensor]]:
        """Patches [B, N, 3*16*16] (merge order, one frame) to image tokens [B, N/4, H] and DeepStack tokens."""
        visual = self.model.visual
        kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames of a still image are the same
        x = F.linear(patches, kernel.to(patches.dtype), visual.patch_embed.proj.bias.to(patches.dtype))
        x = x + (visual.pos_embed(view.corners) * view.weights[..., None]).sum(1).to(x.dtype)
        deep: list[Tensor] = []
        for index, block in enumerate(visual.blocks):
            x = block(x, view.vision_cos, view.vision_sin)
            if index in self.deepstack:
                deep.append(visual.deepstack_merger_list[len(deep)](x))
        return visual.merger(x), deep

    def forward(self, patches: Tensor, tokens: Tensor, view: QwenView) -> Tensor:
        """Hidden states [B, S, H] of tokens [B, S] whose image placeholders lie at `view.image`."""
        image, deep = self.see(patches, view)
        text = self.model.language_model
        x = text.embed_tokens(tokens).to(image.dtype)
        x = torch.cat((x[:, : view.image.start], image, x[:, view.image.stop :]), 1)
        before, after = view.image.start, tokens.shape[1] - view.image.stop
        for index, layer in enumerate(text.layers):
            x = layer(x, view.text_cos, view.text_sin, view.mask)
            if index < len(deep):
                x = x + F.pad(deep[index], (0, 0, before, after))
        hidden: Tensor = text.norm(x)
        return hidden

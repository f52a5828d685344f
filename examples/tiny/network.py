"""The tiny Qwen3-VL for training on a GPU: batches of equal image grids, several queries to one image.

The modules carry the parameter names of transformers' `Qwen3VLForConditionalGeneration`, so weights move both ways
unchanged; `tests/examples/test_tiny.py` holds the two implementations against each other. Two things differ, both for
speed: images of one batch share a grid, so vision attention is one batched call (stock attention loops over images),
and one sequence holds an image and several queries that see the image but not each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467), statistics in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype) * self.weight.to(x.dtype)


class Holder(nn.Module):
    """Modules under the names that the checkpoint uses."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [B, heads, S, D] by float32 cos, sin [S, D]."""
    a, b = x.float().chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


class VisionBlock(nn.Module):
    """Pre-norm transformer block of the vision tower."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Holder(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = Holder(linear_fc1=nn.Linear(width, inner), linear_fc2=nn.Linear(inner, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, patches, width = x.shape
        qkv = self.attn.qkv(self.norm1(x)).view(batch, patches, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.attn.proj(y.transpose(1, 2).reshape(batch, patches, width))
        return x + self.mlp.linear_fc2(F.gelu(self.mlp.linear_fc1(self.norm2(x)), approximate="tanh"))


class Merger(nn.Module):
    """2 x 2 patches to one token of the text width."""

    def __init__(self, width: int, out: int, after: bool) -> None:
        super().__init__()
        self.after = after  # DeepStack's mergers normalise after joining the patches
        self.norm = nn.LayerNorm(4 * width if after else width, eps=1e-6)
        self.linear_fc1, self.linear_fc2 = nn.Linear(4 * width, 4 * width), nn.Linear(4 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, width = x.shape
        joined = (batch, patches // 4, 4 * width)
        x = self.norm(x.reshape(joined)) if self.after else self.norm(x).reshape(joined)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class TextLayer(nn.Module):
    """Decoder layer: grouped-query attention with q/k norms, SwiGLU."""

    def __init__(self, width: int, inner: int, heads: int, kv_heads: int, head: int) -> None:
        super().__init__()
        self.head, self.repeat = head, heads // kv_heads
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)
        self.self_attn = Holder(
            q_proj=nn.Linear(width, heads * head, bias=False),
            k_proj=nn.Linear(width, kv_heads * head, bias=False),
            v_proj=nn.Linear(width, kv_heads * head, bias=False),
            o_proj=nn.Linear(heads * head, width, bias=False),
            q_norm=RMSNorm(head),
            k_norm=RMSNorm(head),
        )
        self.mlp = Holder(
            gate_proj=nn.Linear(width, inner, bias=False),
            up_proj=nn.Linear(width, inner, bias=False),
            down_proj=nn.Linear(inner, width, bias=False),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        attn, y = self.self_attn, self.input_layernorm(x)
        split = (batch, length, -1, self.head)
        q = attn.q_norm(attn.q_proj(y).view(split)).transpose(1, 2)
        k = attn.k_norm(attn.k_proj(y).view(split)).transpose(1, 2)
        v = attn.v_proj(y).view(split).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(self.repeat, 1), v.repeat_interleave(self.repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(batch, 1, length, length))
        x = x + attn.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y))


class TinyQwen3VL(nn.Module):
    """Built from the checkpoint's config.json; `forward` returns hidden states before the (tied) head."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        t, v = config["text_config"], config["vision_config"]
        self.config, self.text, self.vision = config, t, v
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
                    Merger(width, v["out_hidden_size"], after=True) for _ in v["deepstack_visual_indexes"]
                ),
            ),
            language_model=Holder(
                embed_tokens=nn.Embedding(t["vocab_size"], t["hidden_size"]),
                layers=nn.ModuleList(
                    TextLayer(
                        t["hidden_size"],
                        t["intermediate_size"],
                        t["num_attention_heads"],
                        t["num_key_value_heads"],
                        t["head_dim"],
                    )
                    for _ in range(t["num_hidden_layers"])
                ),
                norm=RMSNorm(t["hidden_size"]),
            ),
        )

    def see(self, patches: Tensor, grid: Grid) -> tuple[Tensor, list[Tensor]]:
        """patches [B, N, 3*16*16] (merge order, one frame) to image tokens [B, N/4, H] and DeepStack tokens."""
        visual = self.model.visual
        kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames of a still image are the same
        x = F.linear(patches, kernel.to(patches.dtype), visual.patch_embed.proj.bias.to(patches.dtype))
        x = x + (visual.pos_embed(grid.corners) * grid.weights[..., None]).sum(1).to(x.dtype)
        deep = []
        for index, block in enumerate(visual.blocks):
            x = block(x, grid.vision_cos, grid.vision_sin)
            if index in self.vision["deepstack_visual_indexes"]:
                deep.append(visual.deepstack_merger_list[len(deep)](x))
        return visual.merger(x), deep

    def forward(self, patches: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Hidden states [B, S, H] of tokens [B, S] whose image placeholders lie at `grid.image`."""
        image, deep = self.see(patches, grid)
        text = self.model.language_model
        x = text.embed_tokens(tokens).to(image.dtype)
        x = torch.cat((x[:, : grid.image.start], image, x[:, grid.image.stop :]), 1)
        before, after = grid.image.start, tokens.shape[1] - grid.image.stop
        for index, layer in enumerate(text.layers):
            x = layer(x, grid.text_cos, grid.text_sin, grid.mask)
            if index < len(deep):
                x = x + F.pad(deep[index], (0, 0, before, after))
        return text.norm(x)


class Grid:
    """Everything that depends only on the image grid and the layout of queries in a sequence.

    Args:
        rows, columns: patches of the image (even).
        length: tokens of the sequence; `image_at`: where the image's placeholders start.
        slots, slot: number of queries and tokens of each; they follow one token after the image.
    """

    def __init__(
        self, config: dict, rows: int, columns: int, length: int, image_at: int, slots: int, slot: int, device: str
    ) -> None:
        v, t = config["vision_config"], config["text_config"]
        side = int(v["num_position_embeddings"] ** 0.5)
        # Patches come in merge order: 2 x 2 neighbours in a row.
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        order = torch.arange(rows * columns).view(rows // 2, 2, columns // 2, 2).permute(0, 2, 1, 3).flatten()
        y, x = y.flatten()[order], x.flatten()[order]
        self.order = order
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
        self.vision_cos, self.vision_sin = self._table(angle, device)
        # Text positions (temporal, height, width): the image spreads over the last two, text counts on all three.
        merged_rows, merged_columns = rows // 2, columns // 2
        count = merged_rows * merged_columns
        self.image = slice(image_at, image_at + count)
        position = torch.zeros(3, length)
        position[:, :image_at] = torch.arange(image_at)
        position[0, self.image] = image_at
        position[1, self.image] = image_at + torch.arange(merged_rows).repeat_interleave(merged_columns)
        position[2, self.image] = image_at + torch.arange(merged_columns).repeat(merged_rows)
        after = image_at + max(merged_rows, merged_columns)
        start = self.image.stop + 1
        position[:, start - 1] = after
        owner = torch.full((length,), -1)
        owner[:start] = 0
        for index in range(slots):
            own = slice(start + index * slot, start + (index + 1) * slot)
            position[:, own] = after + 1 + torch.arange(slot)
            owner[own] = index + 1
        self.queries = slice(start, start + slots * slot)
        causal = torch.arange(length)[:, None] >= torch.arange(length)[None]
        see = causal & ((owner[None] == 0) | (owner[:, None] == owner[None]))
        see |= torch.eye(length, dtype=torch.bool)
        self.mask = torch.where(see, 0.0, float("-inf")).to(
            device, torch.bfloat16 if device != "cpu" else torch.float32
        )
        head, sections = t["head_dim"], t["rope_parameters"]["mrope_section"]
        frequency = t["rope_parameters"]["rope_theta"] ** -(torch.arange(0, head, 2) / head)
        axis = torch.zeros(head // 2, dtype=torch.long)
        for dimension in (1, 2):  # interleaved: T H W T H W …, the rest is T
            axis[dimension : sections[dimension] * 3 : 3] = dimension
        self.text_cos, self.text_sin = self._table(position[axis].T * frequency, device)

    @staticmethod
    def _table(angle: Tensor, device: str) -> tuple[Tensor, Tensor]:
        angle = torch.cat((angle, angle), 1)
        return angle.cos().float().to(device), angle.sin().float().to(device)

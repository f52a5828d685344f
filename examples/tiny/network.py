"""The tiny Qwen3-VL for training on a GPU: batches of equal image grids, several queries to one image.

The modules carry the parameter names of transformers' `Qwen3VLForConditionalGeneration`, so weights move both ways
unchanged; `tests/examples/test_tiny_model.py` holds the two implementations against each other. Two things differ, both
for speed: images of one batch share a grid, so vision attention is one batched call (stock attention loops over
images), and one sequence holds an image and several queries that see the image but not each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grid import Grid


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv 1910.07467), statistics in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width]; keeps dtype."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype) * self.weight.to(x.dtype)


class Holder(nn.Module):
    """Modules under the names that the checkpoint uses."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    if TYPE_CHECKING:  # modules set by name are beyond a type checker

        def __getattr__(self, name: str) -> Any: ...


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
        """Hidden states x [B, S, width] with rotary tables [S, head] and additive mask [S, S]; same shape."""
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
        y = self.mlp.down_proj(F.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y))
        out: Tensor = x + y
        return out


class TinyQwen3VL(nn.Module):
    """Built from the checkpoint's config.json; `forward` returns hidden states before the (tied) head."""

    def __init__(self, config: dict[str, Any]) -> None:
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
        """Patches [B, N, 3*16*16] (merge order, one frame) to image tokens [B, N/4, H] and DeepStack tokens."""
        visual = self.model.visual
        kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames of a still image are the same
        x = F.linear(patches, kernel.to(patches.dtype), visual.patch_embed.proj.bias.to(patches.dtype))
        x = x + (visual.pos_embed(grid.corners) * grid.weights[..., None]).sum(1).to(x.dtype)
        deep: list[Tensor] = []
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
        hidden: Tensor = text.norm(x)
        return hidden

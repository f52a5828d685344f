"""What the tiny models share: Qwen3's decoder under transformers' names, rotary embedding, and norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class Network(nn.Module):
    """A model in training, with the modules of its checkpoint under `model`.

    `forward` takes patches, tokens [B, S] and their `view.View`, and returns hidden states [B, S, H] before the head.
    """

    model: Holder

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks of the tower and of the decoder."""
        raise NotImplementedError

    @property
    def head(self) -> Tensor:
        """The token table [V, H], which is the output head as well."""
        weight: Tensor = self.model.language_model.embed_tokens.weight
        return weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of x [B, heads, S, D] by float32 cos, sin [S, D]."""
    a, b = x.float().chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


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


def text_model(text: dict[str, Any]) -> Holder:
    """Qwen3's text model from its part of config.json: embed_tokens, layers, norm."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    heads = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]
    return Holder(
        embed_tokens=nn.Embedding(text["vocab_size"], width),
        layers=nn.ModuleList(TextLayer(width, inner, *heads) for _ in range(text["num_hidden_layers"])),
        norm=RMSNorm(width),
    )

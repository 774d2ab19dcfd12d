"""The network: a Qwen2 decoder in the shape of the built-in model (4.99 million parameters)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; multiples of 256 where K-quants need them."""

    vocab: int = 1024
    width: int = 256
    layers: int = 6
    ffn: int = 768
    heads: int = 8
    kv_heads: int = 4
    context: int = 4096
    rope_theta: float = 10_000.0
    eps: float = 1e-6

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(
            x.dtype
        )


def rope_tables(length: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, head) in the halves layout of GGUF's `qwen2`."""
    steps = torch.arange(0, shape.head, 2).float() / shape.head
    angles = torch.outer(torch.arange(length).float(), shape.rope_theta**-steps)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (batch, heads, length, head) by their positions."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.attn_norm, self.ffn_norm = RMSNorm(s.width, s.eps), RMSNorm(s.width, s.eps)
        self.q = nn.Linear(s.width, s.heads * s.head)
        self.k = nn.Linear(s.width, s.kv_heads * s.head)
        self.v = nn.Linear(s.width, s.kv_heads * s.head)
        self.o = nn.Linear(s.heads * s.head, s.width, bias=False)
        self.gate = nn.Linear(s.width, s.ffn, bias=False)
        self.up = nn.Linear(s.width, s.ffn, bias=False)
        self.down = nn.Linear(s.ffn, s.width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Attend with plain matrix products: on a CPU faster to train than fused attention."""
        s, (batch, length, _) = self.shape, x.shape
        q = rotate(self.q(x).view(batch, length, s.heads, s.head).transpose(1, 2), cos, sin)
        k = rotate(self.k(x).view(batch, length, s.kv_heads, s.head).transpose(1, 2), cos, sin)
        v = self.v(x).view(batch, length, s.kv_heads, s.head).transpose(1, 2)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(s.head) + mask
        mixed = scores.softmax(-1).to(v.dtype) @ v
        return self.o(mixed.transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Add what this block finds to the residual stream."""
        x = x + self.attend(self.attn_norm(x), cos, sin, mask)
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class TinyQwen(nn.Module):
    """Token ids (batch, length) to final states (batch, length, width); the head is tied."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.eps)
        cos, sin = rope_tables(shape.context, shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        """Draw initial weights; what writes into the residual stream starts smaller."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.06)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Block):
            for layer in (module.o, module.down):
                with torch.no_grad():
                    layer.weight.mul_(1 / math.sqrt(2 * self.shape.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the final states; logits are `states @ embed.weight.T`."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        mask = torch.full((length, length), -1e9, device=ids.device).triu(1)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm(x)

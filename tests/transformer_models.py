"""Transformers of the usual shapes, written in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head attention by its definition, or by torch's fused operator."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.fused, self.p = heads, causal, fused, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.fused:
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
            if self.causal:
                scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1), -torch.inf)
            attended = self.dropout(torch.softmax(scores, -1)) @ v
        merged: Tensor = self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return merged


class Block(nn.Module):
    """Attention and a perceptron with residuals; norms before (as GPT-2) or after (as BERT)."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool, fused: bool, norm_first: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout, causal=causal, fused=fused)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation, self.dropout, self.norm_first = nn.GELU("tanh" if causal else "none"), nn.Dropout(dropout), norm_first

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x)))
            mixed: Tensor = x + self.dropout(self.down(self.activation(self.up(self.norm2(x)))))
            return mixed
        x = self.norm1(x + self.dropout(self.attention(x)))
        normed: Tensor = self.norm2(x + self.dropout(self.down(self.activation(self.up(x)))))
        return normed


class Transformer(nn.Module):
    """Tokens to scores for each position."""

    def __init__(
        self,
        tokens: int,
        positions: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        *,
        causal: bool,
        fused: bool,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens, width), nn.Embedding(positions, width)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, causal=causal, fused=fused, norm_first=causal) for _ in range(layers)))
        self.head = nn.Linear(width, tokens, bias=False) if causal else nn.Linear(width, 2)
        self.causal = causal
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        if not self.causal:
            x = self.norm(x)
        x = self.blocks(self.dropout(x))
        scores: Tensor = self.head(self.norm(x)) if self.causal else self.head(x[:, 0])
        return scores


def bert_base_like(*, fused: bool = True, layers: int = 12, dropout: float = 0.1) -> Transformer:
    """An encoder of BERT-base's sizes."""
    return Transformer(30522, 512, 768, 12, layers, dropout, causal=False, fused=fused)


def gpt2_small_like(*, fused: bool = True, layers: int = 12, dropout: float = 0.1) -> Transformer:
    """A decoder of GPT-2-small's sizes, with tied word vectors."""
    return Transformer(50257, 1024, 768, 12, layers, dropout, causal=True, fused=fused, tied=True)

"""Models whose compiled forms are copied and saved; importable by name, as a fresh process needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[Any, ...]


class Whole(nn.Module):
    """One graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu() * 2
        x += 1
        x = x[:, :, 1:].mean((-2, -1))
        return self.head(x) + self.tied(x) + torch.zeros(x.shape[0], 1)


class InParts(nn.Module):
    """A root that keeps its Python, and several graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.first(x) if x.sum() > 0 else self.second(x)


class InForms(nn.Module):
    """Graphs for both modes and for several image sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(3, 4, 1)
        self.large = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.large(x) if x.shape[-1] > 4 else self.small(x)
        x = x if scale is None else x * scale
        return x * 2 if self.training else x


class Composite(nn.Module):
    """Attention and a recurrent layer, which have graphs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.rnn = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.encoder(x))[0][:, -1])


SURVIVORS: dict[str, tuple[Callable[[], nn.Module], list[Example]]] = {
    "whole": (Whole, [(torch.randn(2, 3, 6, 6),)]),
    "in parts": (InParts, [(torch.ones(2, 4),), (-torch.ones(2, 4),)]),
    "in forms": (InForms, [(torch.randn(2, 3, 6, 6),), (torch.randn(2, 3, 4, 4),), (torch.randn(2, 3, 6, 6), torch.tensor(2.0))]),
    "composite": (Composite, [(torch.randn(2, 5, 8),)]),
}

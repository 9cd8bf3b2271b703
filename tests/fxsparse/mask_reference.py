"""Prune and regrow on plain tensors, written from the papers' pseudo-code: dense gradients, then everything is multiplied by masks.

It shares nothing with the package but the seeds of random numbers, and sorts where the package selects.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn


def random_numbers(seed: int, step: int, site: str, shape: torch.Size) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{step}:{site}".encode()).digest()
    return torch.rand(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") // 2))


def first_largest(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """A bool tensor with the ``count`` largest of the allowed scores; of equal ones the first."""
    flat = scores.flatten().double().masked_fill(~allowed.flatten(), -math.inf)
    chosen = torch.zeros(flat.shape, dtype=torch.bool)
    chosen[flat.sort(descending=True, stable=True).indices[:count]] = True
    return chosen.reshape(scores.shape)


class Reference:
    """Trains a model whose ``weights`` are masked, by one of the methods "granet", "gmp", "rigl", "set" or "static"."""

    def __init__(
        self,
        model: nn.Module,
        weights: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        masks: dict[str, Tensor],
        method: str,
        **settings: Any,
    ) -> None:
        self.model, self.weights, self.optimizer, self.method, self.settings = model, weights, optimizer, method, settings
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.steps = 0
        self._multiply()

    def step(self, loss: Tensor) -> bool:
        """One training step. Returns whether masks were updated."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._multiply()
        self.steps += 1
        if self.method == "static" or self.steps % self.settings["interval"]:
            return False
        with torch.no_grad():
            updated = getattr(self, f"_{self.method}")()
        self._multiply()
        return bool(updated)

    @torch.no_grad()
    def _multiply(self) -> None:
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self.masks[name])

    def _gmp(self) -> bool:
        s = self.settings
        u, first, last = self.steps // s["interval"], s["begin"] // s["interval"], s["end"] // s["interval"]
        if not first <= u <= last - 1:
            return False
        sparsity = s["final"] + (s["initial"] - s["final"]) * (1 - (u - first) / (last - first)) ** 3
        if s["scope"] == "global":
            keep = int(sum(w.numel() for w in self.weights.values()) * (1 - sparsity))
            everything = torch.cat([weight.abs().flatten() for weight in self.weights.values()])
            active = torch.cat([mask.flatten() for mask in self.masks.values()])
            chosen = first_largest(everything, active, min(keep, int(active.sum()))) & active
            for (name, weight), part in zip(self.weights.items(), chosen.split([w.numel() for w in self.weights.values()]), strict=True):
                self.masks[name] = part.reshape(weight.shape)
            return True
        for index, (name, weight) in enumerate(self.weights.items()):
            keep = int(weight.numel() * (1 - sparsity))
            if self.method == "granet" and index == len(self.weights) - 1 and sparsity >= 0.8:
                keep = max(keep, int(0.2 * weight.numel()))
            keep = min(max(keep, 1), int(self.masks[name].sum()))
            self.masks[name] = first_largest(weight.abs(), self.masks[name], keep)
        return True

    def _granet(self) -> bool:
        self._gmp()
        if self.steps > self.settings["total"]:
            return False
        fraction = 0.005 + (self.settings["rate"] - 0.005) * (1 + math.cos(math.pi * self.steps / self.settings["total"])) / 2
        self._drop_and_grow(fraction)
        return True

    def _rigl(self) -> bool:
        if self.steps > self.settings["end"]:
            return False
        fraction = self.settings["fraction"] / 2 * (1 + math.cos(math.pi * self.steps / self.settings["end"]))
        self._drop_and_grow(fraction)
        return True

    _set = _rigl

    def _drop_and_grow(self, fraction: float) -> None:
        for name, weight in self.weights.items():
            mask = self.masks[name]
            active = int(mask.sum())
            count = math.ceil(fraction * active)
            mask = first_largest(weight.abs(), mask, active - count)
            if self.method == "set":
                scores = random_numbers(self.settings["seed"], self.steps, name, weight.shape)
            else:
                assert weight.grad is not None
                scores = weight.grad.abs()
            self.masks[name] = mask | first_largest(scores, ~mask, count)

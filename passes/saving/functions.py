"""What a rewritten graph calls between the operators of fxsparse."""

from __future__ import annotations

from typing import Any

import torch

from ..ops import OPS


def update_running(
    mean: torch.Tensor, var: torch.Tensor, counter: torch.Tensor | None, new_mean: Any, new_var: Any, training: bool
) -> None:
    """A batch norm's running statistics and count of batches after a forward pass in training."""
    if training:
        mean.copy_(new_mean)
        var.copy_(new_var)
        if counter is not None:
            counter.add_(1)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, p: float, causal: bool, scale: float | None,
    clock: torch.Tensor, bits: int, group_size: int, seed: int,
) -> torch.Tensor:  # fmt: skip
    """F.scaled_dot_product_attention, of which codes are kept."""
    if not torch.is_grad_enabled():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, p, causal, scale=scale)
    used = q.shape[-1] ** -0.5 if scale is None else scale
    out: torch.Tensor = OPS.coded_attention.default(q, k, v, mask, p, causal, used, clock, bits, group_size, seed, True)[0]
    return out

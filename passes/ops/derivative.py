"""What the backward rules of operators that keep codes have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_TWICE = (
    "a second derivative was asked for through {name}, which kept its activation as a few-bit code (or a bit mask) that has no derivative; "
    "call backward without create_graph, or exclude this layer from BLPA, SavedActivations and SWAT"
)


def once(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A backward rule whose results raise RuntimeError when they are differentiated again, instead of giving a wrong derivative."""

    def decorated(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def rule(ctx: Any, *grads: Any) -> Any:
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():
                results = backward(ctx, *grads)
            delayed: Any = torch._C._functions.DelayedError
            found = results if isinstance(results, tuple) else (results,)
            return tuple(
                delayed(_TWICE.format(name=name), 1)(item.detach().requires_grad_()) if isinstance(item, Tensor) else item for item in found
            )

        return rule

    return decorated


def like(grad: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the gradient with these strides: itself if it has them, else a copy."""
    if list(grad.stride()) == list(strides):
        return grad
    made = grad.new_empty_strided(grad.shape, list(strides))
    made.copy_(grad)
    return made


def reduced_to(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient summed over the dimensions along which a tensor of ``shape`` was broadcast."""
    return grad if list(grad.shape) == list(shape) else grad.sum_to_size(list(shape))

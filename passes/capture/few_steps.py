"""Recurrent layers on fake tensors: one step says all about the form of many, of which each would be run by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..recurrent import recurrent


def in_few_steps(target: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``run(*args, **kwargs)`` gives on fake tensors, if ``target`` is a recurrent layer from one step of its sequence.

    Args:
        target: a module, or the function ``recurrent``.
    """
    x = args[0] if args else None
    if not isinstance(x, torch.Tensor) or x.dim() != 3 or not (isinstance(target, nn.RNNBase) or target is recurrent):
        return run(*args, **kwargs)
    batch_first = bool(target.batch_first if isinstance(target, nn.RNNBase) else args[9])
    axis = int(batch_first)
    if x.shape[axis] <= 1:
        return run(*args, **kwargs)
    step, state = run(x.narrow(axis, 0, 1), *args[1:], **kwargs)
    step = step.transpose(0, 1) if batch_first else step
    steps = step.expand(x.shape[axis], *step.shape[1:]).clone(memory_format=torch.contiguous_format)
    return steps.transpose(0, 1) if batch_first else steps, state

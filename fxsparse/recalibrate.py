"""BatchNorm statistics after the weights before it have changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import FxSparseError


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any], *, limit: int | None = None) -> int:
    """Replaces the running mean and variance of every BatchNorm by their average over some batches. Returns the number of batches.

    Weights, modes and momenta are afterwards what they were; everything but BatchNorm computes as in eval mode.

    Args:
        batches: inputs of the model: a tensor, a tuple of positional arguments (of a pair (inputs, labels) pass the first alone),
            or a mapping of named ones. limit: at most so many are taken.

    Raises:
        FxSparseError: the model has no BatchNorm with running statistics, or there is no batch.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise FxSparseError(f"{type(model).__name__} has no BatchNorm with running statistics, so that there is nothing to re-calibrate")
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over all batches
            norm.train()
        for batch in batches:
            if limit is not None and seen == limit:
                break
            if isinstance(batch, dict):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
            seen += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise FxSparseError("there is no batch to re-calibrate BatchNorm with; its running statistics were reset")
    return seen

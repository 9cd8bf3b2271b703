"""What stands in a graph at the borders of a region that is batch innermost, and inside it in place of torch's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import OPS
from ..ops.codes.layout import is_innermost
from ..ops.reorder import CONTIGUOUS, INNERMOST

LEAST_SAMPLES = 8  # half a vector: below, the kernels would multiply mostly nothing


def enter(x: Tensor) -> Tensor:
    """A tensor as the region behind it wants it: batch innermost, or as it is where its kernels would not take it.

    They take float32 on the CPU, (N, C, H, W) with several samples, outside of autocast.
    """
    if x.dim() != 4 or x.shape[0] < LEAST_SAMPLES or x.dtype != torch.float32 or x.device.type != "cpu":
        return x
    if is_innermost(x) or torch.is_autocast_enabled("cpu"):
        return x
    entered: Tensor = OPS.reorder.default(x, INNERMOST)
    return entered


def leave(x: Tensor) -> Tensor:
    """A tensor of a region as PyTorch's operators want it: contiguous if it is batch innermost."""
    if not is_innermost(x):
        return x
    left: Tensor = OPS.reorder.default(x, CONTIGUOUS)
    return left


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """torch.cat of channels, batch innermost if all tensors are."""
    if all(is_innermost(x) for x in tensors):
        return torch.cat([x.permute(1, 2, 3, 0) for x in tensors], 0).permute(3, 0, 1, 2)
    return torch.cat(list(tensors), 1)


def swap_samples(x: Tensor) -> Tensor:
    """Samples and channels of a batch-innermost tensor in each other's place, for pooling, which treats them alike: it is channels last."""
    return x.transpose(0, 1) if x.dim() == 4 else x

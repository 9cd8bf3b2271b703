"""Codes of a norm by native kernels: the same codes as codes/channels.py makes, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.codes.channels import NEEDS_MASK, Grid
from ..ops.codes.layout import by_channel
from .library import Library

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "hardswish": 3}


def encode(kernels: Library, x: Tensor, z: Tensor, mean: Tensor, invstd: Tensor, grid: Grid, relu: bool, packed: Tensor) -> None:
    """Store the code of the normalised x in `packed`; with `relu` it says whether z > 0, and z becomes relu(z).

    x and z are dense, of one shape (N, C, *), strides and type.
    """
    inverse, first, per_unit, origin, regular = grid.stacked().unbind(0)
    scale = invstd * per_unit
    rows = torch.stack([inverse, first, scale, origin - mean * scale, regular])
    irregular = relu and not bool(grid.is_regular.all())
    kernels.call("norm_encode", x.dtype, x, z, *by_channel(x).shape, grid.bits, relu, irregular, rows, packed)


def decode(kernels: Library, packed: Tensor, stats: Tensor, activation: str, bits: int, out: Tensor) -> None:
    """Store the values of a code in `out`, dense; the activation is "none", "relu" or "relu6"."""
    masked = activation == "relu" and bool(stats[NEEDS_MASK].any())
    stats = stats.contiguous()
    kernels.call("norm_decode", out.dtype, packed, stats, *by_channel(out).shape, bits, ACTIVATIONS[activation], masked, out)


def backward(
    kernels: Library, grad: Tensor, packed: Tensor, stats: Tensor, mask: Tensor, training: bool, activation: str, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of fxsparse::blpa_norm for a dense gradient with y's strides."""
    out, stats = torch.empty_like(grad), stats.contiguous()
    weight, bias = stats.new_empty(grad.shape[1]), stats.new_empty(grad.shape[1])
    samples, channels, pixels = by_channel(grad).shape
    room = 3 * channels * torch.get_num_threads() if pixels == 1 else 0
    work = torch.empty(room, dtype=torch.float64)
    settings = (samples, channels, pixels, bits, training, ACTIVATIONS[activation])
    kernels.call("norm_backward", grad.dtype, grad, packed, stats, mask, mask.numel(), *settings, out, weight, bias, work)
    return out, weight, bias

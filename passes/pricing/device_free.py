"""Calls that torch breaks into the same operators on every device, so that the quick meta device can stand in for theirs."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_PACKAGES = tuple(
    f"torch.nn.modules.{name}"
    for name in ("activation", "batchnorm", "dropout", "flatten", "linear", "normalization", "padding", "pooling")
)
_OWN_KERNELS = (nn.MultiheadAttention, nn.Bilinear, nn.SyncBatchNorm)
_NAMES = """
add sub mul div truediv neg abs exp log sqrt rsqrt pow square relu relu_ gelu silu sigmoid tanh hardswish leaky_relu softmax log_softmax
dropout flatten view reshape permute transpose contiguous squeeze unsqueeze chunk split cat stack mean sum roll pad expand repeat clone
adaptive_avg_pool2d avg_pool2d max_pool2d layer_norm linear matmul bmm __add__ __mul__ size getitem
"""
_FUNCTIONS = frozenset(
    item
    for name in _NAMES.split()
    for space in (torch, F, operator)
    for item in (getattr(space, name, None), getattr(space, f"i{name}", None) if space is operator else None)
    if item is not None
)


def device_free(target: Any) -> bool:
    """Whether a call of a function, a tensor's method (its name) or a module runs the same operators on the CPU as on the meta device."""
    if isinstance(target, nn.Module):
        kind = type(target)
        if issubclass(kind, nn.modules.batchnorm._NormBase) and not target.training:
            return False
        return kind.__module__ in _PACKAGES and not issubclass(kind, _OWN_KERNELS)
    if isinstance(target, str):
        return target in _NAMES.split()
    try:
        return target in _FUNCTIONS
    except TypeError:
        return False


def on_meta(device: torch.device) -> bool:
    """Whether meta tensors can stand in for tensors of a device: on others norms and dropout have kernels of their own."""
    return device.type in ("cpu", "meta")

"""The custom operators of fxsparse (torch.ops.fxsparse.*), registered on import."""

import torch

from .convolution import swat_convolution
from .density import count_kept
from .einsum import swat_einsum
from .linear import swat_linear
from .masked_weight import mask_gradient, masked_weight
from .selection import kept_count, kth_largest, kth_largest_per_slice
from .sparsify import sparsify
from .threshold import refresh_threshold

OPS = torch.ops.fxsparse

__all__ = [
    "OPS",
    "count_kept",
    "kept_count",
    "kth_largest",
    "kth_largest_per_slice",
    "mask_gradient",
    "masked_weight",
    "refresh_threshold",
    "sparsify",
    "swat_convolution",
    "swat_einsum",
    "swat_linear",
]

"""The custom operators of fxsparse (torch.ops.fxsparse.*), registered on import."""

import torch

from .blpa_norm import blpa_norm, blpa_norm_backward
from .convolution import swat_convolution
from .density import count_kept
from .einsum import swat_einsum
from .linear import swat_linear
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
    "refresh_threshold",
    "sparsify",
    "swat_convolution",
    "swat_einsum",
    "swat_linear",
]

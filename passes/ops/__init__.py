"""The custom operators of fxsparse (torch.ops.fxsparse.*), registered on import."""

from .convolution import swat_convolution
from .einsum import swat_einsum
from .linear import swat_linear
from .selection import kept_count, kth_largest, kth_largest_per_slice
from .sparsify import sparsify
from .threshold import refresh_threshold

__all__ = [
    "kept_count",
    "kth_largest",
    "kth_largest_per_slice",
    "refresh_threshold",
    "sparsify",
    "swat_convolution",
    "swat_einsum",
    "swat_linear",
]

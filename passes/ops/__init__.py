"""The custom operators of fxsparse (torch.ops.fxsparse.*), registered on import."""

import torch

from . import coded_attention, coded_contraction, coded_norm, coded_pool, coded_unary, quantize
from .blpa_norm import blpa_norm
from .convolution import swat_convolution
from .density import count_kept
from .divide_bins import divide_bins
from .einsum import swat_einsum
from .innermost_norm import innermost_norm
from .innermost_pool import innermost_max_pool
from .linear import swat_linear
from .masked_convolution import masked_convolution
from .masked_linear import masked_linear
from .masked_weight import mask_gradient, masked_weight
from .pack_sparse import pack_sparse
from .reorder import reorder
from .selection import kept_count, kth_largest, kth_largest_per_slice
from .sparsify import sparsify
from .threshold import refresh_threshold

OPS = torch.ops.fxsparse

__all__ = [
    "OPS",
    "blpa_norm",
    "coded_attention",
    "coded_contraction",
    "coded_norm",
    "coded_pool",
    "coded_unary",
    "count_kept",
    "divide_bins",
    "innermost_max_pool",
    "innermost_norm",
    "kept_count",
    "kth_largest",
    "kth_largest_per_slice",
    "mask_gradient",
    "masked_convolution",
    "masked_linear",
    "masked_weight",
    "pack_sparse",
    "quantize",
    "refresh_threshold",
    "reorder",
    "sparsify",
    "swat_convolution",
    "swat_einsum",
    "swat_linear",
]

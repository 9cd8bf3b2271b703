"""What is known about single operators below autograd: their name in reports and their FLOPs an element.

A name is that of the operator without its overload; a trailing underscore (in place) is dropped before it is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fxsparse.cost_model.pointwise import FLOPS_PER_ELEMENT

CONTRACTIONS = frozenset(
    """
    mm addmm bmm baddbmm addbmm mv addmv dot vdot addr ger _trilinear convolution convolution_overrideable convolution_backward
    _addmm_activation linear linear_backward matmul_backward _scaled_dot_product_flash_attention
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_cudnn_attention_backward _scaled_dot_product_fused_attention_overrideable_backward swat_convolution
    masked_convolution native_convolution_backward masked_linear native_linear_backward swat_linear swat_einsum coded_convolution
    coded_linear coded_matmul coded_attention mkldnn_rnn_layer mkldnn_rnn_layer_backward
    _cudnn_rnn _cudnn_rnn_backward miopen_rnn miopen_rnn_backward
    _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell _thnn_fused_gru_cell_backward lstm_mps
    """.split()  # noqa: SIM905
)

FREE = frozenset(
    """
    transpose squeeze unsqueeze t swapaxes swapdims unsafe_split unsafe_split_with_sizes unsafe_chunk as_strided detach alias
    lift lift_fresh _unsafe_view _reshape_alias empty empty_like empty_strided empty_permuted new_empty new_empty_strided
    is_same_size sym_size sym_stride sym_numel sym_storage_offset size stride device set_ resize_ _local_scalar_dense item
    _has_compatible_shallow_copy_type _version record_stream requires_grad_ _nested_tensor_size is_nonzero
    """.split()  # noqa: SIM905
)

# An operator's name in reports; its FLOPs stand in the cost model's table: the first number forward, the second backward.
_FORWARD = {
    "batch_norm": "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional "
    "cudnn_batch_norm miopen_batch_norm batch_norm_with_update _batch_norm_with_update batch_norm_stats batch_norm_elemt "
    "batch_norm_gather_stats_with_counts batch_norm_update_stats blpa_norm coded_batch_norm innermost_norm",
    "layer_norm": "native_layer_norm native_group_norm rms_norm _fused_rms_norm renorm _weight_norm_interface _cdist_forward "
    "coded_layer_norm coded_group_norm",
    "softmax": "_softmax _log_softmax _safe_softmax softmax log_softmax logsumexp coded_softmax",
    "activation": "gelu silu mish sigmoid tanh elu celu selu softplus hardswish hardsigmoid log_sigmoid_forward rrelu_with_noise "
    "_prelu_kernel glu exp log erf sin cos hardshrink softshrink coded_function",
    "relu": "relu relu6 threshold hardtanh leaky_relu clamp clamp_min clamp_max masked_function positive_relu",
    "dropout": "native_dropout _fused_dropout bernoulli rand rand_like randn randn_like randint randperm uniform normal "
    "exponential masked_dropout",
    "max_pool": "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
    "fractional_max_pool3d max_unpool2d max_unpool3d coded_max_pool2d innermost_max_pool",
    "avg_pool": "avg_pool2d avg_pool3d lean_avg_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d "
    "upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d",
    "embedding": "embedding _embedding_bag _embedding_bag_forward_only index_select",
    "copy": "clone reorder copy _to_copy cat stack constant_pad_nd pad index index_put _index_put_impl _unsafe_index _unsafe_index_put "
    "gather scatter scatter_add scatter_reduce index_add index_copy index_fill roll flip repeat repeat_interleave tril triu "
    "slice_scatter select_scatter as_strided_scatter diagonal_scatter slice_backward select_backward diagonal_backward "
    "as_strided_copy unfold_backward fill zero zeros zeros_like ones ones_like full full_like new_zeros new_ones new_full "
    "arange linspace logspace eye scalar_tensor tril_indices triu_indices masked_fill masked_select masked_scatter "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle "
    "pixel_unshuffle channel_shuffle im2col col2im rot90 narrow_copy view_copy split_with_sizes_copy unbind_copy "
    "permute_copy nonzero one_hot bucketize searchsorted _to_sparse _conj_physical complex polar embedding_renorm "
    "_copy_from _efficientzerotensor value_selecting_reduction_backward _foreach_copy new_empty_copy",
    "reduce": "sum mean amax amin max min prod any all argmax argmin var std var_mean std_mean norm linalg_vector_norm cumsum cumprod "
    "logcumsumexp nansum count_nonzero aminmax median nanmedian mode trace cummax cummin equal allclose histc bincount unique2 _unique2 "
    "_cdist_backward dist",
    "top_k": "topk sort kthvalue argsort",
    "loss": "nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss _ctc_loss "
    "multi_margin_loss multilabel_margin_loss_forward xlogy",
    "add": "add sub rsub add_relu foreach_add",
    "mul": "coded_mul mul div addcmul addcdiv lerp where square pow sqrt rsqrt reciprocal neg",
    "mask": "sparsify pack_sparse divide_bins count_kept masked_weight mask_gradient quantize quantize_positive dequantize",
}
_BACKWARD = {
    "batch_norm": "native_batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward batch_norm_backward "
    "batch_norm_backward_reduce batch_norm_backward_elemt blpa_norm_backward innermost_norm_backward",
    "layer_norm": "native_layer_norm_backward native_group_norm_backward _fused_rms_norm_backward _weight_norm_interface_backward",
    "softmax": "_softmax_backward_data _log_softmax_backward_data _safe_softmax_backward_data",
    "activation": "gelu_backward silu_backward mish_backward sigmoid_backward tanh_backward elu_backward softplus_backward "
    "hardswish_backward hardsigmoid_backward log_sigmoid_backward rrelu_with_noise_backward _prelu_kernel_backward glu_backward "
    "hardshrink_backward softshrink_backward",
    "relu": "threshold_backward hardtanh_backward leaky_relu_backward masked_gradient positive_gradient",
    "dropout": "native_dropout_backward _masked_scale kept_scale",
    "max_pool": "max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward "
    "adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward max_pool2d_gradient "
    "innermost_max_pool_backward",
    "avg_pool": "avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
    "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward upsample_linear1d_backward "
    "upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward _upsample_nearest_exact1d_backward "
    "_upsample_nearest_exact2d_backward _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward grid_sampler_2d_backward "
    "grid_sampler_3d_backward",
    "embedding": "embedding_dense_backward _embedding_bag_backward _embedding_bag_dense_backward embedding_backward index_select_backward",
    "copy": "constant_pad_nd_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
    "replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward masked_scatter_backward",
    "loss": "nll_loss_backward nll_loss2d_backward mse_loss_backward smooth_l1_loss_backward huber_loss_backward "
    "binary_cross_entropy_backward soft_margin_loss_backward _ctc_loss_backward multi_margin_loss_backward",
}
_EXTRA_FLOPS = {"reduce": 1.0}


@dataclass(frozen=True)
class Kind:
    """How an operator is priced: its name in reports, and its FLOPs for each element of its largest operand."""

    label: str
    flops_per_element: float


def _table() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for position, names in enumerate((_FORWARD, _BACKWARD)):
        for label, listed in names.items():
            flops = FLOPS_PER_ELEMENT[label][position] if label in FLOPS_PER_ELEMENT else _EXTRA_FLOPS[label]
            found |= {name: Kind(label, float(flops)) for name in listed.split()}
    return found


KINDS = _table()
_ELEMENTWISE = Kind("elementwise", 1.0)
_TOP_K = Kind("top_k", float(FLOPS_PER_ELEMENT["top_k"][0]))


def plain_name(function: Any) -> str:
    """The operator's name without namespace, overload and the underscore of in-place forms."""
    name: str = function._schema.name.partition("::")[2]
    return name if name in FREE or not name.endswith("_") else name.rstrip("_")


def kind_of(function: Any, name: str) -> Kind | None:
    """How an operator without contraction is priced; None if it is unknown."""
    if name == "refresh_threshold":
        return _TOP_K
    found = KINDS.get(name)
    if found is None and torch.Tag.pointwise in function.tags:
        return _ELEMENTWISE
    return found

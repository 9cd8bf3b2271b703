"""Contractions below autograd, read from the shapes of one recorded operator, as workloads of the cost model."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from fxsparse.cost_model.attention import Attention
from fxsparse.cost_model.workload import Contraction

from .recording import Operation, storage_of


class Priced(NamedTuple):
    """A workload for ``batch`` samples; ``scales``: whether it grows with them."""

    workload: Contraction | Attention
    scales: bool


class _Batch:
    """Splits a number of positions into samples and positions of each; nothing to split in what depends on no sample."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def split(self, positions: int) -> tuple[int, int, bool]:
        if positions and positions % self.batch == 0:
            return self.batch, positions // self.batch, True
        return positions, 1, False


def product_of(operation: Operation, *, batch: int, fixed: Collection[int], operator: str) -> Priced | None:
    """The workload of a recorded contraction; None if its form is not known.

    Args:
        fixed: storages that depend on no sample; an operand there is a weight.
        operator: what a matrix product with a weight is called ("linear" or "einsum").
    """
    split = _Batch(batch)
    name, arguments = operation.name, operation.arguments
    if name in ("convolution", "convolution_overrideable"):
        return _convolution(split, arguments[0], arguments[1], operation.output, arguments[3:9:1])
    if name == "swat_convolution":
        x, _, w, _, stride, padding, dilation, transposed, output_padding, groups, *_ = arguments
        return _convolution(split, x, w, operation.output, (stride, padding, dilation, transposed, output_padding, groups))
    if name == "masked_convolution":
        x, w, _, _, _, stride, padding, dilation, groups, _ = arguments
        return _convolution(split, x, w, operation.output, (stride, padding, dilation, False, [0] * len(stride), groups))
    if name in ("swat_linear", "masked_linear"):
        x, w = arguments[0], arguments[2 if name == "swat_linear" else 1]
        return _product(split, x.reshape(-1, x.shape[-1]).shape, w.t().shape, x, w, "linear")
    if name == "coded_convolution":
        x, _, _, _, w, _, *geometry = arguments
        return _convolution(split, x, w, operation.output, geometry)
    if name == "coded_linear":
        x, w = arguments[0], arguments[9]
        return _product(split, x.reshape(-1, x.shape[-1]).shape, w.t().shape, x, w, "linear")
    if name == "coded_matmul":
        return _matrices(split, arguments[0], arguments[4], fixed, operator)
    if name == "coded_attention":
        return attention(split.batch, *arguments[:3], causal=arguments[5], backward="fused")
    if name == "swat_einsum":
        return _einsum(split, arguments[0], arguments[2], arguments[3])
    if name in ("mm", "bmm", "mv", "dot", "vdot"):
        return _matrices(split, arguments[0], arguments[1], fixed, operator)
    if name in ("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"):
        return _matrices(split, arguments[1], arguments[2], fixed, operator)
    if name == "_trilinear":
        return _bilinear(split, arguments[0], arguments[1])
    if name.startswith("_scaled_dot_product"):
        causal = next((value for value in arguments[3:] if isinstance(value, bool)), False)
        return attention(
            split.batch, *arguments[:3], causal=_causal(name, arguments, causal), backward="fused" if name.endswith("_for_cpu") else "flash"
        )
    return None


def _causal(name: str, arguments: tuple[Any, ...], first: bool) -> bool:
    if name == "_scaled_dot_product_efficient_attention":
        return bool(arguments[6]) if len(arguments) > 6 else False
    if name == "_scaled_dot_product_cudnn_attention":
        return bool(arguments[6]) if len(arguments) > 6 else False
    return first


def attention(batch: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, backward: str) -> Priced:
    """Scaled dot-product attention of tensors (..., heads, length, size)."""
    lead = math.prod(query.shape[:-2])
    scales = lead % batch == 0 and lead > 0
    samples = batch if scales else 1
    heads = max(1, lead // samples)
    key_heads = max(1, math.prod(key.shape[:-2]) // samples)
    return Priced(
        Attention(
            batch=samples,
            heads=heads,
            key_heads=key_heads if heads % key_heads == 0 else heads,
            query_length=query.shape[-2],
            key_length=key.shape[-2],
            head_size=query.shape[-1],
            value_size=value.shape[-1],
            causal=causal,
            backward=backward,
            input_needs_grad=query.requires_grad or key.requires_grad or value.requires_grad,
        ),
        scales,
    )


def _convolution(split: _Batch, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, geometry: Any) -> Priced:
    stride, padding, dilation, transposed, _, groups = geometry
    axes = w.dim() - 2
    lead = math.prod(x.shape[: x.dim() - axes - 1])
    samples, rows, scales = split.split(lead)
    return Priced(
        Contraction(
            operator="conv_transpose" if transposed else "conv",
            batch=samples,
            rows=rows,
            in_channels=x.shape[-axes - 1],
            out_channels=out.shape[-axes - 1],
            groups=groups,
            kernel=tuple(w.shape[2:]),
            stride=_each(stride, axes),
            padding=_each(padding, axes),
            dilation=_each(dilation, axes),
            input_size=tuple(x.shape[-axes:]),
            output_size=tuple(out.shape[-axes:]),
            input_needs_grad=x.requires_grad,
            weight_needs_grad=w.requires_grad,
        ),
        scales,
    )


def _each(values: Any, axes: int) -> tuple[int, ...]:
    found = tuple(int(value) for value in values)
    return found * axes if len(found) == 1 else found


def _matrices(split: _Batch, left: torch.Tensor, right: torch.Tensor, fixed: Collection[int], operator: str) -> Priced | None:
    on_left, on_right = storage_of(left) in fixed, storage_of(right) in fixed
    a = (1, *left.shape) if left.dim() < 2 else tuple(left.shape)
    b = (*right.shape, 1) if right.dim() < 2 else tuple(right.shape)
    if on_right and not on_left:
        return _product(split, a, b, left, right, operator)
    if on_left and not on_right:
        flipped = (*b[:-2], b[-1], b[-2]), (*a[:-2], a[-1], a[-2])
        return _product(split, *flipped, right, left, operator)
    heads = math.prod(a[:-2])
    scales = not on_right and heads > 0 and heads % split.batch == 0
    samples = split.batch if scales else 1
    made = Contraction(
        operator="matmul",
        batch=samples,
        rows=a[-2],
        in_channels=heads // samples * a[-1],
        out_channels=heads // samples * b[-1],
        groups=heads // samples,
        shared_weight=False,
        input_needs_grad=left.requires_grad,
        weight_needs_grad=right.requires_grad,
    ) if min(heads // samples, a[-1], b[-1]) else None  # fmt: skip
    return None if made is None else Priced(made, scales)


def _product(split: _Batch, a: Any, b: Any, x: torch.Tensor, w: torch.Tensor, operator: str) -> Priced | None:
    """(groups, m, k) times a weight (groups, k, n)."""
    groups = math.prod(a[:-2])
    if not (groups and a[-1] and b[-1]):
        return None
    samples, rows, scales = split.split(a[-2])
    if not scales and groups % split.batch == 0:
        # The weight is expanded over the samples: one product for each.
        groups, samples, rows, scales = groups // split.batch, split.batch, a[-2], True
    return Priced(
        Contraction(
            operator=operator if groups == 1 else "einsum",
            batch=samples,
            rows=rows,
            in_channels=groups * a[-1],
            out_channels=groups * b[-1],
            groups=groups,
            input_needs_grad=x.requires_grad,
            weight_needs_grad=w.requires_grad,
        ),
        scales,
    )


def _bilinear(split: _Batch, first: torch.Tensor, weight: torch.Tensor) -> Priced | None:
    outer, left, right = weight.shape[-3:]
    samples, rows, scales = split.split(first.numel() // max(1, left))
    return Priced(
        Contraction(
            operator="bilinear",
            batch=samples,
            rows=rows,
            in_channels=left * right,
            out_channels=outer,
            input_needs_grad=first.requires_grad,
            weight_needs_grad=weight.requires_grad,
        ),
        scales,
    )


def _einsum(split: _Batch, x: torch.Tensor, w: torch.Tensor, equation: str) -> Priced | None:
    first, _, rest = equation.partition(",")
    term, _, out = rest.partition("->")
    sizes = dict(zip(first, x.shape, strict=True))
    weight_sizes = dict(zip(term, w.shape, strict=True))
    groups = math.prod(size for letter, size in weight_sizes.items() if letter in first and letter in out)
    inner = math.prod(size for letter, size in weight_sizes.items() if letter in first and letter not in out)
    outer = math.prod(size for letter, size in weight_sizes.items() if letter not in first)
    samples, rows, scales = split.split(math.prod(size for letter, size in sizes.items() if letter not in term))
    return Priced(
        Contraction(
            operator="einsum",
            batch=samples,
            rows=rows,
            in_channels=groups * inner,
            out_channels=groups * outer,
            groups=groups,
            input_needs_grad=x.requires_grad,
            weight_needs_grad=w.requires_grad,
        ),
        scales,
    )

"""fxsparse::quantize and fxsparse::dequantize: any tensor as few-bit codes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .codes import groups, masks
from .codes.groups import Groups, Rounding
from .codes.layout import block_elements, blocks, dense, dense_strides, in_memory_order, is_dense
from .codes.room import give_back_free_pages
from .codes.scheme import parse
from .divide_bins import keep_reaching
from .normalise import decode_norm
from .operator import operator
from .pack_sparse import NEAREST, unpack_sparse


def encode(
    x: Tensor,
    clock: Tensor,
    bits: int,
    group_size: int,
    seed: int,
    wanted: bool,
    value: Any = None,
    positive: bool = False,
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the codes of a tensor, or of an elementwise function of it; the body of fxsparse::quantize."""
    if not wanted or x.numel() == 0:
        return x.new_empty(0, dtype=torch.uint8), x.new_empty((1 if positive else 2, 0), dtype=torch.float32)
    rounding = Rounding() if seed == NEAREST else Rounding(seed, int(clock.item()))
    packed, stats = groups.encode(in_memory_order(dense(x.detach())), group_size, bits, positive, rounding, value, reference)
    give_back_free_pages(packed, if_grown=True)
    return packed, stats


def encoded_like(x: Tensor, bits: int, group_size: int, wanted: bool, positive: bool = False) -> tuple[Tensor, Tensor]:
    """Return tensors of the sizes that ``encode`` returns."""
    division = Groups(x.numel() if wanted else 0, group_size, bits)
    stats = x.new_empty((1 if positive else 2, division.count), dtype=torch.float32)
    return x.new_empty(division.packed_bytes, dtype=torch.uint8), stats


@operator()
def quantize(
    x: Tensor, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool, reference: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the codes of x, packed (uint8, 1-dim), and each group's minimum and step, (2, groups) float32.

    The scheme is of_range(bits, group_size). A group is `group_size` elements that follow each other in x's memory (in the order
    of a contiguous tensor if x has gaps); the last one holds what remains. With a `seed`, rounding is stochastic and unbiased,
    and depends on seed and `clock` (0-dim int64, on the CPU) alone; with NEAREST it is to the nearest code.

    Not `wanted`: empty tensors. `reference`: without native kernels. There is no derivative.
    """
    return encode(x, clock, bits, group_size, seed, wanted, reference=reference)


@quantize.register_fake
def _(x: Tensor, clock: Tensor, bits: int, group_size: int, seed: int, wanted: bool, reference: bool = False) -> tuple[Tensor, Tensor]:
    return encoded_like(x, bits, group_size, wanted)


quantize.without_derivative()


@operator()
def dequantize(
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    """Return the tensor that a code stands for, with this shape, these strides (of a dense tensor) and this dtype.

    A sparse tensor has its positions in `packed` and what they hold in `values`.

    With `mean` and `rstd`, which have size 1 in the normalised dimensions: its layer normalisation, (x - mean) * rstd * weight + bias.
    """
    read = parse(scheme)
    if read.kind == "range":
        give_back_free_pages(packed, if_grown=True)
    out = torch.empty_strided(list(shape), list(strides), dtype=dtype, device=packed.device)
    if out.numel() == 0:
        return out
    normalised = mean is not None and rstd is not None
    target = out.to(torch.float32) if normalised and dtype != torch.float32 else out
    if read.kind == "norm":
        decode_norm(packed, stats, read.activation, read.bits, target)
    elif read.kind == "divided" and values is not None:
        keep_reaching(values, packed, stats, read, target)
    elif values is not None:
        unpack_sparse(read, packed, values, stats, in_memory_order(target))
    elif read.kind == "mask":
        in_memory_order(target).copy_(masks.decode(packed, out.numel()))
    else:
        groups.decode(packed, stats, out.numel(), read.group, read.bits, read.kind == "positive", in_memory_order(target))
    if mean is not None and rstd is not None:
        _normalise(target, mean, rstd, weight, bias)
    return out if target is out else out.copy_(target)


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    inner = [dim for dim in range(x.dim()) if mean.shape[dim] == 1 and x.shape[dim] != 1]
    if not x.is_contiguous() or mean.shape[0] == 1:
        _normalise_rows(x, mean, rstd, weight, bias)
        return
    each = x.numel() // x.shape[0] if x.dim() > len(inner) else x.numel()
    flat = x.view(-1, *x.shape[x.dim() - weight.dim() :]) if weight is not None else None
    if flat is not None and flat.shape[0] == mean.numel():
        shape = (-1, *([1] * (flat.dim() - 1)))
        means, rstds, each = mean.reshape(shape), rstd.reshape(shape), flat[0].numel()
        for block in blocks(flat.shape[0], each, block_elements(x)):
            _normalise_rows(flat[block], means[block], rstds[block], weight, bias)
        return
    for block in blocks(x.shape[0], each, block_elements(x)):
        _normalise_rows(x[block], mean[block], rstd[block], weight, bias)


def _normalise_rows(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    x.sub_(mean).mul_(rstd)
    if weight is not None:
        x.mul_(weight)
    if bias is not None:
        x.add_(bias)


@dequantize.register_fake
def _(
    packed: Tensor,
    stats: Tensor,
    scheme: str,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    return packed.new_empty_strided(list(shape), list(strides), dtype=dtype)


dequantize.without_derivative()


class Form:
    """Shape, dtype, and the order in memory, which is that of ``source`` if one is given, of a tensor whose code is kept."""

    def __init__(self, x: Tensor, source: Tensor | None = None) -> None:
        self.shape, self.dtype = list(x.shape), x.dtype
        ordered = x if source is None else source
        self.strides = list(ordered.stride()) if is_dense(ordered) else dense_strides(x.shape, _contiguous_strides(x.shape))

    def restore(self, packed: Tensor, stats: Tensor, scheme: str, *normal: Tensor | None, values: Tensor | None = None) -> Tensor:
        """The tensor that the code stands for."""
        found: Tensor = torch.ops.fxsparse.dequantize(
            packed, stats, scheme, self.shape, self.strides, self.dtype, *(normal or (None, None, None, None)), values
        )
        return found

    def placeholder(self, like: Tensor) -> Tensor:
        """A tensor of the form whose values nobody reads, and which takes no room."""
        return like.new_empty(1, dtype=self.dtype).expand(self.shape)


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return strides


class Kept:
    """One operand of an operator as it is kept for backward: its code, or itself where the scheme is "exact".

    ``tensors`` go to ``ctx.save_for_backward``, in the order in which ``restore`` wants them back. ``source``: what the code was
    made of, if that is not the operand itself.
    """

    def __init__(self, x: Tensor, packed: Tensor, stats: Tensor, scheme: str, op: str, source: Tensor | None = None) -> None:
        self.form, self.scheme = Form(x, source), scheme
        if scheme == "exact":
            self.tensors: tuple[Tensor, ...] = (x,)
            return
        if packed.numel() == 0 and x.numel() != 0:
            raise RuntimeError(f"{op}: a gradient is recorded, but no code was made; make codes wherever torch.is_grad_enabled()")
        self.tensors = (packed, stats)

    def restore(self, tensors: Sequence[Tensor], *normal: Tensor | None) -> Tensor:
        """The operand."""
        if self.scheme == "exact":
            return tensors[0]
        return self.form.restore(tensors[0], tensors[1], self.scheme, *normal)

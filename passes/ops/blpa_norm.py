"""fxsparse::blpa_norm, batch normalisation and what follows it, of which a few-bit code of the normalised value is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import channels as rows
from .codes import masks
from .codes.bits import parts_of
from .codes.layout import by_channel, dense, dense_strides, in_memory_order
from .codes.pieces import Piece, Pieces
from .codes.room import room
from .derivative import like, once
from .operator import operator

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hardswish": torch.ops.aten.hardswish_backward.default,
    "silu": torch.ops.aten.silu_backward.default,
}


@operator()
def blpa_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    bits: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y, packed, stats, mask, new_mean, new_var.

    y is `activation` ("none", "relu", "relu6", "hardswish", "silu") of torch's batch_norm of x (N, C, *), to the bit. `packed`
    (uint8) holds a code of `bits` bits for each element, `stats` (float32) what reads it: the scheme is of_norm(bits, activation).
    `mask` has one bit for each element where z lies inside ReLU6's range, else nothing. `new_mean` and `new_var` are what the
    running statistics become; the operator writes to none of its inputs. Not `wanted`: empty codes.

    The gradients are those of BLPA: exact for `bias` and for what passes a ReLU or ReLU6, approximate for `weight` and x, whose
    normalised value comes from the code. After Hardswish and SiLU the derivative is taken at the code's value.

    Source: Chakrabarti & Moseley, NeurIPS 2019, arXiv 1901.07988, section 3; see codes/channels.py for the grid.
    """
    mean, var = (t.detach().clone() if t is not None else x.new_empty(0) for t in (running_mean, running_var))
    running = [mean, var]
    norm, nothing = _Norm(training, momentum, eps), x.new_empty(0, dtype=torch.uint8)
    if not wanted or x.numel() == 0:
        z, *_ = norm(x, weight, bias, *(item if item.numel() else None for item in running))
        return ACTIVATIONS[activation](z), nothing, x.new_empty((rows.ROWS, 0), dtype=torch.float32), nothing.clone(), mean, var
    work = _Forward(x, (weight, bias), running, norm, activation, bits)
    return work.y, work.packed, work.stats, work.mask(), mean, var


@blpa_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    bits: int,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    running = [t.new_empty(t.shape) if t is not None else x.new_empty(0) for t in (running_mean, running_var)]
    y = x.new_empty_strided(x.shape, dense_strides(x.shape, x.stride()))
    size = _packed_size(x, bits) if wanted else 0
    inside = masks.packed_size(x.numel()) if wanted and activation == "relu6" else 0
    stats = x.new_empty((rows.ROWS, x.shape[1] if wanted else 0), dtype=torch.float32)
    return y, x.new_empty(size, dtype=torch.uint8), stats, x.new_empty(inside, dtype=torch.uint8), running[0], running[1]


def _packed_size(x: Tensor, bits: int) -> int:
    parts = parts_of(bits)
    return x.numel() // x.shape[1] * ((x.shape[1] + parts - 1) // parts)


class _Norm:
    """torch's batch_norm with its statistics; the running ones are replaced, not written to."""

    def __init__(self, training: bool, momentum: float, eps: float) -> None:
        self.training, self.momentum, self.eps = training, momentum, eps

    def __call__(self, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any) -> tuple[Tensor, Tensor, Tensor]:
        """z, mean and 1/sigma (float32); ``mean`` and ``var`` are updated."""
        use_batch = self.training or mean is None
        enabled = torch.backends.cudnn.enabled
        z, used, invstd, *_ = torch._batch_norm_impl_index(x, weight, bias, mean, var, use_batch, self.momentum, self.eps, enabled)
        if not use_batch:
            used, invstd = mean, (var.to(torch.float32) + self.eps).rsqrt()
        return z, used.to(torch.float32), invstd.to(torch.float32)


class _Forward:
    """Runs the normalisation piece by piece, so that what it makes is coded while the cache still holds it."""

    def __init__(self, given_x: Tensor, affine: tuple[Any, Any], running: list[Tensor], norm: _Norm, activation: str, bits: int) -> None:
        self.activation, self.norm, x = activation, norm, dense(given_x)
        self.grid = rows.make_grid(*affine, x.shape[1], bits, activation == "relu", x.device)
        self.y = torch.empty_like(x)
        self.inside = torch.empty_like(x, dtype=torch.bool) if activation == "relu6" else None
        source, target = by_channel(x), by_channel(self.y)
        pieces = Pieces(x, source.shape, bits)
        pieces.by_channel = pieces.by_channel and given_x.is_contiguous()  # torch sums others in another order
        self.packed = room(pieces.packed_bytes, x)
        self.irregular = ~self.grid.is_regular if x.device.type == "cpu" else None
        given = [*affine, *(item if item.numel() else None for item in running)]
        self.carriers = not (norm.training or given[2] is None)
        run = self._by_channel if pieces.by_channel else self._by_sample
        run(given_x, pieces, pieces.split(source), pieces.split(target), given)
        self.stats = rows.statistics(self.grid, affine[0], self.invstd)

    def _by_channel(self, x: Tensor, pieces: Pieces, source: Tensor, target: Tensor, given: list[Any]) -> None:
        present = [item for item in given if item is not None]
        dtypes = [item.dtype for item in present]
        vectors = torch.stack([item.to(torch.float64) for item in present]) if present else None
        grid, found = self.grid.stacked(), []
        for piece in pieces:
            block = pieces.of(source, piece)
            part = block.reshape(block.shape[0], -1, pieces.pixels).contiguous()
            picked = iter(() if vectors is None else pieces.columns(vectors, piece))
            exact = (column_.flatten().to(dtype) for column_, dtype in zip(picked, dtypes, strict=True))
            arguments = [None if item is None else next(exact) for item in given]
            z, mean, invstd = self.norm(part, *arguments)
            invstd = self._carried(z, invstd)
            found.append([invstd, *(item for item in arguments[2:] if item is not None)])
            self._keep(part, z, mean, invstd, pieces.columns(grid, piece), pieces, piece)
            self._activate(z, pieces.of(target, piece), pieces, piece)
        if self.activation == "silu":
            F.silu(self.y, inplace=True)
        self.invstd, *updated = (pieces.joined(list(parts)) for parts in zip(*found, strict=True))
        for whole, new in zip((item for item in given[2:] if item is not None), updated, strict=True):
            whole.copy_(new)

    def _by_sample(self, x: Tensor, pieces: Pieces, source: Tensor, target: Tensor, given: list[Any]) -> None:
        z_all, mean, self.invstd = self.norm(x, *given)
        self.invstd = self._carried(z_all, self.invstd)
        z_split = pieces.split(by_channel(like(z_all, self.y.stride())))
        grid = self.grid.stacked()
        for piece in pieces:
            block, z_block = pieces.of(source, piece), pieces.of(z_split, piece)
            shape = (block.shape[0], -1, pieces.pixels)
            z = z_block.reshape(shape)
            self._keep(block.reshape(shape), z, mean, self.invstd, pieces.columns(grid, piece), pieces, piece)
            self._activate(z, pieces.of(target, piece), pieces, piece)
        if self.activation == "silu":
            self.y.copy_(F.silu(z_all))

    def _carried(self, z: Tensor, invstd: Tensor) -> Tensor:
        """1/sigma, NaN for a channel that holds a NaN or an infinity, which running statistics do not tell of."""
        if not self.carriers:
            return invstd
        others = [dim for dim in range(z.dim()) if dim != 1]
        return invstd + (z.to(torch.float32) * 0).sum(others)

    def _keep(self, x: Tensor, z: Tensor, mean: Tensor, invstd: Tensor, grid: list[Tensor], pieces: Pieces, piece: Piece) -> None:
        values, codes = pieces.buffers(x)
        with_relu = self.activation == "relu"
        if with_relu and self.irregular is not None and not self._has_irregular(pieces, piece):
            rows.encode_regular(z, grid, pieces.bits, values)
        else:
            rows.encode(x, z if with_relu else None, mean.unsqueeze(1), invstd.unsqueeze(1), grid, pieces.bits, values)
        pieces.store(values, codes, pieces.bytes_of(self.packed, piece))

    def _has_irregular(self, pieces: Pieces, piece: Piece) -> bool:
        assert self.irregular is not None
        chosen = self.irregular.view(pieces.parts, -1)[:, piece[1]] if pieces.by_channel else self.irregular
        return bool(chosen.any())

    def _activate(self, z: Tensor, out: Tensor, pieces: Pieces, piece: Piece) -> None:
        shaped = z.view(out.shape)
        if self.inside is not None:
            pieces.of(pieces.split(by_channel(self.inside)), piece).copy_((shaped > 0) & (shaped < 6))
        if self.activation == "relu":
            torch.clamp(shaped, min=0, out=out)
        elif self.activation == "silu":  # at the end, since torch rounds the last elements of a tensor otherwise than those before
            out.copy_(shaped)
        else:
            out.copy_(ACTIVATIONS[self.activation](shaped))

    def mask(self) -> Tensor:
        if self.inside is None:
            return self.packed.new_empty(0)
        return masks.encode(in_memory_order(self.inside))


def decode_norm(packed: Tensor, stats: Tensor, activation: str, bits: int, out: Tensor) -> None:
    """Store the values of a code in a dense tensor `out` (N, C, *), which has the memory order of what was encoded."""
    target = by_channel(out)
    pieces = Pieces(out, target.shape, bits)
    split = pieces.split(target)
    needs_mask = activation == "relu" and (out.device.type != "cpu" or bool(stats[rows.NEEDS_MASK].any()))
    for piece in pieces:
        codes = pieces.load(pieces.bytes_of(packed, piece))
        picked = pieces.columns(stats, piece)
        values, _ = pieces.buffers(codes)
        values.copy_(codes)
        mask = (values > picked[rows.FIRST]) if needs_mask else None
        values.mul_(picked[rows.SLOPE]).add_(picked[rows.OFFSET])
        if mask is not None:
            values.mul_(mask)
        where = pieces.of(split, piece)
        if activation == "relu" and out.dtype == torch.float32:
            torch.clamp(values.view(where.shape), min=0, out=where)
        else:
            where.copy_(ACTIVATIONS[activation](values).view(where.shape))


@operator()
def blpa_norm_backward(
    grad: Tensor,
    packed: Tensor,
    stats: Tensor,
    mask: Tensor,
    strides: Sequence[int],
    training: bool,
    activation: str,
    bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias (the last two float32) of fxsparse::blpa_norm; `strides` are those of its y."""
    grad = like(grad, strides)
    out = torch.empty_like(grad)
    if grad.numel() == 0:
        return out, stats.new_zeros(grad.shape[1]), stats.new_zeros(grad.shape[1])
    source, target = by_channel(grad), by_channel(out)
    pieces = Pieces(grad, source.shape, bits, all_samples=True)
    source, target = pieces.split(source), pieces.split(target)
    inside = pieces.split(masks.decode(mask, grad.numel()).view(by_channel(grad).shape)) if activation == "relu6" else None
    found = []
    for piece in pieces:
        g = pieces.of(source, piece)
        g = g.reshape(g.shape[0], -1, pieces.pixels).contiguous()
        picked = pieces.columns(stats, piece)
        q = pieces.load(pieces.bytes_of(packed, piece)).to(grad.dtype)
        if inside is not None:
            g = torch.ops.aten.threshold_backward.default(g, pieces.of(inside, piece).reshape(g.shape).to(grad.dtype), 0)
        elif activation == "relu":
            g = torch.ops.aten.threshold_backward.default(g, q - picked[rows.FIRST].to(grad.dtype), 0)
        elif activation != "none":
            z = q.to(torch.float32, copy=True).mul_(picked[rows.SLOPE]).add_(picked[rows.OFFSET])
            g = _DERIVATIVES[activation](g, z.to(grad.dtype))
        into = pieces.of(target, piece)
        gx, *sums = _norm_backward(g, q, [item.flatten() for item in picked], training)
        into.copy_(gx.view(into.shape))
        found.append(sums)
    grad_weight, grad_bias = (pieces.joined(list(parts)) for parts in zip(*found, strict=True))
    return out, grad_weight, grad_bias


def _norm_backward(g: Tensor, q: Tensor, stats: list[Tensor], training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own rule, for the code itself as input: a mean and a sigma that turn it into the normalised value, and the gain that remains.

    With batch statistics: (g - mean(g) - xh * mean(g * xh)) * gain, xh = (q - center) * step. Sums of a channel whose 1/sigma is NaN are.
    """
    center, step, unknown = stats[rows.CENTER], stats[rows.STEP], stats[rows.INVSTD] * 0
    backward = torch.ops.aten.native_batch_norm_backward.default
    wanted = [True, True, True]
    if training:
        gx, gw, gb = backward(g, q, stats[rows.GAIN] / step, None, None, center, step, True, 0.0, wanted)
        return gx, gw + unknown, gb + unknown
    size = step.abs()
    gx, gw, gb = backward(g, q, stats[rows.GAIN] / size, center, size.pow(-2), None, None, False, 0.0, wanted)
    return gx, gw * step.sign() + unknown, gb + unknown


@blpa_norm_backward.register_fake
def _(
    grad: Tensor,
    packed: Tensor,
    stats: Tensor,
    mask: Tensor,
    strides: Sequence[int],
    training: bool,
    activation: str,
    bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    out = grad.new_empty_strided(grad.shape, list(strides))
    return out, stats.new_empty(grad.shape[1]), stats.new_empty(grad.shape[1])


blpa_norm_backward.without_derivative()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight, bias, running_mean, _, training, _, _, activation, bits, wanted = inputs
    y, packed, stats, mask, new_mean, new_var = output
    if not wanted:
        raise RuntimeError("blpa_norm was told that no gradient is wanted, but one is recorded; pass torch.is_grad_enabled()")
    ctx.mark_non_differentiable(packed, stats, mask, new_mean, new_var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(packed, stats, mask)
    ctx.strides = y.stride()
    ctx.facts = (training or running_mean is None, activation, bits)
    ctx.dtypes = tuple(None if t is None else t.dtype for t in (weight, bias))


@once("fxsparse::blpa_norm")
def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    packed, stats, mask = ctx.saved_tensors
    training, activation, bits = ctx.facts
    gx, gw, gb = torch.ops.fxsparse.blpa_norm_backward(grad, packed, stats, mask, ctx.strides, training, activation, bits)
    weight, bias = ctx.dtypes
    return (
        gx if ctx.needs_input_grad[0] else None,
        gw.to(weight) if weight is not None and ctx.needs_input_grad[1] else None,
        gb.to(bias) if bias is not None and ctx.needs_input_grad[2] else None,
        *(None,) * 8,
    )


blpa_norm.register_autograd(_backward, setup_context=_setup)

"""The work of fxsparse::blpa_norm: torch's norm, what follows it, and its code; and what the code stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import norm as native
from ..kernels.library import Library, kernels_for
from .codes import channels as rows
from .codes import masks
from .codes.bits import parts_of
from .codes.layout import by_channel, dense, in_memory_order
from .codes.pieces import Piece, Pieces
from .codes.room import room
from .derivative import like

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}
_IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "none": lambda z: z,
    "relu": lambda z: z,  # of native kernels the encoder's
    "relu6": lambda z: F.relu6(z, inplace=True),
    "hardswish": lambda z: F.hardswish(z, inplace=True),
    "silu": lambda z: F.silu(z, inplace=True),
}
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hardswish": torch.ops.aten.hardswish_backward.default,
    "silu": torch.ops.aten.silu_backward.default,
}


def packed_size(x: Tensor, bits: int) -> int:
    """Return the bytes of the code of x (N, C, *)."""
    parts = parts_of(bits)
    return x.numel() // x.shape[1] * ((x.shape[1] + parts - 1) // parts)


class Norm:
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


class Forward:
    """Runs the normalisation piece by piece, so that what it makes is coded while the cache still holds it."""

    def __init__(
        self,
        given_x: Tensor,
        affine: tuple[Any, Any],
        running: list[Tensor],
        norm: Norm,
        activation: str,
        bits: int,
        kernels: Library | None,
    ) -> None:
        self.activation, self.norm, x = activation, norm, dense(given_x)
        self.grid = rows.make_grid(*affine, x.shape[1], bits, activation == "relu", x.device)
        given = [*affine, *(item if item.numel() else None for item in running)]
        self.carriers = not (norm.training or given[2] is None)
        if kernels is not None:
            self._at_once(x, given, kernels)
        else:
            self._in_pieces(given_x, x, given)
        self.stats = rows.statistics(self.grid, affine[0], self.invstd)

    def _at_once(self, x: Tensor, given: list[Any], kernels: Library) -> None:
        z, mean, invstd = self.norm(x, *given)
        self.invstd = self._carried(z, invstd)
        after = F.silu(z) if self.activation == "silu" and z.stride() != x.stride() else None  # rounded by torch in the order of z's memory
        z = like(z, x.stride())
        self.packed = room(packed_size(x, self.grid.bits), x)
        native.encode(kernels, x, z, mean, self.invstd, self.grid, self.activation == "relu", self.packed)
        self.inside = ((z > 0) & (z < 6)) if self.activation == "relu6" else None
        if after is None:
            _IN_PLACE[self.activation](z)
        self.y = z if after is None else like(after, x.stride())

    def _in_pieces(self, given_x: Tensor, x: Tensor, given: list[Any]) -> None:
        activation, bits = self.activation, self.grid.bits
        self.y = torch.empty_like(x)
        self.inside = torch.empty_like(x, dtype=torch.bool) if activation == "relu6" else None
        source, target = by_channel(x), by_channel(self.y)
        pieces = Pieces(x, source.shape, bits)
        pieces.by_channel = pieces.by_channel and given_x.is_contiguous()  # torch sums others in another order
        self.packed = room(pieces.packed_bytes, x)
        self.irregular = ~self.grid.is_regular if x.device.type == "cpu" else None
        run = self._by_channel if pieces.by_channel else self._by_sample
        run(given_x, pieces, pieces.split(source), pieces.split(target), given)

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
        statistics = mean.unsqueeze(1), invstd.unsqueeze(1)
        if not with_relu:
            rows.encode(x, None, *statistics, grid, pieces.bits, values)
        elif self.irregular is None or self._has_irregular(pieces, piece):
            rows.encode_any(x, z, *statistics, grid, pieces.bits, values)
        else:
            rows.encode_regular(z, grid, pieces.bits, values)
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


def decode_norm(packed: Tensor, stats: Tensor, activation: str, bits: int, out: Tensor, reference: bool = False) -> None:
    """Store the values of a code in a dense tensor `out` (N, C, *), which has the memory order of what was encoded."""
    kernels = None if reference or (out.dtype != torch.float32 and activation in DERIVATIVES) else kernels_for(out)
    if kernels is not None:
        native.decode(kernels, packed, stats, "none" if activation in DERIVATIVES else activation, bits, out)
        if activation in DERIVATIVES:
            _IN_PLACE[activation](out)
        return
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

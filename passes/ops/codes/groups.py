"""Codes with a range of their own for each group of elements that follow each other in memory.

"range": x ~ low + q * step over a group's minimum and maximum, rounded stochastically (unbiased: E[low + q*step] = x) or to the
nearest. "positive": x >= 0 ~ (q - 1/2) * step, and q = 0 if and only if x = 0 exactly, rounded down.

A group that holds a NaN or an infinity decodes to NaN or infinity throughout: its range does.

Source: Chen et al., ActNN, ICML 2021 (groups and stochastic rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import groups as native
from ...kernels.library import Library, kernels_for
from .bits import pack, parts_of, to_codes, unpack
from .layout import block_elements, blocks
from .noise import add_noise, offset_of, table
from .room import room

SMALLEST_RANGE = 1e-30
_BELOW_ONE = 1 - 1e-6
_SHARE_OF_LEVELS = 1 - 4e-7  # so that the largest of 256 levels and the largest noise stay below 256 after float32's rounding


@dataclass(frozen=True)
class Rounding:
    """How values between two codes are rounded. Without a seed: to the nearest."""

    seed: int | None = None
    step: int = 0

    def apply(self, values: Tensor, block: int) -> None:
        if self.seed is None:
            values.add_(0.5)
        else:
            add_noise(values, offset_of(self.seed, self.step, block))


@dataclass(frozen=True)
class Groups:
    """The division of n elements: whole groups of one size, and a last one of what remains."""

    elements: int
    size: int
    bits: int

    @property
    def whole(self) -> int:
        return self.elements // self.size

    @property
    def rest(self) -> int:
        return self.elements - self.whole * self.size

    @property
    def count(self) -> int:
        return self.whole + (self.rest > 0)

    @property
    def padded_rest(self) -> int:
        parts = parts_of(self.bits)
        return (self.rest + parts - 1) // parts * parts

    @property
    def packed_bytes(self) -> int:
        return (self.whole * self.size + self.padded_rest) // parts_of(self.bits)


def _kernels(flat: Tensor, size: int, reference: bool) -> Library | None:
    return None if reference or size > native.LARGEST or not flat.is_contiguous() else kernels_for(flat)


def encode(
    flat: Tensor,
    size: int,
    bits: int,
    positive: bool,
    rounding: Rounding,
    value: Callable[[Tensor], Tensor] | None = None,
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the packed codes (uint8) and the statistics (float32) of a 1-dim float tensor, or of `value` of it, an elementwise function.

    The statistics are (2, groups), lows and steps, or for positive codes (1, groups), steps. `reference`: without native kernels.
    """
    division = Groups(flat.numel(), size, bits)
    packed = room(division.packed_bytes, flat)
    stats = flat.new_empty((1 if positive else 2, division.count), dtype=torch.float32)
    kernels = _kernels(flat, size, reference)
    if kernels is not None:
        _encode_natively(kernels, flat, division, positive, rounding, value, stats, packed)
        return packed, stats
    whole = division.whole * size
    rows, bytes_each = flat[:whole].view(-1, size), size // parts_of(bits)
    out = packed[: division.whole * bytes_each].view(-1, bytes_each)
    buffers: dict[int, _Buffers] = {}
    index = 0
    for index, block in enumerate(blocks(division.whole, size, block_elements(flat)), start=1):
        count = block.stop - block.start
        if count not in buffers:
            buffers[count] = _Buffers(flat, count, size, bits)
        _encode_rows(rows[block], bits, positive, stats[:, block], out[block], rounding, index, buffers[count], value)
    if division.rest:
        tail = flat[whole:]
        padding = division.padded_rest - division.rest
        row = (torch.cat([tail, tail[-1:].expand(padding)]) if padding else tail).view(1, -1)
        end = packed[division.whole * bytes_each :].view(1, -1)
        buffer = _Buffers(flat, 1, row.shape[1], bits)
        _encode_rows(row, bits, positive, stats[:, division.whole :], end, rounding, index + 1, buffer, value)
    return packed, stats


def _encode_natively(
    kernels: Library,
    flat: Tensor,
    division: Groups,
    positive: bool,
    rounding: Rounding,
    value: Callable[[Tensor], Tensor] | None,
    stats: Tensor,
    packed: Tensor,
) -> None:
    size, bits, rows = division.size, division.bits, max(1, block_elements(flat) // division.size)
    noise = None if rounding.seed is None else (table(flat.device), rounding.seed, rounding.step)
    if value is None:
        native.encode(kernels, flat, size, bits, positive, noise, 1, rows, stats, packed)
        return
    for index, block in enumerate(blocks(division.whole + (division.rest > 0), size, rows * size), start=1):
        part = value(flat[block.start * size : block.stop * size])
        own = stats.new_empty((stats.shape[0], block.stop - block.start))
        codes = packed[block.start * size // parts_of(bits) : block.stop * size // parts_of(bits)]
        native.encode(kernels, part, size, bits, positive, noise, index, rows, own, codes)
        stats[:, block] = own


class _Buffers:
    def __init__(self, like: Tensor, rows: int, size: int, bits: int) -> None:
        self.values = like.new_empty((rows, size), dtype=torch.float32)
        self.codes = like.new_empty((rows, size), dtype=torch.uint8)
        parts = parts_of(bits)
        self.parts = self.codes.view(rows, parts, size // parts)


def _encode_rows(
    rows: Tensor,
    bits: int,
    positive: bool,
    stats: Tensor,
    out: Tensor,
    rounding: Rounding,
    block: int,
    buffers: _Buffers,
    value: Callable[[Tensor], Tensor] | None,
) -> None:
    values = buffers.values
    if value is not None:
        rows = value(rows)
    if rows.dtype != torch.float32:
        values.copy_(rows)
        rows = values
    levels = (1 << bits) - 1
    high = rows.amax(1, keepdim=True)
    if positive:
        step = high.add_(high * 0).clamp_(min=SMALLEST_RANGE).div_(levels)  # inf * 0 is NaN, which no code can hide
        stats[0].copy_(step.squeeze(1))
        torch.mul(rows, step.reciprocal_().mul_(_BELOW_ONE), out=values)
        values.ceil_()
    else:
        low = rows.amin(1, keepdim=True)
        span = high.sub_(low).clamp_(min=SMALLEST_RANGE)
        stats[0].copy_(low.squeeze(1))
        torch.div(span.squeeze(1), levels * _SHARE_OF_LEVELS, out=stats[1])
        torch.sub(rows, low, out=values)
        values.mul_(span.reciprocal_().mul_(levels * _SHARE_OF_LEVELS))
        rounding.apply(values, block)
    to_codes(values, bits, buffers.codes)
    pack(buffers.parts, bits, 1, out)


def decode(
    packed: Tensor, stats: Tensor, elements: int, size: int, bits: int, positive: bool, out: Tensor, reference: bool = False
) -> None:
    """Store what the codes stand for in `out`, a 1-dim tensor of any float dtype."""
    kernels = _kernels(out, size, reference)
    if kernels is not None:
        native.decode(kernels, packed, stats, size, bits, positive, out)
        return
    division = Groups(elements, size, bits)
    whole, bytes_each = division.whole * size, size // parts_of(bits)
    rows, source = out[:whole].view(-1, size), packed[: division.whole * bytes_each].view(-1, bytes_each)
    buffers: dict[int, _Buffers] = {}
    for block in blocks(division.whole, size, block_elements(out)):
        count = block.stop - block.start
        if count not in buffers:
            buffers[count] = _Buffers(out, count, size, bits)
        _decode_rows(source[block], stats[:, block], bits, positive, rows[block], buffers[count])
    if division.rest:
        row = out.new_empty((1, division.padded_rest))
        end = packed[division.whole * bytes_each :].view(1, -1)
        _decode_rows(end, stats[:, division.whole :], bits, positive, row, _Buffers(out, 1, division.padded_rest, bits))
        out[whole:].copy_(row[0, : division.rest])


def _decode_rows(packed: Tensor, stats: Tensor, bits: int, positive: bool, out: Tensor, buffers: _Buffers) -> None:
    unpack(packed, bits, 1, buffers.parts)
    values = out if out.dtype == torch.float32 else buffers.values
    values.copy_(buffers.codes)
    if positive:
        step = stats[0].unsqueeze(1)
        values.sub_(0.5).mul_(step).clamp_(min=0)  # q = 0 would be -step/2
    else:
        values.mul_(stats[1].unsqueeze(1)).add_(stats[0].unsqueeze(1))
    if values is not out:
        out.copy_(values)


def where_positive(packed: Tensor, stats: Tensor, size: int, bits: int, grad: Tensor, out: Tensor, reference: bool = False) -> None:
    """Store `grad` in `out` where the code is not 0, 0 elsewhere; both of one dimension. A group that held a NaN or infinity gets NaN."""
    kernels = _kernels(grad, size, reference)
    if kernels is not None:
        native.gradient(kernels, grad, packed, stats, size, bits, out)
        return
    division = Groups(grad.numel(), size, bits)
    bytes_each, parts = size // parts_of(bits), parts_of(bits)
    rows, target = grad[: division.whole * size].view(-1, size), out[: division.whole * size].view(-1, size)
    source = packed[: division.whole * bytes_each].view(-1, bytes_each)
    for block in blocks(division.whole, size, block_elements(grad)):
        codes = packed.new_empty((block.stop - block.start, parts, bytes_each))
        unpack(source[block], bits, 1, codes)
        target[block] = torch.ops.aten.threshold_backward.default(rows[block], codes.view(-1, size).to(grad.dtype), 0)
    if division.rest:
        codes = packed.new_empty((1, parts, division.padded_rest // parts))
        unpack(packed[division.whole * bytes_each :].view(1, -1), bits, 1, codes)
        tail = codes.view(-1)[: division.rest].to(grad.dtype)
        out[division.whole * size :] = torch.ops.aten.threshold_backward.default(grad[division.whole * size :], tail, 0)
    unknown = stats[0] * 0
    if out.device.type != "cpu" or not bool(unknown.isfinite().all()):
        target.add_(unknown[: division.whole].unsqueeze(1))
        out[division.whole * size :].add_(unknown[division.whole :])

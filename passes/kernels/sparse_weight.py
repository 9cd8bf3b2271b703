"""The positions and values of a sparse weight, in the orders in which the sparse kernels read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .library import Library, library
from .tiles import Tiling

LIMIT = 2**31 - 1  # positions are 32-bit numbers


@dataclass(frozen=True)
class Order:
    """The entries row by row: `starts` (rows + 1,) int64, `columns` int32, and `places` int32, where their values are; None: in order."""

    starts: Tensor
    columns: Tensor
    places: Tensor | None


@dataclass(frozen=True)
class Program:
    """The entries for one geometry: `segments` (blocks * rows + 1,) int64 into `offsets`, `values` and `order` (see sparse_index.h)."""

    segments: Tensor
    offsets: Tensor
    order: Tensor


class Pattern:
    """Which positions of a weight of `shape` (O, I / groups, *kernel) are kept."""

    def __init__(self, kernels: Library, shape: torch.Size, starts: Tensor, columns: Tensor) -> None:
        self.kernels, self.shape = kernels, shape
        self.by_output = Order(starts, columns, None)
        self._by_input: dict[int, Order] = {}
        self._programs: dict[tuple[bool, int, Tiling], Program] = {}

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_size(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def count(self) -> int:
        return self.by_output.columns.numel()

    def order(self, is_turned: bool, groups: int) -> Order:
        """Return the entries by output channel, or turned, by input channel."""
        if not is_turned:
            return self.by_output
        if groups not in self._by_input:
            channels, taps = self.shape[1], math.prod(self.shape[2:])
            starts = torch.empty(groups * channels + 1, dtype=torch.int64)
            columns, places = torch.empty_like(self.by_output.columns), torch.empty_like(self.by_output.columns)
            given = (self.by_output.starts, self.by_output.columns, groups, self.rows // groups, channels, taps)
            self.kernels.call("sparse_turn", torch.float32, *given, starts, columns, places)
            self._by_input[groups] = Order(starts, columns, places)
        return self._by_input[groups]

    def program(self, is_turned: bool, groups: int, tiling: Tiling) -> Program:
        """Return the program for a tiling, made once."""
        key = is_turned, groups, tiling
        if key not in self._programs:
            order = self.order(is_turned, groups)
            rows, size = order.starts.numel() - 1, order.columns.numel()
            segments = torch.empty(tiling.blocks * rows + 1, dtype=torch.int64)
            offsets, places = torch.empty_like(order.columns), torch.empty_like(order.columns)
            table = _offsets(tiling)
            width = tiling.block * len(tiling.taps)
            given = (order.starts, order.columns, 0 if order.places is None else order.places, rows, table, width, tiling.blocks)
            self.kernels.call("sparse_program", torch.float32, *given, segments, offsets, places)
            used = int(segments[-1])
            self._programs[key] = Program(segments, offsets[:used] if used < size else offsets, places[:used] if used < size else places)
        return self._programs[key]


class SparseWeight:
    """A sparse weight: a pattern and its values, (count,) float32 in the order of the weight's memory."""

    def __init__(self, pattern: Pattern, values: Tensor) -> None:
        self.pattern, self.values = pattern, values
        self._ordered: dict[tuple[bool, int, Tiling], Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        return self.pattern.shape

    @property
    def density(self) -> float:
        return self.pattern.count / max(self.pattern.rows * self.pattern.row_size, 1)

    def with_values(self, w: Tensor) -> SparseWeight:
        """Return the same positions with the values that a weight of this shape has there.

        Raises: ValueError for another shape or type.
        """
        if w.shape != self.shape or _refusal(w) is not None:
            raise ValueError(f"the values of a sparse weight of shape {list(self.shape)} were to come from {_described(w)}: {_refusal(w)}")
        values, order = torch.empty_like(self.values), self.pattern.by_output
        given = (w.detach().contiguous(), self.pattern.rows, self.pattern.row_size, order.starts, order.columns)
        self.pattern.kernels.call("sparse_values", torch.float32, *given, values)
        return SparseWeight(self.pattern, values)

    def ordered(self, is_turned: bool, groups: int, tiling: Tiling) -> tuple[Program, Tensor]:
        """Return the program for a tiling, and the values in its order."""
        key, program = (is_turned, groups, tiling), self.pattern.program(is_turned, groups, tiling)
        if key not in self._ordered:
            values = torch.empty(program.order.numel())
            self.pattern.kernels.call("sparse_gather", torch.float32, self.values, program.order, values.numel(), values)
            self._ordered[key] = values
        return program, self._ordered[key]

    def dense(self, values: Tensor | None = None) -> Tensor:
        """Return a contiguous tensor with the values, or others in their order, and 0 elsewhere."""
        out, order = torch.empty(self.shape), self.pattern.by_output
        given = (self.values if values is None else values, self.pattern.rows, self.pattern.row_size, order.starts, order.columns)
        self.pattern.kernels.call("sparse_dense", torch.float32, *given, out)
        return out


def index_weight(w_hat: Tensor, kept: Tensor | None = None, kernels: Library | None = None) -> SparseWeight:
    """Return the non-zeros of a weight (O, I / groups, *kernel), or its values at the positions of the bool mask `kept`.

    Raises: ValueError if takes_weight refuses it, or the mask has another shape; RuntimeError without native kernels.
    """
    reason = takes_weight(w_hat)
    if reason is not None:
        raise ValueError(f"sparse kernels do not take {_described(w_hat)}: {reason}")
    if kept is not None and (kept.shape != w_hat.shape or kept.dtype != torch.bool or kept.device.type != "cpu"):
        raise ValueError(f"the mask of {_described(w_hat)} must be bool and of its shape, got {_described(kept)}")
    kernels = kernels or library()
    if kernels is None:
        raise RuntimeError("the native kernels were not built: install fxsparse where there is a C compiler")
    w, mask = w_hat.detach().contiguous(), 0 if kept is None else kept.contiguous()
    rows, size = w.shape[0], math.prod(w.shape[1:])
    starts = torch.empty(rows + 1, dtype=torch.int64)
    kernels.call("sparse_count", torch.float32, w, mask, rows, size, starts)
    count = int(starts[-1])
    columns, values = torch.empty(count, dtype=torch.int32), torch.empty(count)
    kernels.call("sparse_index", torch.float32, w, mask, rows, size, starts, columns, values)
    return SparseWeight(Pattern(kernels, w.shape, starts, columns), values)


@lru_cache(maxsize=256)
def _offsets(tiling: Tiling) -> Tensor:
    return torch.tensor(tiling.offsets(), dtype=torch.int32)


def takes_weight(w: Tensor) -> str | None:
    """Return why the sparse kernels cannot take a weight, None if they can."""
    if w.dim() < 2:
        return "it has less than two dimensions"
    return _refusal(w)


def _refusal(w: Tensor) -> str | None:
    return first_reason(
        (lambda: w.dtype != torch.float32, f"its type is {w.dtype}, not torch.float32"),
        (lambda: w.device.type != "cpu", f"it is on {w.device}, not on the CPU"),
        (lambda: w.layout != torch.strided, f"its layout is {w.layout}"),
        (lambda: w.numel() > LIMIT, "it has more elements than 32-bit positions can tell apart"),
    )


def first_reason(*checks: tuple[Callable[[], bool], str]) -> str | None:
    """Return the words of the first check that is true."""
    return next((words for check, words in checks if check()), None)


def _described(tensor: Tensor) -> str:
    return f"a tensor of shape {list(tensor.shape)}, {tensor.dtype}"

"""Bits that a sparse tensor takes in each representation: expected from its density, and exact for a real mask."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log1p, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fxsparse.errors import CostError

from .validate import closest, require_count, require_density


def index_bits(values: int) -> int:
    """Bits that tell `values` different values apart: ceil(log2(values)), 0 for a single one."""
    return (values - 1).bit_length() if values > 1 else 0


class Format(abc.ABC):
    """A way to store a tensor; shapes are (rows, columns) or of more axes, whose first counts as rows."""

    name: str

    @abc.abstractmethod
    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        """Bits of a tensor with uniformly random non-zeros. Raises: CostError for a density outside 0..1."""

    def exact_bits(self, mask: npt.ArrayLike, *, element_bits: int) -> int:
        """Bits of the tensor whose non-zeros stand where `mask` is non-zero."""
        kept = np.asarray(mask) != 0
        density = np.count_nonzero(kept) / kept.size if kept.size else 0.0
        return round(self.expected_bits(shape=kept.shape, density=density, element_bits=element_bits))


@dataclass(frozen=True)
class Dense(Format):
    """Every element, zeros included."""

    name = "dense"

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        require_density("density", density)
        return prod(shape) * element_bits


@dataclass(frozen=True)
class Bitmask(Format):
    """One bit an element, and the kept values: n(d·b + 1)."""

    name = "bitmask"

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        return prod(shape) * (require_density("density", density) * element_bits + 1)


@dataclass(frozen=True)
class CSR(Format):
    """Kept values with their column, and where each row starts: n·d(b + ceil(log2 cols)) + (rows + 1)·ceil(log2(nnz + 1))."""

    name = "csr"

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        rows = shape[0] if shape else 1
        columns = prod(shape[1:])
        kept = rows * columns * require_density("density", density)
        return kept * (element_bits + index_bits(columns)) + (rows + 1) * index_bits(round(kept) + 1)


@dataclass(frozen=True)
class COO(Format):
    """Kept values with all their coordinates: n·d(b + sum ceil(log2 dim))."""

    name = "coo"

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        coordinates = sum(index_bits(size) for size in shape)
        return prod(shape) * require_density("density", density) * (element_bits + coordinates)


@dataclass(frozen=True)
class RunLength(Format):
    """Entries of (zeros before, value); 2^run_bits zeros or more in a row cost an entry with an explicit zero each time.

    Expected n·d / (1 - (1 - d)^(2^z)) entries of b + z bits; zeros after the last value are not stored.
    """

    run_bits: int = 4
    name = "rle"

    def __post_init__(self) -> None:
        require_count("RunLength.run_bits", self.run_bits)

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        kept = require_density("density", density)
        if not kept:
            return 0.0
        stored = -expm1((1 << self.run_bits) * log1p(-kept)) if kept < 1 else 1.0
        return prod(shape) * kept / stored * (element_bits + self.run_bits)

    def exact_bits(self, mask: npt.ArrayLike, *, element_bits: int) -> int:
        """Bits of a real mask: every gap of g zeros before a value takes floor(g / 2^z) + 1 entries."""
        places = np.flatnonzero(np.asarray(mask))
        gaps = np.diff(places, prepend=-1) - 1
        return int(np.sum((gaps >> self.run_bits) + 1)) * (element_bits + self.run_bits)


@dataclass(frozen=True)
class NM(Format):
    """`kept` of every `group` elements, each with its place in the group: n(N/M)(b + ceil(log2 M)), whatever the density."""

    kept: int = 2
    group: int = 4
    name = "nm"

    def __post_init__(self) -> None:
        require_count("NM.kept", self.kept)
        require_count("NM.group", self.group)
        if self.kept > self.group:
            raise CostError(f"NM keeps {self.kept} of {self.group}; expected kept <= group")

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        if require_density("density", density) > self.kept / self.group + 1e-9:
            raise CostError(f"a tensor of density {density} does not fit the {self.kept}:{self.group} format; store it dense")
        whole, rest = divmod(prod(shape), self.group)
        return (whole * self.kept + min(rest, self.kept)) * (element_bits + index_bits(self.group))


@dataclass(frozen=True)
class Packed(Format):
    """Every element as a k-bit code, with `overhead_bits` (scale and offset) for each group; group_size 0 means no groups."""

    bits: int = 4
    group_size: int = 0
    overhead_bits: int = 64
    name = "packed"

    def __post_init__(self) -> None:
        require_count("Packed.bits", self.bits)
        require_count("Packed.group_size", self.group_size, at_least=0)
        require_count("Packed.overhead_bits", self.overhead_bits, at_least=0)

    def expected_bits(self, *, shape: Sequence[int], density: float, element_bits: float) -> float:
        require_density("density", density)
        elements = prod(shape)
        groups = -(-elements // self.group_size) if self.group_size else 0
        return elements * self.bits + groups * self.overhead_bits


FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (Dense, Bitmask, CSR, COO, RunLength, NM, Packed)}


def make_format(name: str, **options: Any) -> Format:
    """The format of that name with its options (rle: run_bits; nm: kept, group; packed: bits, group_size, overhead_bits).

    Raises: CostError for an unknown name or option.
    """
    if name not in FORMATS:
        raise CostError(f"format is {name!r}; expected one of {', '.join(map(repr, FORMATS))}{closest(name, FORMATS)}")
    try:
        return FORMATS[name](**options)
    except TypeError:
        raise CostError(f"format {name!r} does not take the options {options!r}") from None


def cheapest_format(*, shape: Sequence[int], density: float, element_bits: float) -> Format:
    """The smallest of dense, bitmask, CSR, COO and run-length (4 bits) for this shape and density."""
    candidates = (Dense(), Bitmask(), CSR(), COO(), RunLength())
    return min(candidates, key=lambda kind: kind.expected_bits(shape=shape, density=density, element_bits=element_bits))

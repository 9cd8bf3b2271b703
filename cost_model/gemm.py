"""The matrix product that one pass of a contraction performs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .validate import require_count

Pass = Literal["forward", "grad_input", "grad_weight"]
PASSES: tuple[Pass, ...] = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """`groups` independent products of an (m, k) matrix with a (k, n) matrix; all sizes in elements."""

    m: int
    k: int
    n: int
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("m", "k", "n", "groups"):
            require_count(f"Gemm.{name}", getattr(self, name), at_least=0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all groups."""
        return self.groups * self.m * self.k * self.n

    @property
    def left_elements(self) -> int:
        """Elements of the left operand, all groups."""
        return self.groups * self.m * self.k

    @property
    def right_elements(self) -> int:
        """Elements of the right operand, all groups."""
        return self.groups * self.k * self.n

    @property
    def result_elements(self) -> int:
        """Elements of the result, all groups."""
        return self.groups * self.m * self.n

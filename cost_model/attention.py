"""Scaled dot-product attention as one workload: two products forward, four or five backward."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fxsparse.errors import CostError

from .gemm import Pass
from .validate import require_count, require_member
from .workload import Contraction, known_fields


@dataclass(frozen=True, kw_only=True)
class Attention:
    """softmax(Q·K^T)·V of `heads` query heads; grouped-query attention has fewer `key_heads` but the same MACs.

    backward "math" keeps the score matrix and multiplies 2x the forward; "flash" recomputes Q·K^T: 2.5x for equal head sizes.
    "fused" never stores the scores either, but what it recomputes is not counted (2x): the CPU's kernel.
    """

    batch: int
    heads: int
    query_length: int
    key_length: int
    head_size: int
    value_size: int
    key_heads: int | None = None
    causal: bool = False
    backward: str = "flash"
    input_needs_grad: bool = True

    def __post_init__(self) -> None:
        for name in ("heads", "query_length", "key_length", "head_size", "value_size"):
            require_count(f"Attention.{name}", getattr(self, name))
        require_count("Attention.batch", self.batch, at_least=0)
        require_member("Attention.backward", self.backward, ("math", "flash", "fused"))
        if self.key_heads is None:
            object.__setattr__(self, "key_heads", self.heads)
        elif require_count("Attention.key_heads", self.key_heads) and self.heads % self.key_heads:
            raise CostError(f"Attention.key_heads is {self.key_heads}; expected a divisor of heads = {self.heads}")

    @property
    def operator(self) -> str:
        """The name under which reports group it."""
        return "attention"

    @property
    def score_pairs(self) -> int:
        """(query, key) pairs that are computed, all heads and samples; causal: query i sees keys 0..i."""
        pairs = self.query_length * self.key_length
        if self.causal:
            short = min(self.query_length, self.key_length)
            pairs = short * (short + 1) // 2 + (self.query_length - short) * self.key_length
        return self.batch * self.heads * pairs

    def macs(self, which: Pass) -> int:
        """MACs of one pass; every gradient (of query, key and value) stands under grad_input."""
        if which == "grad_weight" or (which == "grad_input" and not self.input_needs_grad):
            return 0
        forward = self.score_pairs * (self.head_size + self.value_size)
        if which == "forward":
            return forward
        return 2 * forward + (self.score_pairs * self.head_size if self.backward == "flash" else 0)

    def contractions(self) -> tuple[Contraction, Contraction]:
        """The two forward products, Q·K^T and P·V, causality left out."""
        scores = Contraction.matmul(batch=self.batch, m=self.query_length, k=self.head_size, n=self.key_length, heads=self.heads)
        values = Contraction.matmul(batch=self.batch, m=self.query_length, k=self.key_length, n=self.value_size, heads=self.heads)
        return scores, values

    def pass_elements(self, which: Pass) -> int:
        """Elements read and written by one pass, once each: flash never stores the scores, math writes and reads them twice."""
        assert self.key_heads is not None
        query = self.batch * self.heads * self.query_length * self.head_size
        key = self.batch * self.key_heads * self.key_length * self.head_size
        value = self.batch * self.key_heads * self.key_length * self.value_size
        out = self.batch * self.heads * self.query_length * self.value_size
        scores = self.batch * self.heads * self.query_length * self.key_length if self.backward == "math" else 0
        if which == "forward":
            return query + key + value + out + 4 * scores
        if which == "grad_input" and self.input_needs_grad:
            return 2 * (query + key + value + out) + 5 * scores
        return 0

    def pass_flops(self, which: Pass) -> float:
        """Elementwise FLOPs of scaling and softmax: 5 a score forward, 6 backward."""
        if which == "forward":
            return 5.0 * self.score_pairs
        return 6.0 * self.score_pairs if which == "grad_input" and self.input_needs_grad else 0.0

    def with_batch(self, batch: int) -> Attention:
        """The same attention for another number of samples."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_dict` turns back."""
        return {"kind": "attention", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Attention:
        """The attention that `to_dict` described. Raises: CostError on unknown or missing keys."""
        return cls(**known_fields(cls, values))

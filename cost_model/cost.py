"""What one pass costs, and how far each figure can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .gemm import Pass

# From the most to the least certain; a sum is as certain as its least certain part.
TAGS = ("exact", "expected", "calibrated", "bound")


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """Cost of one pass of one workload; a figure that was not asked for (no accelerator, no energy table) is None.

    macs: at the given densities, under the convention; dense_macs: at density 1; flops: 2 x macs plus elementwise operations.
    dram_bytes, sram_bytes: read and written. cycles: of the slower of computing and moving, overlapped. bound: which one that is:
    "compute", "imbalance" (waiting for the slowest element takes longer than the work), "dram", "metadata" (as dram, indices being
    more than half of the bytes), "sram", "overhead", or "nothing".
    tags: for each figure "exact", "expected" (a mean over random positions), "calibrated", or "bound".
    """

    macs: float = 0
    dense_macs: int = 0
    flops: float = 0
    dram_bytes: float = 0
    sram_bytes: float | None = None
    cycles: int | None = None
    energy_pj: float | None = None
    time_s: float | None = None
    bound: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "tags"} | {"tags": dict(self.tags)}


@dataclass(frozen=True, kw_only=True)
class WorkloadCost:
    """The costs of forward, grad-input and grad-weight of one workload."""

    forward: PassCost
    grad_input: PassCost
    grad_weight: PassCost

    def of(self, which: Pass) -> PassCost:
        """The cost of one pass by its name."""
        found: PassCost = getattr(self, which)
        return found

    @property
    def total(self) -> PassCost:
        """The three passes one after another."""
        return sum_costs((self.forward, self.grad_input, self.grad_weight))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary with the three passes."""
        return {"forward": self.forward.to_dict(), "grad_input": self.grad_input.to_dict(), "grad_weight": self.grad_weight.to_dict()}


def sum_costs(costs: Iterable[PassCost]) -> PassCost:
    """The cost of passes one after another: figures add up (None stays None if every one is), tags are the least certain.

    bound is that of the passes which together take the longest.
    """
    rows = list(costs)
    tags: dict[str, str] = {}
    for row in rows:
        for name, tag in row.tags.items():
            tags[name] = max(tag, tags.get(name, "exact"), key=TAGS.index)
    shares: dict[str, float] = {}
    for row in rows:
        if row.bound is not None:
            shares[row.bound] = shares.get(row.bound, 0.0) + (row.time_s or 0.0)
    return PassCost(
        macs=sum(row.macs for row in rows),
        dense_macs=sum(row.dense_macs for row in rows),
        flops=sum(row.flops for row in rows),
        dram_bytes=sum(row.dram_bytes for row in rows),
        sram_bytes=_sum_known(row.sram_bytes for row in rows),
        cycles=None if (cycles := _sum_known(row.cycles for row in rows)) is None else int(cycles),
        energy_pj=_sum_known(row.energy_pj for row in rows),
        time_s=_sum_known(row.time_s for row in rows),
        bound=max(shares, key=lambda name: shares[name]) if shares else None,
        tags=tags,
    )


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

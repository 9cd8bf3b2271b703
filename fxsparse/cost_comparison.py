"""Two cost reports side by side: what a sparse model saves against the dense one, and whether it pays on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxsparse.cost_model.cost import PassCost, sum_costs

from .errors import CostError
from .quantities import quantity
from .tree_table import render

if TYPE_CHECKING:
    from .cost_report import CostReport, NodeCost

FIGURES = ("macs", "flops", "dram_bytes", "cycles", "energy_pj", "time_s")
_NO_GAIN = 1.005
_OTHERS = "(all other nodes)"


@dataclass(frozen=True, kw_only=True)
class ComparedCost:
    """One contraction, or all other nodes together, in both reports; None where it is in one only.

    ``bound`` and ``baseline_bound`` say what limits it: "compute", "imbalance", "dram", "metadata", "sram" or "overhead".
    """

    name: str
    cost: PassCost | None
    baseline: PassCost | None
    bound: str | None = None
    baseline_bound: str | None = None

    def ratio(self, figure: str) -> float | None:
        """The baseline's figure over this one's: 2 is half of it. None where one is not known."""
        mine = None if self.cost is None else getattr(self.cost, figure)
        theirs = None if self.baseline is None else getattr(self.baseline, figure)
        if mine is None or theirs is None:
            return None
        return float(theirs) / float(mine) if mine else (1.0 if not theirs else float("inf"))

    @property
    def speedup(self) -> float | None:
        """The baseline's time over this one's; None without a machine."""
        return self.ratio("time_s")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data; a ratio to nothing is None."""
        return {
            "name": self.name,
            "cost": None if self.cost is None else self.cost.to_dict(),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "bound": self.bound,
            "baseline_bound": self.baseline_bound,
            "ratios": {figure: _finite(self.ratio(figure)) for figure in FIGURES},
        }


@dataclass(frozen=True, kw_only=True)
class CostComparison:
    """A report against a baseline's, the dense model's.

    Attributes:
        nodes: a row for each contraction, and one for all nodes between them (thresholds and masks included). total: their sum.
        saved_bytes, peak_bytes: (own, baseline's).
    """

    model: str
    accelerator: str | None
    batch_size: int
    convention: str
    nodes: tuple[ComparedCost, ...]
    total: ComparedCost
    saved_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]

    @classmethod
    def of(cls, report: CostReport, baseline: CostReport) -> CostComparison:
        """The comparison of two reports on one machine. Raises: CostError if they differ in machine, batch size or convention."""
        for name in ("accelerator", "batch_size", "convention"):
            mine, theirs = getattr(report, name), getattr(baseline, name)
            if mine != theirs:
                raise CostError(f"reports of different {name} cannot be compared: {mine!r} and {theirs!r}; ask both for the same")
        own, other = _contractions(report), _contractions(baseline)
        names = [*own, *(name for name in other if name not in own)]
        rows = [_row(name, own.get(name, ()), other.get(name, ())) for name in names]
        rows.append(_row(_OTHERS, _rest(report), _rest(baseline)))
        total = ComparedCost(
            name="total",
            cost=report.total.total,
            baseline=baseline.total.total,
            bound=_bound(report.nodes),
            baseline_bound=_bound(baseline.nodes),
        )
        return cls(
            model=report.model,
            accelerator=report.accelerator,
            batch_size=report.batch_size,
            convention=report.convention,
            nodes=tuple(rows),
            total=total,
            saved_bytes=(report.saved_bytes, baseline.saved_bytes),
            peak_bytes=(report.peak_bytes, baseline.peak_bytes),
        )

    @property
    def speedup(self) -> float | None:
        """The baseline's time for a training step over this one's; None without a machine."""
        return self.total.speedup

    @property
    def pays(self) -> bool | None:
        """Whether a training step gets faster by more than half a percent; None without a machine."""
        return None if self.speedup is None else self.speedup > _NO_GAIN

    @property
    def verdict(self) -> str:
        """In words: what is saved, whether that is faster on this machine, and what it is limited by."""
        saved = 1.0 - 1.0 / ratio if (ratio := self.total.ratio("macs")) else 0.0
        work = f"{100 * saved:.1f} % of the MACs of a training step are saved"
        if self.speedup is None:
            return f"{work}. Without an accelerator nothing can be said about time; give one to both reports."
        times = f"a step takes {_time(self.total.cost)} instead of {_time(self.total.baseline)}"
        shares = self._time_by_bound()
        limits = ", ".join(f"{100 * share:.0f} % {_BOUNDS.get(name, name)}" for name, share in shares if share >= 0.01)
        if self.pays:
            return f"On {self.accelerator} it pays: {work}, and {times}, {self.speedup:.2f} times as fast. Of its time: {limits}."
        subject = "sparsity" if self.total.baseline and self.total.baseline.macs == self.total.baseline.dense_macs else "it"
        paid = f"On {self.accelerator} {subject} does not pay: {work}, but {times}, {self.speedup:.2f} times as fast."
        return f"{paid} {self._reason()} Of its time: {limits}."

    def _time_by_bound(self) -> list[tuple[str, float]]:
        whole = sum(row.cost.time_s or 0.0 for row in self.nodes if row.cost is not None) or 1.0
        shares: dict[str, float] = {}
        for row in self.nodes:
            if row.cost is not None and row.bound is not None:
                shares[row.bound] = shares.get(row.bound, 0.0) + (row.cost.time_s or 0.0) / whole
        return sorted(shares.items(), key=lambda item: -item[1])

    def _reason(self) -> str:
        contractions = [row for row in self.nodes if row.name != _OTHERS and row.cost is not None and row.baseline is not None]
        mine, theirs = (sum_costs(getattr(row, side) for row in contractions) for side in ("cost", "baseline"))
        others = next(row for row in self.nodes if row.name == _OTHERS)
        if not theirs.macs or mine.macs >= theirs.macs * 0.999:
            return "Hardly a multiplication is saved."
        gained = (theirs.time_s or 0.0) - (mine.time_s or 0.0)
        if gained <= 0.005 * (theirs.time_s or 1.0):
            return "Its contractions take as long as before: zeros are computed or moved like any other number, and thresholds come on top."
        lost = ((others.cost.time_s or 0.0) if others.cost else 0.0) - ((others.baseline.time_s or 0.0) if others.baseline else 0.0)
        if lost >= gained:
            return "The contractions get faster, but thresholds and masks take more than that."
        return "What is saved is too little beside the rest."

    def table(self) -> str:
        """The comparison as text, with the verdict."""
        table = Table(box=None, pad_edge=False)
        table.add_column("node")
        for name in ("MACs", "FLOPs", "bytes", "cycles", "energy", "speed-up"):
            table.add_column(name, justify="right")
        for name in ("bound by", "dense bound by"):
            table.add_column(name)
        for row in (*self.nodes, self.total):
            table.add_row(row.name, *(_ratio(row.ratio(figure)) for figure in FIGURES), row.bound or "", row.baseline_bound or "")
        head = f"{self.model} against its baseline, {self.batch_size} samples, convention {self.convention!r}; 2.00x is half of it"
        saved, peak = (f"{own / 2**20:.1f} MiB instead of {other / 2**20:.1f}" for own, other in (self.saved_bytes, self.peak_bytes))
        return f"{head}\n{render(table)}saved for backward {saved}; peak {peak}\n{self.verdict}\n"

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        names = ("model", "accelerator", "batch_size", "convention", "speedup", "pays", "verdict")
        return {
            **{name: getattr(self, name) for name in names},
            "saved_bytes": list(self.saved_bytes),
            "peak_bytes": list(self.peak_bytes),
            "total": self.total.to_dict(),
            "nodes": [row.to_dict() for row in self.nodes],
        }


_BOUNDS = {
    "compute": "by computing",
    "imbalance": "by waiting for the slowest element",
    "dram": "by memory",
    "metadata": "by reading where the values are",
    "sram": "by the buffer",
    "overhead": "by launching",
}


def _contractions(report: CostReport) -> dict[str, list[NodeCost]]:
    """The nodes that multiply: by their site, the ones without by their names."""
    found: dict[str, list[NodeCost]] = {}
    for node in report.nodes:
        if node.contractions:
            found.setdefault(node.site or node.name, []).append(node)
    return found


def _rest(report: CostReport) -> list[NodeCost]:
    return [node for node in report.nodes if not node.contractions]


def _row(name: str, own: Iterable[NodeCost], other: Iterable[NodeCost]) -> ComparedCost:
    mine, theirs = list(own), list(other)
    return ComparedCost(
        name=name,
        cost=_sum(mine),
        baseline=_sum(theirs),
        bound=_bound(mine),
        baseline_bound=_bound(theirs),
    )


def _sum(nodes: list[NodeCost]) -> PassCost | None:
    return sum_costs(node.total for node in nodes) if nodes else None


def _bound(nodes: Iterable[NodeCost]) -> str | None:
    """What limits the passes that together take the longest."""
    return sum_costs(cost for node in nodes for cost in (node.forward, node.grad_input, node.grad_weight)).bound


def _finite(number: float | None) -> float | None:
    return None if number is None or math.isinf(number) else number


def _ratio(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}x"


def _time(cost: PassCost | None) -> str:
    return quantity((cost.time_s if cost is not None else None) or 0.0, "s")

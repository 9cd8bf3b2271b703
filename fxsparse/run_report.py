"""What a run has multiplied: MACs of its steps with the densities that its masks had, against a dense run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxsparse.cost_model.gemm import PASSES

from .errors import CostError
from .estimator import cost_of
from .quantities import quantity
from .tree_table import render

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


@dataclass(frozen=True, kw_only=True)
class RunSite:
    """One masked weight over a run.

    Attributes:
        density: mean over all steps of the fraction kept. ordinary_density: over the steps without a dense gradient.
        steps, dense_steps: how many there were, and how many of them had a dense gradient.
    """

    site: str
    density: float
    ordinary_density: float
    steps: int
    dense_steps: int

    @property
    def grad_weight_density(self) -> float:
        """The mean fraction of the weight's gradient that was needed."""
        ordinary = self.steps - self.dense_steps
        return (ordinary * self.ordinary_density + self.dense_steps) / self.steps


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The mean step of a run, counted from the densities that the run went through.

    Attributes:
        model: class name. convention, batch_size: see ``CompiledModel.cost``.
        steps: optimizer steps taken; dense_steps: those with a dense gradient of masked weights.
        macs, dense_macs: of a mean step and of a dense one, by pass: "forward", "grad_input", "grad_weight".
        sites: each masked weight.
    """

    model: str
    convention: str
    batch_size: int
    steps: int
    dense_steps: int
    macs: Mapping[str, float]
    dense_macs: Mapping[str, float]
    sites: tuple[RunSite, ...]

    @property
    def training_multiplier(self) -> float:
        """MACs of the run over those of a dense run of as many steps: the papers' "0.25x"."""
        dense = sum(self.dense_macs.values())
        return sum(self.macs.values()) / dense if dense else 1.0

    @property
    def total_flops(self) -> float:
        """FLOPs of all steps of the run, forward and backward; 2 for each MAC."""
        return 2.0 * self.steps * sum(self.macs.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        names = ("model", "convention", "batch_size", "steps", "dense_steps", "training_multiplier", "total_flops")
        return {
            **{name: getattr(self, name) for name in names},
            "macs": dict(self.macs),
            "dense_macs": dict(self.dense_macs),
            "sites": [{**asdict(site), "grad_weight_density": site.grad_weight_density} for site in self.sites],
        }

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False)
        for name in ("site", "mean density", "of its gradient"):
            table.add_column(name, justify="left" if name == "site" else "right")
        for site in self.sites:
            table.add_row(site.site, f"{site.density:.4f}", f"{site.grad_weight_density:.4f}")
        return (
            f"{self.model}: {self.steps} steps of {self.batch_size} samples, {self.dense_steps} of them with a dense gradient, convention "
            f"{self.convention!r}: {quantity(self.total_flops, 'FLOP')}, {self.training_multiplier:.3f}x a dense run\n{render(table)}"
        )


def run_report(model: CompiledModel, *, convention: str = "exact", batch_size: int | None = None) -> RunReport:
    """The report of the steps that a model's masks have seen; see ``CompiledModel.run_report``."""
    sites = {site.site: site for site in _sites(model)}
    if not sites:
        raise CostError("no masked weight of this model has seen a step: attach an optimizer and train, then ask for the run")
    cost = cost_of(model, convention=convention, batch_size=batch_size)
    macs: dict[str, float] = dict.fromkeys(PASSES, 0.0)
    dense: dict[str, float] = dict.fromkeys(PASSES, 0.0)
    for node in cost.nodes:
        site = sites.get(node.site)
        for which in PASSES:
            own = getattr(node, which)
            dense[which] += own.dense_macs
            if site is None:
                macs[which] += own.macs
                continue
            density = site.grad_weight_density if which == "grad_weight" else site.density
            with_swat = which == "grad_weight" and site.site in model.swat
            macs[which] += min(own.macs, own.dense_macs * density) if with_swat else own.dense_macs * density
    return RunReport(
        model=cost.model,
        convention=convention,
        batch_size=cost.batch_size,
        steps=max(site.steps for site in sites.values()),
        dense_steps=max(site.dense_steps for site in sites.values()),
        macs=macs,
        dense_macs=dense,
        sites=tuple(sites.values()),
    )


def _sites(model: CompiledModel) -> list[RunSite]:
    found = []
    for regime in model.regimes:
        steps, dense_steps = int(regime.steps), int(regime.dense_steps)
        for index, name in enumerate(regime.spec.sites):
            if not steps or name not in model.masks:
                continue
            total, ordinary = model.masks[name].total, steps - dense_steps
            found.append(
                RunSite(
                    site=name,
                    density=int(regime.kept_sum[index]) / total / steps,
                    ordinary_density=int(regime.sparse_kept_sum[index]) / total / ordinary if ordinary else 0.0,
                    steps=steps,
                    dense_steps=dense_steps,
                )
            )
    return found

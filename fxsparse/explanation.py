"""Why a weight is what it is in a compiled model: the rules, the spec, the passes, the kernel and the costs of one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxsparse.cost_model.cost import PassCost, sum_costs
from fxsparse.cost_model.gemm import PASSES
from fxsparse.passes.base import Change, Skip
from fxsparse.passes.meta import read

from .errors import CostError, FxSparseError
from .quantities import quantity
from .resolve import matches
from .techniques import Technique, closest
from .tree_table import render

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


@dataclass(frozen=True, kw_only=True)
class RuleMatch:
    """A technique of the policy, and what its patterns say of the site: the first that includes it, and the first that excludes it."""

    technique: str
    included_by: str | None
    excluded_by: str | None

    @property
    def selects(self) -> bool:
        """Whether the technique selects the site."""
        return self.included_by is not None and self.excluded_by is None

    def __str__(self) -> str:
        if self.included_by is None:
            return f"{self.technique} does not select it"
        if self.excluded_by is not None:
            return f"{self.technique} leaves it out: exclude={self.excluded_by!r}"
        return f"{self.technique} selects it by {self.included_by!r}"


@dataclass(frozen=True, kw_only=True)
class NodeLine:
    """A node that works for the site: graph and name, what it does there, and the line of the model that it stands for."""

    graph: str
    node: str
    role: str
    line: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All that is known of one site. ``str()`` is text, ``to_dict()`` is JSON-able.

    Attributes:
        site, aliases: names of the parameter. operator, shape, calls: what is done with it, its shape, and how often.
        rules: every technique of the policy, in its order. specs: what they decided for it, as plain data.
        changes, skips: what passes did, and what was left, with reasons. kernel: what computes it.
        nodes: the nodes that work for it. costs: forward, grad_input and grad_weight, summed over its contractions; empty without
            example inputs. saved_bytes: kept for backward by those. sparsity: target and actual density, see ``CompiledModel.sparsity``.
    """

    site: str
    aliases: tuple[str, ...]
    operator: str
    shape: tuple[int, ...]
    calls: int
    rules: tuple[RuleMatch, ...]
    specs: tuple[dict[str, Any], ...]
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    kernel: str
    nodes: tuple[NodeLine, ...]
    costs: Mapping[str, PassCost]
    saved_bytes: int
    sparsity: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {
            **{name: getattr(self, name) for name in ("site", "operator", "calls", "kernel", "saved_bytes")},
            "aliases": list(self.aliases),
            "shape": list(self.shape),
            "rules": [{**asdict(rule), "selects": rule.selects} for rule in self.rules],
            "specs": list(self.specs),
            "changes": [
                {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(c).items()} for c in self.changes
            ],
            "skips": [asdict(skip) for skip in self.skips],
            "nodes": [asdict(node) for node in self.nodes],
            "costs": {name: cost.to_dict() for name, cost in self.costs.items()},
            "sparsity": dict(self.sparsity),
        }

    def __str__(self) -> str:
        also = f", also {', '.join(self.aliases)}" if self.aliases else ""
        times = f"{self.calls} calls" if self.calls != 1 else "1 call"
        lines = [f"{self.site}{also}: {self.operator}, {'x'.join(map(str, self.shape))}, {times}, computed by {self.kernel}"]
        lines += _part("rules", [str(rule) for rule in self.rules] or ["the policy is empty"])
        lines += _part("decided", [", ".join(f"{key} {value}" for key, value in spec.items() if key != "site") for spec in self.specs])
        lines += _part("changed", [f"{change.made_by}: {change.what}, because {change.why}" for change in self.changes])
        lines += _part("left exact", list(dict.fromkeys(skip.reason for skip in self.skips)))
        lines += _part("density", [f"{name} {_densities(row)}" for name, row in self.sparsity.items()])
        lines += _part("nodes", [f"{node.node} ({node.role}){f', {node.line}' if node.line else ''}" for node in self.nodes])
        text = "\n".join(lines) + "\n"
        return text + (f"costs\n{render(self._cost_table())}" if self.costs else "")

    def _cost_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("  pass", "MACs", "dense MACs", "DRAM", "cycles", "energy", "time", "bound"):
            table.add_column(name, justify="left" if name in ("  pass", "bound") else "right")
        for name, cost in {**self.costs, "all": sum_costs(self.costs.values())}.items():
            joules = None if cost.energy_pj is None else cost.energy_pj * 1e-12
            figures = [(cost.cycles, ""), (joules, "J"), (cost.time_s, "s")]
            table.add_row(
                f"  {name}",
                quantity(cost.macs),
                quantity(cost.dense_macs),
                quantity(cost.dram_bytes, "B"),
                *("-" if number is None else quantity(number, unit) for number, unit in figures),
                cost.bound or "-",
            )
        return table


def explain(model: CompiledModel, name: str) -> Explanation:
    """Why a site is what it is; see ``CompiledModel.why``."""
    site = model.sites[_site_named(model, name)]
    places = {path.rpartition(".")[0] for path in (site.name, *site.aliases)} - {""}
    kept = model.kept_plan
    specs = [model.plan[site.name].to_dict()] if site.name in model.plan else []
    specs += [kept.blpa[site.name].to_dict()] if site.name in kept.blpa else []
    specs += [kept.saved[place].to_dict() for place in places if place in kept.saved]
    rows = {row.site: row for row in model.report.sites}
    concerned = {site.name, *places}
    try:
        costs = [node for node in model.cost(model.accelerator).nodes if node.site == site.name and node.contractions]
    except CostError:  # without example inputs there are no shapes
        costs = []
    return Explanation(
        site=site.name,
        aliases=site.aliases,
        operator=site.operator,
        shape=site.shape,
        calls=rows[site.name].calls,
        rules=tuple(_match(technique, site) for technique in model.policy),
        specs=tuple(specs),
        changes=tuple(change for change in model.report.changes if change.site in concerned),
        skips=tuple(skip for skip in model.report.skips if skip.site in concerned),
        kernel=rows[site.name].backend,
        nodes=tuple(_nodes(model, site.name)),
        costs={which: sum_costs(getattr(node, which) for node in costs) for which in PASSES} if costs else {},
        saved_bytes=sum(node.saved_bytes for node in costs),
        sparsity=model.sparsity().get(site.name, {}),
    )


def _site_named(model: CompiledModel, name: str) -> str:
    """The site that a parameter's name, one of its aliases, or the path of its module stands for. Raises: FxSparseError."""
    if name in model.sites:
        return name
    found = [site.name for site in model.sites.values() if name in site.names]
    if len(found) == 1:
        return found[0]
    if found:
        raise FxSparseError(f"{name!r} has {len(found)} sites; name one of {', '.join(map(repr, found))}")
    known = [other for site in model.sites.values() for other in site.names]
    inside = [site for site in model.sites if site.startswith(f"{name}.")]
    instance = f"; in it are {', '.join(map(repr, inside[:3]))}" if inside else ""
    raise FxSparseError(f"there is no site {name!r}{instance or closest(name, known)}; compiled.sites lists all {len(model.sites)}")


def _match(technique: Technique, site: Any) -> RuleMatch:
    """What a technique's patterns say of a site, or of its module."""
    included = next((pattern for pattern in technique.include if matches(pattern, site)), None)
    excluded = next((pattern for pattern in technique.exclude if matches(pattern, site)), None)
    settings = ", ".join(f"{key}={value!r}" for key, value in technique.to_dict().items() if key not in ("technique", "include", "exclude"))
    return RuleMatch(technique=f"{technique.title}({settings})", included_by=included, excluded_by=excluded)


def _nodes(model: CompiledModel, site: str) -> list[NodeLine]:
    found = []
    for path, gm in model.graphs.items():
        for node in gm.graph.nodes:
            facts = read(node)
            if facts.get("site") == site:
                found.append(NodeLine(graph=path, node=node.name, role=facts.get("role", ""), line=facts.get("line", "")))
    return found


def _part(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)] if lines else []


def _densities(row: Mapping[str, Any]) -> str:
    if row["actual"] is None:
        return f"target {row['target']:.4f}, not counted yet"
    counts = "" if row["kept"] is None else f" ({row['kept']:,} of {row['total']:,})"
    return f"target {row['target']:.4f}, actual {row['actual']:.4f}{counts}"

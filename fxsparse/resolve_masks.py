"""From a mask technique and the sites that it selects to specs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxsparse.passes.base import Skip
from fxsparse.passes.distributions import erdos_renyi, uniform
from fxsparse.passes.masks.criteria import Magnitude, criterion_of
from fxsparse.passes.masks.schedules import CosineExchange, CubicPruning
from fxsparse.passes.masks.specs import MaskSpec, RegimeSpec
from fxsparse.passes.masks.structures import Elements, OfEvery, Slices, Structure
from fxsparse.passes.sites import Site

from .errors import PolicyError
from .mask_techniques import GMP, NM, SET, GraNet, MaskTechnique, RigL, StaticMask

GRANET_FLOOR = 0.005
CLASSIFIER_DENSITY = 0.2


@dataclass
class MaskPlan:
    """The masks of all techniques of a policy, by site, and what moves them, one regime for each technique."""

    specs: dict[str, MaskSpec] = field(default_factory=dict)
    regimes: list[RegimeSpec] = field(default_factory=list)

    def add(
        self, technique: MaskTechnique, chosen: Sequence[str], sites: Mapping[str, Site], weights: Mapping[str, torch.Tensor]
    ) -> list[Skip]:
        """Plans a technique for the sites that were chosen. Returns those that it cannot mask after all, with the reason.

        Raises:
            PolicyError: it can mask none of them, or would leave one of them without a weight.
        """
        structures, skips = _structures(technique, chosen, sites)
        if isinstance(technique, StaticMask) and technique.start == "weights":
            for name in [name for name in structures if not bool((weights[name] == 0).any())]:
                skips.append(Skip(site=name, reason="none of its weights is zero"))
                del structures[name]
        if not structures:
            reasons = "; ".join(dict.fromkeys(skip.reason for skip in skips)) or "nothing was selected"
            raise PolicyError(f"{technique.title} can mask none of the weights that it selects: {reasons}")
        kept = _kept(technique, structures, sites, weights)
        regime = _regime(technique, tuple(structures), sites)
        start, through = _start(technique), isinstance(technique, NM) and technique.straight_through
        for name, structure in structures.items():
            total = sites[name].elements
            self.specs[name] = MaskSpec(
                site=name,
                technique=technique.title,
                regime=len(self.regimes),
                kept=kept[name],
                total=total,
                start=start,
                structure=structure,
                least=int(total * CLASSIFIER_DENSITY) if _is_classifier(technique, name, tuple(structures), sites) else 0,
                straight_through=through,
                decay=float(technique.decay) if isinstance(technique, NM) else 0.0,
            )
        self.regimes.append(regime)
        return skips


def _start(technique: MaskTechnique) -> str:
    if isinstance(technique, (GraNet, GMP)):
        return "random" if technique.initial_sparsity else "dense"
    if isinstance(technique, NM):
        return "magnitude"
    return technique.start if isinstance(technique, StaticMask) else "random"


def _is_classifier(technique: MaskTechnique, name: str, names: tuple[str, ...], sites: Mapping[str, Site]) -> bool:
    return isinstance(technique, GraNet) and technique.scope == "layer" and name == names[-1] and sites[name].operator == "linear"


def _structures(technique: MaskTechnique, chosen: Sequence[str], sites: Mapping[str, Site]) -> tuple[dict[str, Structure], list[Skip]]:
    found: dict[str, Structure] = {}
    skips: list[Skip] = []
    kind = getattr(technique, "structure", "element")
    for name in chosen:
        site = sites[name]
        if kind == "element" and not isinstance(technique, NM):
            found[name] = Elements()
        elif any(call.chained for call in site.calls):
            shape = "N:M" if isinstance(technique, NM) else f"structure {kind!r}"
            skips.append(
                Skip(site=name, reason=f"{shape} needs the weight as it is stored, and it is viewed otherwise before its contraction")
            )
        elif isinstance(technique, NM):
            axis, length = _input_axis(site)
            if length % technique.m:
                reason = f"its input axis has {length} elements, not a multiple of {technique.m}"
                skips.append(Skip(site=name, reason=reason))
            else:
                found[name] = OfEvery(technique.n, technique.m, axis)
        else:
            found[name] = _slices(kind, site)
    return found, skips


def _input_axis(site: Site) -> tuple[int, int]:
    """The dimension of the weight that runs over input channels, and how many of them follow each other in one group."""
    split = site.groups > 1
    first = min(site.contracted)
    return (0, site.shape[0] // site.groups) if split else (first, site.shape[first])


def _slices(kind: str, site: Site) -> Structure:
    split = 1 if site.groups > 1 else 0
    if kind == "filter":
        return Slices("filter", site.contracted, site.groups)
    if site.operator in ("conv", "conv_transpose"):
        return Slices("kernel", tuple(range(2 + split, len(site.shape) + split)), site.groups)
    return Elements()


def _kept(
    technique: MaskTechnique, structures: Mapping[str, Structure], sites: Mapping[str, Site], weights: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """Elements that each mask keeps at the start."""
    shapes = {name: sites[name].shape for name in structures}
    if isinstance(technique, NM):
        return {name: math.prod(shape) // technique.m * technique.n for name, shape in shapes.items()}
    if isinstance(technique, StaticMask) and technique.start == "weights":
        return {name: int((weights[name] != 0).sum()) for name in structures}
    sparsity = float(getattr(technique, "sparsity", getattr(technique, "initial_sparsity", 0.0)))
    distribution = str(getattr(technique, "distribution", "uniform"))
    units = {name: structure.unit(shapes[name]) for name, structure in structures.items()}
    if all(unit == 1 for unit in units.values()):
        kept = uniform(shapes, sparsity) if distribution == "uniform" else erdos_renyi(shapes, sparsity, kernel=distribution == "erk")
    else:
        kept = _kept_units(shapes, units, sparsity, distribution)
    empty = [name for name, count in kept.items() if count == 0]
    if empty:
        raise PolicyError(f"{technique.title} at sparsity {sparsity} keeps no weight at all in {empty[0]!r}; lower the sparsity")
    return kept


def _kept_units(shapes: Mapping[str, tuple[int, ...]], units: Mapping[str, int], sparsity: float, distribution: str) -> dict[str, int]:
    """Elements kept where they are kept in units of several: whole units, as near to the distribution as they come."""
    exact = uniform(shapes, sparsity) if distribution == "uniform" else erdos_renyi(shapes, sparsity, kernel=distribution == "erk")
    return {name: max(1, round(exact[name] / units[name])) * units[name] for name in shapes}


def _regime(technique: MaskTechnique, names: tuple[str, ...], sites: Mapping[str, Site]) -> RegimeSpec:
    common: dict[str, Any] = {"technique": technique.title, "settings": technique.to_dict(), "sites": names, "seed": technique.seed}
    if isinstance(technique, (GraNet, GMP)):
        common["pruning"] = CubicPruning(
            initial=technique.initial_sparsity,
            final=technique.final_sparsity,
            begin=technique.begin,
            end=technique.end,
            interval=technique.interval,
            to_the_end=technique.to_the_end,
        )
        common |= {"scope": technique.scope, "drop": Magnitude()}
    if isinstance(technique, GraNet):
        start, floor, end, interval = technique.prune_rate, GRANET_FLOOR, technique.total_steps, technique.interval
    elif isinstance(technique, (RigL, SET)):
        start, floor, end, interval = technique.drop_fraction, 0.0, technique.end, technique.interval
    else:
        refresh = isinstance(technique, NM) and technique.straight_through
        return RegimeSpec(**common, refresh=refresh)
    common |= {"drop": criterion_of(technique.drop), "grow": criterion_of(technique.grow), "regrow": technique.regrow}
    return RegimeSpec(**common, exchange=CosineExchange(start=start, floor=floor, end=end, interval=interval))

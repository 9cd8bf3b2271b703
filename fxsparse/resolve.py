"""From a policy and a model's sites to a plan. Every mistake of the user's is found here, before any graph is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import torch

from fxsparse.passes.base import Skip
from fxsparse.passes.distributions import erdos_renyi, kept
from fxsparse.passes.sites import Site
from fxsparse.passes.specs import SwatSpec

from .errors import PolicyError
from .mask_techniques import MaskTechnique
from .policy import Policy
from .resolve_masks import MaskPlan
from .techniques import SWAT, Technique, closest


@dataclass(frozen=True)
class Plan:
    """What is to be done: an immutable mapping from site to spec, the masks, and what the rules left out, with reasons."""

    specs: Mapping[str, SwatSpec]
    skips: tuple[Skip, ...]
    masks: MaskPlan = field(default_factory=MaskPlan)


def resolve(policy: Policy, sites: Mapping[str, Site], order: Sequence[str], weights: Mapping[str, torch.Tensor]) -> Plan:
    """The plan for a policy.

    Args:
        sites: by name. order: their names in the order of execution. weights: the parameters by qualified name.

    Raises:
        PolicyError: a pattern matches nothing, two techniques want one weight, or a selected weight cannot be sparsified
            because of the state that the model is in.
    """
    specs: dict[str, SwatSpec] = {}
    masks = MaskPlan()
    skips: list[Skip] = []
    owners: dict[tuple[str, str], Technique] = {}
    for technique in policy:
        if not isinstance(technique, (SWAT, MaskTechnique)):
            continue
        selected = select(technique, sites)
        if technique.is_neutral:
            continue
        for name in selected:
            for what in _claims(technique):
                if (name, what) in owners:
                    raise PolicyError(
                        f"two techniques want the {what} {name!r}: {owners[name, what]!r} and {technique!r}; "
                        "exclude it from one of them (exclude=(...,))"
                    )
                owners[name, what] = technique
        chosen, left = _usable(technique, selected, sites, order, weights)
        _refuse_overlaps(technique, [*specs, *masks.specs, *chosen], weights)
        skips += left
        if isinstance(technique, SWAT):
            specs.update(_swat_specs(technique, chosen, sites))
        else:
            skips += masks.add(technique, [name for name in order if name in set(chosen)], sites, weights)
    return Plan(MappingProxyType(specs), tuple(skips), masks)


def _claims(technique: SWAT | MaskTechnique) -> tuple[str, ...]:
    """What of a site a technique wants for itself: "weight", "activations of"."""
    if not isinstance(technique, SWAT):
        return ("weight",)
    weight = technique.weight_sparsity > 0 or technique.distribution == "momentum"
    return (*(("weight",) if weight else ()), "activations of")


class Selectable(Protocol):
    """Something that patterns select."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def module_types(self) -> tuple[str, ...]: ...


def select(technique: Technique, sites: Mapping[str, Selectable]) -> list[str]:
    """Names of the sites (or places) that a technique's patterns select.

    Raises:
        PolicyError: a pattern matches no site, or all that is included is excluded again.
    """
    for pattern in (*technique.include, *technique.exclude):
        if not any(matches(pattern, site) for site in sites.values()):
            if pattern == "*" and not sites:
                raise PolicyError(f"{technique.title} has nothing to do: no contraction with a parameter was found in the model")
            raise PolicyError(_no_match(technique, pattern, sites))
    included = [name for name, site in sites.items() if any(matches(pattern, site) for pattern in technique.include)]
    selected = [name for name in included if not any(matches(pattern, sites[name]) for pattern in technique.exclude)]
    if not selected:
        raise PolicyError(
            f"{technique.title} selects nothing: all of the {len(included)} contractions that include={technique.include!r} matches are "
            f"excluded again by exclude={technique.exclude!r}"
        )
    return selected


def matches(pattern: str, site: Selectable) -> bool:
    """Whether a pattern selects a site, by parameter name, module name or "type:ClassName"."""
    if pattern.startswith("type:"):
        return any(fnmatchcase(kind, pattern[5:]) for kind in site.module_types)
    return any(fnmatchcase(name, pattern) for name in site.names)


def _no_match(technique: Technique, pattern: str, sites: Mapping[str, Selectable]) -> str:
    if pattern.startswith("type:"):
        kinds = sorted({site.module_types[0] for site in sites.values() if site.module_types})
        near = [f"type:{kind}" for kind in kinds]
    else:
        near = sorted({name for site in sites.values() for name in site.names})
    hint = closest(pattern, near)
    known = "" if hint else f"; sites are, for instance, {', '.join(map(repr, near[:5]))}"
    return f"{technique.title}: the pattern {pattern!r} matches no contraction of the model{hint}{known}"


def _usable(
    technique: SWAT | MaskTechnique,
    selected: Sequence[str],
    sites: Mapping[str, Site],
    order: Sequence[str],
    weights: Mapping[str, torch.Tensor],
) -> tuple[list[str], list[Skip]]:
    chosen, skips = [], []
    first = next(iter(order), None)
    for name in selected:
        site = sites[name]
        if site.defect is not None:
            raise PolicyError(
                f"{technique.title} selects {name!r}, but {site.defect}; remove that first "
                f"(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm) or exclude it (exclude=({site.module!r},))"
            )
        reason = _reason_to_skip(technique, site, is_first=name == first, weight=weights[name])
        if reason is None:
            chosen.append(name)
        else:
            skips.append(Skip(site=name, reason=reason))
    return chosen, skips


def _reason_to_skip(technique: SWAT | MaskTechnique, site: Site, *, is_first: bool, weight: torch.Tensor) -> str | None:
    if isinstance(technique, SWAT) and technique.dense_first and is_first:
        return "first contraction of the model, kept dense (dense_first)"
    if not site.trainable:
        return "frozen: its weight needs no gradient"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not a real floating-point type"
    problems = {call.problem for call in site.calls}
    if None not in problems:
        return next(problem for problem in problems if problem is not None)
    if isinstance(technique, SWAT) and technique.structure != "element" and any(call.chained for call in site.calls):
        return f"structure {technique.structure!r} needs the weight as it is stored, and it is viewed otherwise before its contraction"
    return None


def _refuse_overlaps(technique: Technique, chosen: Sequence[str], weights: Mapping[str, torch.Tensor]) -> None:
    """Different parameters over the same memory would be sparsified twice."""
    ranges = []
    for name in dict.fromkeys(chosen):
        weight = weights[name]
        if weight.numel() and type(weight.data) is torch.Tensor and weight.device.type != "meta":
            span = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)) + 1
            ranges.append((weight.device, weight.data_ptr(), weight.data_ptr() + span * weight.element_size(), name))
    ranges.sort(key=lambda item: (str(item[0]), item[1]))
    for (device, _, end, name), (other_device, start, _, other) in pairwise(ranges):
        if device == other_device and start < end:
            raise PolicyError(
                f"{technique.title} selects {name!r} and {other!r}, two parameters that share memory; "
                f"make them one Parameter (module.weight = other.weight), or exclude one of them"
            )


def _swat_specs(technique: SWAT, chosen: Sequence[str], sites: Mapping[str, Site]) -> dict[str, SwatSpec]:
    shapes = {name: sites[name].shape for name in chosen}
    sparsity = technique.weight_sparsity
    if technique.distribution in ("er", "erk"):
        elements = erdos_renyi(shapes, sparsity, kernel=technique.distribution == "erk")
        if 0 in elements.values():
            raise PolicyError(
                f"{technique.title} at weight_sparsity={sparsity} keeps {sum(elements.values())} weights in {len(elements)} layers, "
                f"none in {next(name for name, count in elements.items() if count == 0)!r}; lower the sparsity"
            )
    else:
        elements = {name: kept(1.0 - sparsity, math.prod(shape)) for name, shape in shapes.items()}
    return {name: _swat_spec(technique, sites[name], elements[name]) for name in chosen}


def _swat_spec(technique: SWAT, site: Site, elements_kept: int) -> SwatSpec:
    reduce_dims = score_dims(technique.structure, site)
    split = (site.groups, site.shape[0] // site.groups, *site.shape[1:]) if site.groups > 1 else site.shape
    scores = math.prod(size for index, size in enumerate(split) if index not in reduce_dims)
    uniform = technique.distribution in ("uniform", "momentum")
    density = 1.0 - technique.weight_sparsity if uniform else elements_kept / site.elements
    weight_kept = elements_kept if not reduce_dims else kept(density, scores)
    own = technique.activation_sparsity
    is_conv = site.operator in ("conv", "conv_transpose")
    period = technique.period if is_conv else technique.linear_period
    return SwatSpec(
        site=site.name,
        weight_kept=weight_kept,
        weight_scores=scores,
        activation_sparsity=(technique.weight_sparsity if uniform else 1.0 - density) if own is None else own,
        structure=technique.structure,
        granularity=technique.granularity,
        distribution=technique.distribution,
        weight_period=1 if technique.structure != "element" else period,
        activation_period=period,
        reduce_dims=reduce_dims,
        groups=site.groups if reduce_dims else 1,
        follows_momentum=technique.distribution == "momentum",
        activation_follows_weight=own is None,
    )


def score_dims(structure: str, site: Site) -> tuple[int, ...]:
    """Dimensions of the weight (its first one split into groups) over which one score is an L1 norm."""
    if structure == "filter":
        return site.contracted
    if structure == "kernel" and site.operator in ("conv", "conv_transpose"):
        split = 1 if site.groups > 1 else 0
        return tuple(range(2 + split, len(site.shape) + split))
    return ()

"""From a policy to what is kept for backward: BLPA's contractions, and the places of SavedActivations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxsparse.passes.saving.places import Place
from fxsparse.passes.sites import Site
from fxsparse.passes.specs_saved import BlpaSpec, SavedSpec

from .errors import PolicyError
from .policy import Policy
from .resolve import select
from .techniques import BLPA, SavedActivations


@dataclass(frozen=True)
class SavedPlan:
    """What is to be kept: a spec for each contraction that BLPA selects, by its weight's name, and for each place, by its name."""

    blpa: Mapping[str, BlpaSpec] = field(default_factory=dict)
    saved: Mapping[str, SavedSpec] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.blpa or self.saved)


def resolve_saved(policy: Policy, sites: Mapping[str, Site], places: Mapping[str, Place]) -> SavedPlan:
    """The plan for a policy.

    Raises:
        PolicyError: a pattern matches nothing, or two techniques of one kind select the same.
    """
    blpa: dict[str, BlpaSpec] = {}
    saved: dict[str, SavedSpec] = {}
    for technique in policy:
        if isinstance(technique, BLPA):
            for name in select(technique, sites):
                if name in blpa:
                    raise PolicyError(f"two BLPA techniques select {name!r}; exclude it from one of them (exclude=(...,))")
                blpa[name] = BlpaSpec(site=name, bits=technique.bits)
        elif isinstance(technique, SavedActivations):
            for name in select(technique, places):
                if name in saved:
                    raise PolicyError(f"two SavedActivations techniques select {name!r}; exclude it from one of them (exclude=(...,))")
                saved[name] = SavedSpec(site=name, bits=technique.bits, group_size=technique.group_size, rounding=technique.rounding)
    return SavedPlan(blpa, saved)

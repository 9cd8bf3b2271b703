"""What happens to each candidate MAC on hardware that sees zeros: computed, gated (time but little energy) or skipped (neither)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .validate import require_density


@dataclass(frozen=True, kw_only=True)
class Actions:
    """Expected counts of MACs by what the hardware does with them; the three sum to the candidates."""

    computed: float
    gated: float
    skipped: float

    @property
    def timed(self) -> float:
        """MACs that take a cycle of a multiplier: computed and gated ones."""
        return self.computed + self.gated


def split_macs(candidates: float, *, densities: Mapping[str, float], skip: Collection[str], gate: Collection[str]) -> Actions:
    """How many of the candidate MACs are computed, gated and skipped.

    densities: kept fraction of each operand by name, independent of one another. A MAC is skipped when an operand in `skip` is
    zero, else gated when one in `gate` is. Source: Sparseloop's gating and skipping, counting argument.
    """
    timed = computed = 1.0
    for operand, density in densities.items():
        kept = require_density(f"density of {operand}", density)
        if operand in skip:
            timed *= kept
            computed *= kept
        elif operand in gate:
            computed *= kept
    return Actions(computed=candidates * computed, gated=candidates * (timed - computed), skipped=candidates * (1.0 - timed))

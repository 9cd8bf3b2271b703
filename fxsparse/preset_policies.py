"""Policies with names."""

from __future__ import annotations

from .errors import PolicyError
from .policy import Policy
from .techniques import SWAT, closest


def _swat_presets() -> dict[str, Policy]:
    made = {}
    for percent in (50, 60, 70, 80, 90, 95):
        sparsity = percent / 100
        made[f"swat-u-{percent}"] = Policy(SWAT(weight_sparsity=sparsity))
        made[f"swat-erk-{percent}"] = Policy(SWAT(weight_sparsity=sparsity, distribution="erk", dense_first=False))
        made[f"swat-structured-{percent}"] = Policy(SWAT(weight_sparsity=sparsity, structure="kernel"))
        made[f"swat-m-{percent}"] = Policy(SWAT(weight_sparsity=sparsity, distribution="momentum", dense_first=False))
    return made


_PRESETS = _swat_presets()


def presets() -> tuple[str, ...]:
    """The names of the policies that ``compile`` accepts as text."""
    return tuple(_PRESETS)


def preset_policy(name: str) -> Policy:
    """The policy behind a preset's name.

    Raises:
        PolicyError: there is none of that name.
    """
    if name not in _PRESETS:
        raise PolicyError(f"there is no preset {name!r}{closest(name, _PRESETS)}; presets: {', '.join(_PRESETS)}")
    return _PRESETS[name]

"""Policies with names."""

from __future__ import annotations

from .errors import PolicyError
from .mask_techniques import NM, GraNet, RigL, StaticMask
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


# The published schedules: GraNet on CIFAR, 160 epochs of 391 steps, pruned over the first 80; RigL on ImageNet, 32000 steps.
_GRANET_STEPS, _RIGL_END = 160 * 391, 25_000


def _mask_presets() -> dict[str, Policy]:
    made = {}
    for percent in (80, 90, 95):
        sparsity = percent / 100
        granet = GraNet(initial_sparsity=0.5, final_sparsity=sparsity, begin=0, end=_GRANET_STEPS // 2, total_steps=_GRANET_STEPS)
        made[f"granet-{percent}"] = Policy(granet)
        made[f"rigl-{percent}"] = Policy(RigL(sparsity=sparsity, end=_RIGL_END))
        made[f"static-erk-{percent}"] = Policy(StaticMask(sparsity=sparsity))
    made["nm-2-4"] = Policy(NM(2, 4))
    return made


_PRESETS = {**_swat_presets(), **_mask_presets()}


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

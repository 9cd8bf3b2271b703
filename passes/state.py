"""The state that fxsparse adds to a model: the clock, and thresholds and densities of each site, all of it in buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fxsparse.errors import PolicyError

from .host_buffers import HostBuffers
from .masks.apply import empty_trust
from .masks.specs import MaskSpec, RegimeSpec
from .masks.start import first_mask
from .masks.state import RegimeState
from .specs import SwatSpec

STATE = "fxsparse"


class Clock(HostBuffers):
    """Counts forward passes in training.

    Buffers:
        steps: int64, how many training forwards there were.
        now: int64, this forward's number, or -1 when nothing may be selected anew (eval mode, or no gradient wanted).
    """

    on_host = frozenset({"steps", "now"})

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("now", torch.full((), -1, dtype=torch.int64), persistent=False)

    steps: torch.Tensor
    now: torch.Tensor

    def advance(self, live: bool) -> None:
        """Begins a forward pass; a live one is counted."""
        if live:
            self.now.copy_(self.steps)
            self.steps.add_(1)
        else:
            self.now.fill_(-1)


class SiteState(HostBuffers):
    """Thresholds (NaN until first selected) and densities of one weight and its activations.

    Buffers: ``mask`` (bool, of the weight's shape, in place of a threshold) and ``trust`` (see ``masks.apply``);
    ``weight_threshold``, ``weight_density``; for the i-th call ``activation_threshold_i``, ``activation_counts_i``
    (non-zeros and elements at the last selection); ``activation_density``.
    """

    on_host = frozenset({"weight_density", "activation_density", "trust"})

    def __init__(
        self, spec: SwatSpec | None, activation_shapes: Iterable[tuple[int, ...]], device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        dtype = torch.promote_types(dtype, torch.float32)
        if spec is None:
            return
        if spec.sparsifies_weight:
            self.register_buffer("weight_threshold", torch.full((), torch.nan, dtype=dtype, device=device))
            self.register_buffer("weight_density", torch.tensor(spec.weight_density, dtype=torch.float64))
        if spec.sparsifies_activation:
            self.register_buffer("activation_density", torch.tensor(spec.activation_density, dtype=torch.float64))
            for index, shape in enumerate(activation_shapes):
                self.register_buffer(f"activation_threshold_{index}", torch.full(shape, torch.nan, dtype=dtype, device=device))
                self.register_buffer(f"activation_counts_{index}", torch.zeros(2, dtype=torch.int64, device=device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found, own = state_dict.get(f"{prefix}mask"), self._buffers.get("mask")
        if found is not None and own is not None:
            _require_alike(found, own, prefix.removeprefix(f"{STATE}.sites.").rstrip("."))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _require_alike(found: Any, own: Any, site: str) -> None:
    """Raises PolicyError if a mask in a checkpoint is divided among other ranks than the model's."""
    saved, here = (tensor.device_mesh.size() if hasattr(tensor, "device_mesh") else 1 for tensor in (found, own))
    if saved == here:
        return
    was = f"was saved on {saved} ranks, each with its part of it," if saved > 1 else "is whole in the checkpoint"
    now = f"is divided among {here} ranks here" if here > 1 else "is whole here"
    raise PolicyError(
        f"the mask of {site!r} {was} and {now}: a state_dict does not move between numbers of ranks. Save and load it with "
        "torch.distributed.checkpoint (dcp.save, dcp.load), which does, or with its set_model_state_dict and full_state_dict=True"
    )


class AddedState(nn.Module):
    """All of it: ``clock``, under ``sites`` a SiteState where the weight's qualified name says, and the ``regimes`` of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sites = nn.Module()

    regimes: nn.ModuleList

    def add(self, site: str, state: SiteState) -> None:
        """Puts a site's state at its place."""
        holder = self.sites
        *parents, last = site.split(".")
        for name in parents:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            inner = holder._modules[name]
            assert inner is not None
            holder = inner
        holder.add_module(last, state)

    def host_buffer_names(self) -> list[str]:
        """Names of the buffers that stay on the CPU."""
        found = []
        for path, module in self.named_modules():
            if isinstance(module, HostBuffers):
                found += [f"{path}.{name}" for name in module._buffers if name in module.on_host]
        return found

    def forget_trust(self) -> None:
        """Takes back what was noted about weights, on a copy whose weights are others."""
        for module in self.modules():
            if isinstance(module, SiteState) and "trust" in module._buffers:
                module.get_buffer("trust").fill_(-1)

    def site(self, name: str) -> SiteState | None:
        """A site's state, None if it has none."""
        holder: Any = self.sites
        for part in name.split("."):
            holder = holder._modules.get(part)
            if holder is None:
                return None
        return holder if isinstance(holder, SiteState) else None


def state_target(site: str, buffer: str) -> str:
    """The get_attr target of a site's buffer."""
    return f"{STATE}.sites.{site}.{buffer}"


def regime_target(index: int, buffer: str) -> str:
    """The get_attr target of a regime's buffer."""
    return f"{STATE}.regimes.{index}.{buffer}"


CLOCK_TARGET = f"{STATE}.clock.now"


def sites_state(
    specs: Mapping[str, SwatSpec], shapes: Mapping[str, list[tuple[int, ...]]], weights: Mapping[str, torch.Tensor]
) -> AddedState:
    """The state for resolved specs, given the shape of each call's activation threshold."""
    state = AddedState()
    for name, spec in specs.items():
        state.add(name, SiteState(spec, shapes.get(name, []), weights[name].device, weights[name].dtype))
    return state


def add_masks(state: AddedState, specs: Mapping[str, MaskSpec], regimes: Iterable[RegimeSpec], weights: Mapping[str, torch.Tensor]) -> None:
    """Adds the masks, as they are at the start, and the regimes that move them."""
    made, seeds = nn.ModuleList(), []
    for regime in regimes:
        seeds.append(regime.seed)
        made.append(RegimeState(regime, [specs[name].kept for name in regime.sites]))
    if made:
        state.add_module("regimes", made)
    for name, spec in specs.items():
        site = state.site(name)
        if site is None:
            site = SiteState(None, (), weights[name].device, weights[name].dtype)
            state.add(name, site)
        site.register_buffer("mask", first_mask(spec, weights[name], seeds[spec.regime]))
        site.register_buffer("trust", empty_trust(), persistent=False)

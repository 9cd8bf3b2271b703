"""What happens after an optimizer's step: densities that follow the momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fxsparse.passes.distributions import kept
from fxsparse.passes.state import SiteState

from .errors import PolicyError
from .optimizer_state import momentum_of

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

_SATURATION = 0.99


class Attachment:
    """The tie between a compiled model and an optimizer. ``remove()`` cuts it."""

    def __init__(self, model: CompiledModel, handle: Any, remove_masks: Callable[[], None] | None = None) -> None:
        self._model = model
        self._handle = handle
        self._remove_masks = remove_masks

    def remove(self) -> None:
        """Schedules no longer advance with the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            if self._remove_masks is not None:
                self._remove_masks()
            self._model.__dict__["_attached"] -= 1
            self._handle = None


def attach(model: CompiledModel, optimizer: torch.optim.Optimizer, *, compare_ranks: bool = True) -> Attachment:
    """Registers hooks around the optimizer's steps; see ``CompiledModel.attach``."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PolicyError(f"attach takes a torch.optim.Optimizer, got {type(optimizer).__name__}")
    sites = [name for name, spec in model.swat.items() if spec.follows_momentum]
    if sites:
        _require_momentum(model, optimizer, sites)
    remove_masks = model.machine().attach(optimizer, compare_ranks=compare_ranks) if model.masks else None

    def after_step(stepped: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if sites:
            _follow_momentum(model, stepped, sites)

    handle = optimizer.register_step_post_hook(after_step)
    model.__dict__["_attached"] += 1
    return Attachment(model, handle, remove_masks)


def _require_momentum(model: CompiledModel, optimizer: torch.optim.Optimizer, sites: list[str]) -> None:
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for name in sites:
        group = groups.get(id(model.get_parameter(name)))
        if group is None:
            raise PolicyError(f"distribution='momentum': the optimizer does not train {name!r}; build it from compiled.parameters()")
        if not group.get("momentum") and "betas" not in group:
            raise PolicyError(
                f"distribution='momentum': {type(optimizer).__name__} keeps no momentum for {name!r}; "
                "use SGD with momentum > 0, or an optimizer of the Adam family"
            )


@torch.no_grad()
def _follow_momentum(model: CompiledModel, optimizer: torch.optim.Optimizer, sites: list[str]) -> None:
    """Moves density to the layers whose kept weights have the largest mean momentum. Source: Raihan & Aamodt 2020, SWAT-M.

    A layer that was not used or not stepped so far keeps the density that it has.
    """
    means, sizes = {}, {}
    budget = sum(model.swat[name].weight_kept for name in sites)
    for name in sites:
        weight, state = model.get_parameter(name), _state(model, name)
        kept_of_it = optimizer.state.get(weight, {})
        momentum = momentum_of(kept_of_it)
        if momentum is None and kept_of_it:
            raise PolicyError(
                f"distribution='momentum': {type(optimizer).__name__} keeps {sorted(kept_of_it)} for {name!r}, none of which can be read "
                "as a momentum; use SGD with momentum > 0, or an optimizer of the Adam family"
            )
        if momentum is None or bool(state.get_buffer("weight_threshold").isnan()):
            budget -= kept(float(state.get_buffer("weight_density")), weight.numel())
            continue
        active = weight.abs() >= state.get_buffer("weight_threshold")
        means[name] = float(momentum.abs()[active].mean()) if bool(active.any()) else 0.0
        sizes[name] = weight.numel()
    if not all(map(_is_finite, means.values())) or not sum(means.values()):
        return
    for name, count in momentum_counts(means, sizes, budget).items():
        state = _state(model, name)
        state.get_buffer("weight_density").fill_(count / sizes[name])
        if model.swat[name].sparsifies_activation and model.swat[name].activation_follows_weight:
            state.get_buffer("activation_density").fill_(count / sizes[name])


def momentum_counts(means: dict[str, float], sizes: dict[str, int], budget: int) -> dict[str, int]:
    """Weights kept in each layer: shares of the budget in proportion to the layer's mean momentum.

    A layer whose share is above 0.99 of its size becomes dense; the difference is spread over the others in equal parts. Every
    layer keeps at least one weight. The counts sum to ``budget`` if it lies between the number of layers and of weights.
    """
    total = sum(means.values())
    counts = {name: max(1, kept(means[name] / total, budget)) for name in sizes}
    dense: set[str] = set()
    while True:
        over = {name for name in sizes if name not in dense and counts[name] > _SATURATION * sizes[name]}
        if not over and sum(counts.values()) == budget:
            return counts
        dense |= over
        counts.update({name: sizes[name] for name in dense})
        if not _balance(counts, sizes, [name for name in sizes if name not in dense], budget):
            _balance(counts, sizes, list(dense), budget)
            return counts


def _balance(counts: dict[str, int], sizes: dict[str, int], free: list[str], budget: int) -> bool:
    """Adds to or takes from the counts of some layers in equal parts, until all sum to the budget; whether they do."""
    while rest := budget - sum(counts.values()):
        step = 1 if rest > 0 else -1
        room = {name: sizes[name] - counts[name] if rest > 0 else counts[name] - 1 for name in free}
        able = [name for name in free if room[name] > 0]
        if not able:
            return False
        share, more = divmod(abs(rest), len(able))
        for index, name in enumerate(able):
            counts[name] += step * min(room[name], share + (index < more))
    return True


def _is_finite(number: float) -> bool:
    return number == number and abs(number) != float("inf")


def _state(model: CompiledModel, name: str) -> SiteState:
    state = model.fxsparse.site(name)
    assert state is not None
    return state

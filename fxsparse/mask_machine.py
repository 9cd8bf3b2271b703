"""What moves masks: after each optimizer step weights are masked, steps are counted, and where it is due masks change.

A step passes through three places. The graph masks weights and their gradients; on a growing step it lets the gradients of masked
weights pass too, so that ``weight.grad`` is dense, summed over accumulation and reduced over ranks as any gradient is. The hook
before the step takes them away again from optimizers in which one element's gradient reaches others. The hook after the step puts
weights and state of masked elements back, counts, changes the masks, and says whether the next step is a growing one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from fxsparse.passes.masks.selection import Ranks
from fxsparse.passes.masks.state import RegimeState
from fxsparse.passes.masks.update import Masked, exchange, keep_largest

from .errors import PolicyError
from .masked_site import MaskedSite
from .optimizer_state import group_of, refuse_unreadable
from .ranks import are_several, fingerprint, require_same_masks, sharers_of

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

CLASSIFIER_FROM = 0.8


class _Binding:
    """An optimizer and the masked weights that it trains.

    Attributes:
        has_closure: whether this step computes its gradients itself.
    """

    def __init__(self, optimizer: Optimizer, sites: list[MaskedSite]) -> None:
        self.optimizer = optimizer
        self.sites = sites
        self.regimes = sorted({site.spec.regime for site in sites})
        self.has_closure = False
        self.handles: list[Any] = []


class MaskMachine:
    """Moves the masks of a compiled model along with the optimizers that are attached to it."""

    def __init__(self, model: CompiledModel) -> None:
        self._model = model
        self._sites = {name: MaskedSite(model, name, number) for number, name in enumerate(model.masks)}
        self._bindings: list[_Binding] = []
        self._stepped: dict[int, set[int]] = {}
        self._compares_ranks = True

    @property
    def attached(self) -> set[str]:
        """The masked weights that have an optimizer."""
        return {site.name for binding in self._bindings for site in binding.sites}

    # Attaching

    def attach(self, optimizer: Optimizer, *, compare_ranks: bool) -> Callable[[], None]:
        """Registers the hooks of an optimizer. Returns what removes them; see ``CompiledModel.attach``."""
        sites = [site for site in self._sites.values() if group_of(optimizer, site.weight) is not None]
        self._refuse(optimizer, sites)
        for site in sites:
            site.bind(optimizer)
        for regime in self._model.regimes:
            regime.require_own(int(regime.fingerprint))
        self._compares_ranks = compare_ranks and are_several()
        if self._compares_ranks:
            self._require_same_masks("when the optimizer is attached")
        binding = _Binding(optimizer, sites)
        binding.handles = [
            optimizer.register_step_pre_hook(lambda _optimizer, args, kwargs: self._before_step(binding, (*args, *kwargs.values()))),
            optimizer.register_step_post_hook(lambda *_: self._after_step(binding)),
        ]
        self._bindings.append(binding)
        self._update_readiness()
        return lambda: self._remove(binding)

    def _refuse(self, optimizer: Optimizer, sites: list[MaskedSite]) -> None:
        if not sites:
            raise PolicyError(
                f"{type(optimizer).__name__} does not hold any of the {len(self._sites)} masked weights; build it from "
                "compiled.parameters() (after fully_shard, where that is used)"
            )
        twice = [site.name for site in sites if site.name in self.attached]
        if twice:
            raise PolicyError(
                f"{twice[0]!r} is attached to an optimizer already; attach each optimizer once, and call remove() on the handle of "
                "the first to replace it"
            )
        refuse_unreadable(optimizer)

    def _remove(self, binding: _Binding) -> None:
        for handle in binding.handles:
            handle.remove()
        self._bindings.remove(binding)
        self._update_readiness()

    def _update_readiness(self) -> None:
        moving = {site.name for site in self._sites.values() if site.regime.spec.moves}
        self._model.__dict__["_waits"] = not moving <= self.attached

    # Around a step

    @torch.no_grad()
    def _before_step(self, binding: _Binding, arguments: tuple[Any, ...]) -> None:
        binding.has_closure = any(callable(argument) for argument in arguments)
        for site in binding.sites:
            site.before_step(binding.has_closure)

    @torch.no_grad()
    def _after_step(self, binding: _Binding) -> None:
        found_inf = getattr(binding.optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return  # GradScaler let a fused optimizer skip the step by itself
        for site in binding.sites:
            site.after_step(binding.has_closure)
        for index in binding.regimes:
            stepped = self._stepped.setdefault(index, set())
            stepped.add(id(binding))
            if {id(other) for other in self._bindings if index in other.regimes} <= stepped:
                stepped.clear()
                self._advance(self._model.regimes[index])
        for site in binding.sites:
            site.note_clean()

    def _advance(self, regime: RegimeState) -> None:
        step = regime.advance()
        if regime.spec.is_due(step):
            self._change(regime, step)
        regime.growing.fill_(regime.spec.wants_dense_gradient(step + 1))

    # Changing masks

    def _change(self, regime: RegimeState, step: int) -> None:
        spec = regime.spec
        sites = [self._sites[name] for name in spec.sites if name in self._sites]
        if spec.refresh:
            for site in sites:
                site.choose_anew()
            return
        ranks = sharers_of({site.name: site.weight for site in sites})
        views = [site.view(step) for site in sites]
        sparsity = spec.pruning.sparsity(step) if spec.pruning is not None else None
        if sparsity is not None:
            prune = _prune_together if spec.scope == "global" else _prune_each
            prune(sites, views, sparsity, step, ranks)
        fraction = spec.exchange.fraction(step) if spec.exchange is not None else 0.0
        if fraction > 0:
            for site, view in zip(sites, views, strict=True):
                _exchange(site, view, fraction, step, ranks)
        for site in sites:
            if site.optimizer is not None:
                site.settle()
        if self._compares_ranks:
            self._require_same_masks(f"after step {step}")

    def _require_same_masks(self, when: str) -> None:
        masks = {name: fingerprint(site.mask, site.kept) for name, site in self._sites.items()}
        require_same_masks(masks, [int(regime.steps) for regime in self._model.regimes], when)


def _prune_together(sites: Sequence[MaskedSite], views: Sequence[Masked], sparsity: float, step: int, ranks: Ranks) -> None:
    """Keeps int(N * (1 - sparsity)) of all weights. Source: the authors' code of GraNet."""
    drop = sites[0].regime.spec.drop
    assert drop is not None
    budget = int(sum(site.spec.total for site in sites) * (1.0 - sparsity))
    if budget < sum(site.kept for site in sites):
        keep_largest(views, budget, drop, step, ranks)
        for site, view in zip(sites, views, strict=True):
            site.kept = int(ranks.sum(view.mask.count_nonzero().cpu()))


def _prune_each(sites: Sequence[MaskedSite], views: Sequence[Masked], sparsity: float, step: int, ranks: Ranks) -> None:
    """Keeps int(n * (1 - sparsity)) units of each weight, at least one, and of a classifier what it keeps at least."""
    drop = sites[0].regime.spec.drop
    assert drop is not None
    for site, view in zip(sites, views, strict=True):
        wanted = int(site.spec.total // site.unit * (1.0 - sparsity)) * site.unit
        wanted = max(wanted, site.unit, site.spec.least // site.unit * site.unit if sparsity >= CLASSIFIER_FROM else 0)
        if wanted < site.kept:
            keep_largest([view], wanted // site.unit, drop, step, ranks)
            site.kept = wanted


def _exchange(site: MaskedSite, view: Masked, fraction: float, step: int, ranks: Ranks) -> None:
    spec = site.regime.spec
    assert spec.drop is not None
    assert spec.grow is not None
    read = {"gradient": view.gradient, "momentum": view.momentum, "nothing": view.weight}
    if site.kept == site.spec.total or read[spec.drop.reads] is None or read[spec.grow.reads] is None:
        return  # dense, or not used in this step
    kept, total = site.kept // site.unit, site.spec.total // site.unit
    exchange(view, kept, total, fraction, spec.drop, spec.grow, step, regrow=spec.regrow, ranks=ranks)

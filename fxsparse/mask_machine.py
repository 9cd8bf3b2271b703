"""What moves masks: after each optimizer step weights are masked, steps are counted, and where it is due masks change.

A step passes through three places. The graph masks weights and their gradients; on a growing step it lets the gradients of masked
weights pass too, so that ``weight.grad`` is dense, summed over accumulation and reduced over ranks as any gradient is. The hook
before the step takes them away again from optimizers in which one element's gradient reaches others. The hook after the step puts
weights and state of masked elements back, counts, changes the masks, and says whether the next step is a growing one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxsparse.passes.masks.apply import looks_masked, note_trust
from fxsparse.passes.masks.selection import Ranks
from fxsparse.passes.masks.start import numbers
from fxsparse.passes.masks.state import RegimeState
from fxsparse.passes.masks.structures import OfEvery
from fxsparse.passes.masks.update import Masked, exchange, keep_largest
from fxsparse.passes.ops.masked_weight import mask_
from fxsparse.passes.state import SiteState

from .errors import PolicyError
from .optimizer_state import group_of, keeps_gradients, mask_state, momentum_of, refuse_unreadable, require_readable, works_by_element
from .ranks import first_row, local, placed_like, require_same_masks, sharers_of

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

CLASSIFIER_FROM = 0.8
_ROUND = 16


class _Binding:
    """An optimizer and the masked weights that it trains.

    Attributes:
        watched: weights that something else than their masked form may read.
        closed: whether this step computes its gradients itself, in a closure.
        versions: of each weight that was clean after the last step. taken: dense gradients that the optimizer must not see.
    """

    def __init__(self, optimizer: Optimizer, sites: Iterable[str], watched: set[str]) -> None:
        self.optimizer = optimizer
        self.sites = list(sites)
        self.watched = watched
        self.closed = False
        self.versions: dict[str, int] = {}
        self.taken: dict[str, Tensor] = {}
        self.handles: list[Any] = []


class MaskMachine:
    """Moves the masks of a compiled model along with the optimizers that are attached to it."""

    def __init__(self, model: CompiledModel) -> None:
        self._model = model
        self._bindings: list[_Binding] = []
        self._stepped: dict[int, set[int]] = {}
        self._compares_ranks = True

    @property
    def attached(self) -> set[str]:
        """The masked weights that have an optimizer."""
        return {name for binding in self._bindings for name in binding.sites}

    # Attaching

    def attach(self, optimizer: Optimizer, *, compare_ranks: bool) -> Callable[[], None]:
        """Registers the hooks of an optimizer. Returns what removes them; see ``CompiledModel.attach``."""
        sites = [name for name in self._model.masks if group_of(optimizer, self._weight(name)) is not None]
        self._refuse(optimizer, sites)
        for name in sites:
            require_readable(optimizer, self._weight(name), name)
            self._place(name)
        for regime in self._model.regimes:
            regime.require_own(int(regime.fingerprint))
        self._compares_ranks = compare_ranks
        if compare_ranks:
            self._require_same_masks("when the optimizer is attached")
        binding = _Binding(optimizer, sites, {name for name in sites if self._is_read_elsewhere(name)})
        binding.handles = [
            optimizer.register_step_pre_hook(lambda _optimizer, args, kwargs: self._before_step(binding, (*args, *kwargs.values()))),
            optimizer.register_step_post_hook(lambda *_: self._after_step(binding)),
        ]
        self._bindings.append(binding)
        self._update_readiness()
        return lambda: self._remove(binding)

    def _refuse(self, optimizer: Optimizer, sites: list[str]) -> None:
        kind = type(optimizer).__name__
        if not sites:
            raise PolicyError(
                f"{kind} does not hold any of the {len(self._model.masks)} masked weights; build it from compiled.parameters() "
                "(after fully_shard, where that is used)"
            )
        twice = [name for name in sites if name in self.attached]
        if twice:
            raise PolicyError(
                f"{twice[0]!r} is attached to an optimizer already; attach each optimizer once, and call remove() on the handle of "
                "the first to replace it"
            )
        refuse_unreadable(optimizer)
        regimes = self._model.regimes
        for name in sites:
            regime = regimes[self._model.masks[name].regime]
            group = group_of(optimizer, self._weight(name)) or {}
            if regime.spec.keeps_state and not (works_by_element(optimizer) and (group.get("momentum") or "betas" in group)):
                raise PolicyError(
                    f"{regime.spec.technique} grows by the optimizer's momentum, and {kind} keeps none for {name!r} that can be read; "
                    "use SGD with momentum > 0, or an optimizer of the Adam family"
                )

    def _is_read_elsewhere(self, name: str) -> bool:
        report = self._model.report
        return bool(self._model.sites[name].aliases or report.left) or any(skip.site == name for skip in report.skips)

    def _remove(self, binding: _Binding) -> None:
        for handle in binding.handles:
            handle.remove()
        self._bindings.remove(binding)
        self._update_readiness()

    def _update_readiness(self) -> None:
        moving = {name for name, spec in self._model.masks.items() if self._model.regimes[spec.regime].spec.moves}
        self._model.__dict__["_waits"] = not moving <= self.attached

    def _weight(self, name: str) -> torch.nn.Parameter:
        return self._model.get_parameter(name)

    def _state(self, name: str) -> SiteState:
        state = self._model.fxsparse.site(name)
        assert state is not None
        return state

    def _mask(self, name: str) -> Tensor:
        return self._state(name).get_buffer("mask")

    def _place(self, name: str) -> None:
        """Gives the mask the weight's placement."""
        weight, mask = self._weight(name), self._mask(name)
        placed = placed_like(mask, weight)
        if placed is not mask:
            self._state(name)._buffers["mask"] = placed

    def _regime(self, name: str) -> RegimeState:
        return self._model.regimes[self._model.masks[name].regime]

    # Around a step

    @torch.no_grad()
    def _before_step(self, binding: _Binding, arguments: tuple[Any, ...]) -> None:
        optimizer = binding.optimizer
        binding.taken.clear()
        binding.closed = any(callable(argument) for argument in arguments)
        for name in binding.sites:
            weight, regime = self._weight(name), self._regime(name)
            if local(weight)._version != binding.versions.get(name):
                binding.versions.pop(name, None)
            growing = bool(regime.growing)
            if regime.spec.refresh or (growing and (regime.spec.keeps_state or self._keeps_gradients(optimizer, weight))):
                continue
            if growing and binding.closed:
                raise PolicyError(
                    f"{type(optimizer).__name__}.step was given a closure: the gradients by which {regime.spec.technique} grows are made "
                    "inside the step and cannot be read; compute them before the step"
                )
            if weight.grad is None or binding.closed:
                continue
            gradient = local(weight.grad)
            if growing:
                binding.taken[name] = gradient.clone()
                mask_(gradient, local(self._mask(name)))
            else:
                self._mask_gradient(binding, name, gradient)

    @staticmethod
    def _keeps_gradients(optimizer: Optimizer, weight: Tensor) -> bool:
        return keeps_gradients(optimizer, group_of(optimizer, weight) or {}, weight)

    def _mask_gradient(self, binding: _Binding, name: str, gradient: Tensor) -> None:
        """Masks a gradient that was masked already, where others than the graph may have added to it: noise, centring, tied uses."""
        trusted = gradient.device.type == "cpu" and name in binding.versions and name not in binding.watched
        if not (trusted and looks_masked(self._state(name).get_buffer("trust"), gradient)):
            mask_(gradient, local(self._mask(name)))

    @torch.no_grad()
    def _after_step(self, binding: _Binding) -> None:
        found_inf = getattr(binding.optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return  # GradScaler let a fused optimizer skip the step by itself
        for name in binding.sites:
            require_readable(binding.optimizer, self._weight(name), name)
            if self._is_dirty(binding, name):
                self._mask_weight(binding, name)
        for index in {self._model.masks[name].regime for name in binding.sites}:
            stepped = self._stepped.setdefault(index, set())
            stepped.add(id(binding))
            owners = {id(b) for b in self._bindings if any(self._model.masks[name].regime == index for name in b.sites)}
            if owners <= stepped:
                stepped.clear()
                self._advance(self._model.regimes[index], index)
        for name in binding.sites:
            weight, state = self._weight(name), self._state(name)
            binding.versions[name] = local(weight)._version
            if not self._regime(name).spec.refresh:
                note_trust(state.get_buffer("trust"), weight, state.get_buffer("mask"))
        binding.taken.clear()

    def _is_dirty(self, binding: _Binding, name: str) -> bool:
        """Whether masked elements may have moved: not where nobody but an optimizer by element, given masked gradients, wrote to them.

        What writes through ``weight.data`` leaves no trace, so that each weight has its turn now and then whatever is known of it.
        """
        regime = self._regime(name)
        if regime.spec.refresh:
            return False
        if regime.spec.keeps_state:
            return True  # the momentum of masked elements moves them
        if name in binding.watched or binding.closed:
            return True  # what a closure makes of the gradients is not seen
        turn = (int(regime.steps) + binding.sites.index(name)) % _ROUND == 0
        return turn or name not in binding.versions or not works_by_element(binding.optimizer) or bool(regime.growing)

    def _mask_weight(self, binding: _Binding, name: str) -> None:
        """Puts weight, gradient and optimizer state of masked elements to what they are at first."""
        weight, regime = self._weight(name), self._regime(name)
        mask = local(self._mask(name))
        mask_(local(weight), mask)
        if not (regime.spec.keeps_state and bool(regime.growing)):
            mask_state(binding.optimizer, group_of(binding.optimizer, weight) or {}, weight, mask)

    # Changing masks

    def _advance(self, regime: RegimeState, index: int) -> None:
        step = regime.advance()
        if regime.spec.is_due(step):
            self._change(regime, index, step)
        regime.growing.fill_(regime.spec.wants_dense_gradient(step + 1))

    def _change(self, regime: RegimeState, index: int, step: int) -> None:
        spec = regime.spec
        names = [name for name in spec.sites if name in self._model.masks]
        if spec.refresh:
            for name in names:
                self._choose_anew(name)
            return
        ranks = sharers_of({name: self._weight(name) for name in names})
        weights = {name: self._view(name, regime, step) for name in names}
        sparsity = spec.pruning.sparsity(step) if spec.pruning is not None else None
        if sparsity is not None:
            self._prune(regime, weights, sparsity, step, ranks)
        fraction = spec.exchange.fraction(step) if spec.exchange is not None else 0.0
        if fraction > 0:
            for name, weight in weights.items():
                self._exchange(regime, name, weight, fraction, step, ranks)
        for binding in self._bindings:
            for name in (name for name in binding.sites if name in weights):
                self._mask_weight(binding, name)
                gradient = self._weight(name).grad
                if gradient is not None and bool(regime.growing) and not spec.keeps_state:
                    mask_(local(gradient), local(self._mask(name)))
        if self._compares_ranks:
            self._require_same_masks(f"after step {step}")

    def _choose_anew(self, name: str) -> None:
        structure = self._model.masks[name].structure
        assert isinstance(structure, OfEvery)
        local(self._mask(name)).copy_(structure.choose(local(self._weight(name)).abs()))

    def _view(self, name: str, regime: RegimeState, step: int) -> Masked:
        weight = self._weight(name)
        binding = next((b for b in self._bindings if name in b.sites), None)
        gradient = None if binding is None else binding.taken.get(name)
        if gradient is None and weight.grad is not None:
            gradient = local(weight.grad)
        momentum = None
        if binding is not None and any(c is not None and c.reads == "momentum" for c in (regime.spec.drop, regime.spec.grow)):
            found = momentum_of(binding.optimizer.state.get(weight, {}))
            momentum = None if found is None else local(found)
        start, part = first_row(weight), local(weight)

        def random() -> Tensor:
            return numbers(weight, regime.spec.seed, step, name)[start : start + part.shape[0]]

        return Masked(name, part, local(self._mask(name)), self._model.masks[name].structure, gradient, momentum, random)

    def _prune(self, regime: RegimeState, weights: dict[str, Masked], sparsity: float, step: int, ranks: Ranks) -> None:
        spec = regime.spec
        assert spec.drop is not None
        totals = {name: self._model.masks[name].total for name in weights}
        if spec.scope == "global":
            budget = int(sum(totals.values()) * (1.0 - sparsity))
            if budget < sum(self._kept(regime, name) for name in weights):
                keep_largest(list(weights.values()), budget, spec.drop, step, ranks)
                for name, weight in weights.items():
                    self._set_kept(regime, name, int(ranks.sum(weight.mask.sum().cpu())))
            return
        for name, weight in weights.items():
            unit = weight.structure.unit(tuple(self._weight(name).shape))
            wanted = int(totals[name] // unit * (1.0 - sparsity)) * unit
            if sparsity >= CLASSIFIER_FROM:
                wanted = max(wanted, self._model.masks[name].least)
            wanted = max(wanted, unit)
            if wanted < self._kept(regime, name):
                keep_largest([weight], wanted // unit, spec.drop, step, ranks)
                self._set_kept(regime, name, wanted)

    def _exchange(self, regime: RegimeState, name: str, weight: Masked, fraction: float, step: int, ranks: Ranks) -> None:
        spec = regime.spec
        assert spec.drop is not None
        assert spec.grow is not None
        kept, total = self._kept(regime, name), self._model.masks[name].total
        read = {"gradient": weight.gradient, "momentum": weight.momentum, "nothing": weight.weight}
        if kept == total or read[spec.drop.reads] is None or read[spec.grow.reads] is None:
            return  # dense, or not used in this step
        unit = weight.structure.unit(tuple(self._weight(name).shape))
        exchange(weight, kept // unit, total // unit, fraction, spec.drop, spec.grow, step, regrow=spec.regrow, ranks=ranks)

    def _kept(self, regime: RegimeState, name: str) -> int:
        return int(regime.kept[regime.spec.sites.index(name)])

    def _set_kept(self, regime: RegimeState, name: str, count: int) -> None:
        regime.kept[regime.spec.sites.index(name)] = count

    def _require_same_masks(self, when: str) -> None:
        masks = {name: self._mask(name) for name in self._model.masks}
        require_same_masks(masks, [int(regime.steps) for regime in self._model.regimes], when)

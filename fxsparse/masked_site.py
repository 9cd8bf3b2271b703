"""One masked weight with its mask, gradient and optimizer: what is done to it around a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxsparse.passes.masks.apply import looks_masked, note_trust
from fxsparse.passes.masks.start import numbers
from fxsparse.passes.masks.structures import OfEvery
from fxsparse.passes.masks.update import Masked
from fxsparse.passes.ops.masked_weight import mask_

from .errors import PolicyError
from .optimizer_state import group_of, keeps_gradients, mask_state, momentum_of, require_readable, works_by_element
from .ranks import first_row, local, placed_like

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

_ROUND = 64


class MaskedSite:
    """A masked weight. Its tensors are looked up anew each time: engines exchange parameters, and masks are moved.

    Attributes:
        optimizer: that trains it. taken: its dense gradient, where the optimizer must not see it.
        watched: something else than its masked form may read the weight. version: of the weight when it was clean, else None.
    """

    def __init__(self, model: CompiledModel, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.spec = model.masks[name]
        self.regime = model.regimes[self.spec.regime]
        path, _, self._attribute = name.rpartition(".")
        self._owner = model.get_submodule(path)
        state = model.fxsparse.site(name)
        assert state is not None
        self._buffers = state._buffers
        report = model.report
        self.watched = bool(model.sites[name].aliases or report.left) or any(skip.site == name for skip in report.skips)
        self.optimizer: Optimizer | None = None
        self.taken: Tensor | None = None
        self.version: int | None = None
        self._by_element = False

    @property
    def weight(self) -> torch.nn.Parameter:
        """The parameter, a DTensor if it is sharded."""
        found: torch.nn.Parameter = getattr(self._owner, self._attribute)
        return found

    @property
    def mask(self) -> Tensor:
        """The mask, a DTensor if the weight is one."""
        mask = self._buffers["mask"]
        assert mask is not None
        return mask

    @property
    def _trust(self) -> Tensor:
        trust = self._buffers["trust"]
        assert trust is not None
        return trust

    @property
    def unit(self) -> int:
        """Elements that are kept or dropped as one."""
        return self.spec.structure.unit(tuple(self.weight.shape))

    @property
    def kept(self) -> int:
        """Elements that the mask keeps, on all ranks."""
        return int(self.regime.kept[self._index])

    @kept.setter
    def kept(self, count: int) -> None:
        self.regime.kept[self._index] = count

    @property
    def _index(self) -> int:
        return self.regime.spec.sites.index(self.name)

    # The optimizer

    def bind(self, optimizer: Optimizer) -> None:
        """Ties the weight to the optimizer that trains it, and gives its mask the weight's placement.

        Raises: PolicyError if what the optimizer remembers of it cannot be masked.
        """
        require_readable(optimizer, self.weight, self.name)
        spec, group = self.regime.spec, self._group(optimizer)
        self._by_element = works_by_element(optimizer)
        if spec.keeps_state and not (self._by_element and (group.get("momentum") or "betas" in group)):
            raise PolicyError(
                f"{spec.technique} grows by the optimizer's momentum, and {type(optimizer).__name__} keeps none for {self.name!r} that "
                "can be read; use SGD with momentum > 0, or an optimizer of the Adam family"
            )
        self._buffers["mask"] = placed_like(self.mask, self.weight)
        self.optimizer, self.version = optimizer, None

    def _group(self, optimizer: Optimizer) -> dict[str, Any]:
        return group_of(optimizer, self.weight) or {}

    # Around a step

    def before_step(self, has_closure: bool) -> None:
        """Sees to it that the optimizer gets no gradient of masked elements that it could carry elsewhere.

        Raises: PolicyError if the gradient that growth needs would be made inside the step and lost.
        """
        weight, spec, optimizer = self.weight, self.regime.spec, self.optimizer
        assert optimizer is not None
        self.taken = None
        growing = bool(self.regime.growing)
        if local(weight)._version != self.version or (weight.device.type == "cpu" and not self._looks_clean(local(weight))):
            self.version = None
        if spec.refresh or (growing and (spec.keeps_state or keeps_gradients(optimizer, self._group(optimizer), weight))):
            return
        if growing and has_closure:
            raise PolicyError(
                f"{type(optimizer).__name__}.step was given a closure: the gradients by which {spec.technique} grows are made "
                "inside the step and cannot be read; compute them before the step"
            )
        if weight.grad is None or has_closure:
            return
        gradient = local(weight.grad)
        if growing:
            self.taken = gradient.clone()
            mask_(gradient, local(self.mask))
        elif not self._is_masked(gradient):
            mask_(gradient, local(self.mask))

    def _looks_clean(self, part: Tensor) -> bool:
        return int(self._trust[0]) < 0 or looks_masked(self._trust, part)

    def _is_masked(self, gradient: Tensor) -> bool:
        """Whether a gradient is masked as the graph made it; noise, centring and tied uses add to what is masked."""
        trusted = gradient.device.type == "cpu" and self.version is not None and not self.watched
        return trusted and looks_masked(self._trust, gradient)

    def after_step(self, has_closure: bool) -> None:
        """Puts masked elements back, where they may have moved."""
        assert self.optimizer is not None
        require_readable(self.optimizer, self.weight, self.name)
        if self._may_have_moved(has_closure):
            self.put_back()

    def _may_have_moved(self, has_closure: bool) -> bool:
        """Whether masked elements may have: not where only an optimizer by element, given masked gradients, wrote to clean ones.

        What writes through ``weight.data`` leaves no trace, so that each weight has its turn now and then whatever is known of it.
        """
        if self.regime.spec.refresh:
            return False
        if self.version is None or not self._by_element or self.watched or has_closure:
            return True
        turn = (int(self.regime.steps) + self.number) % _ROUND == 0
        return turn or self.regime.spec.keeps_state or bool(self.regime.growing)

    def put_back(self) -> None:
        """Puts weight and optimizer state of masked elements to what they are at first."""
        assert self.optimizer is not None
        weight, mask = self.weight, local(self.mask)
        mask_(local(weight), mask)
        if not (self.regime.spec.keeps_state and bool(self.regime.growing)):
            mask_state(self.optimizer, self._group(self.optimizer), weight, mask)

    def note_clean(self) -> None:
        """Notes that masked elements are zero now."""
        weight = self.weight
        self.version, self.taken = local(weight)._version, None
        if not self.regime.spec.refresh:
            note_trust(self._trust, weight, self.mask)

    # When masks change

    def view(self, step: int) -> Masked:
        """This rank's part of it, as updates take it."""
        weight = self.weight
        gradient = self.taken if self.taken is not None or weight.grad is None else local(weight.grad)
        start, part, seed = first_row(weight), local(weight), self.regime.spec.seed

        def random() -> Tensor:
            return numbers(weight, seed, step, self.name)[start : start + part.shape[0]]

        return Masked(self.name, part, local(self.mask), self.spec.structure, gradient, self._momentum(), random)

    def _momentum(self) -> Tensor | None:
        spec = self.regime.spec
        if self.optimizer is None or not any(c is not None and c.reads == "momentum" for c in (spec.drop, spec.grow)):
            return None
        found = momentum_of(self.optimizer.state.get(self.weight, {}))
        return None if found is None else local(found)

    def settle(self) -> None:
        """After its mask has changed: masks weight, state and the gradient that is left."""
        self.put_back()
        gradient = self.weight.grad
        if gradient is not None and bool(self.regime.growing) and not self.regime.spec.keeps_state:
            mask_(local(gradient), local(self.mask))

    def choose_anew(self) -> None:
        """Chooses an N:M mask by the weight as it is."""
        structure = self.spec.structure
        assert isinstance(structure, OfEvery)
        local(self.mask).copy_(structure.choose(local(self.weight).abs()))

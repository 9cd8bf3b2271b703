"""What an optimizer remembers of a weight, and how it is kept from reviving what a mask has dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop, SparseAdam

from fxsparse.passes.ops.masked_weight import mask_

from .errors import PolicyError
from .ranks import local

_BY_ELEMENT = (SGD, Adam, AdamW, Adamax, NAdam, RAdam, RMSprop, Rprop, Adagrad, Adadelta, ASGD)
_FACTORED = frozenset({"row_var", "col_var", "variance"})
_REFUSED = {
    LBFGS: "it keeps the gradients of all parameters in one vector",
    SparseAdam: "it takes sparse gradients only",
}


def refuse_unreadable(optimizer: Optimizer) -> None:
    """Raises PolicyError for an optimizer that cannot train masked weights, by its name."""
    for kind, reason in _REFUSED.items():
        if isinstance(optimizer, kind):
            raise PolicyError(
                f"{type(optimizer).__name__} cannot train masked weights: {reason}; use SGD or an optimizer of the Adam family"
            )


def group_of(optimizer: Optimizer, weight: Tensor) -> dict[str, Any] | None:
    """The optimizer's group of settings for a parameter; None if it does not train it."""
    for group in optimizer.param_groups:
        if any(parameter is weight for parameter in group["params"]):
            found: dict[str, Any] = group
            return found
    return None


def works_by_element(optimizer: Optimizer) -> bool:
    """Whether an element's update depends on that element's gradient and state alone, as far as is known: torch's own ones."""
    owner = next(kind for kind in type(optimizer).__mro__ if "step" in kind.__dict__)
    return owner in _BY_ELEMENT


def keeps_gradients(optimizer: Optimizer, group: dict[str, Any], weight: Tensor) -> bool:
    """Whether ``weight.grad`` still holds its gradient after a step, up to a positive factor."""
    if not works_by_element(optimizer):
        return False
    in_place = group.get("foreach") or (group.get("foreach") is None and weight.device.type != "cpu")
    return not (group.get("nesterov") and in_place)


def require_readable(optimizer: Optimizer, weight: Tensor, name: str) -> None:
    """Raises PolicyError if the optimizer remembers something of a weight that cannot be masked."""
    for key, kept in optimizer.state.get(weight, {}).items():
        if isinstance(kept, Tensor):
            if kept.numel() <= 1 or kept.shape == weight.shape or key in _FACTORED:
                continue
            what = f"a tensor of shape {tuple(kept.shape)}"
        elif kept is None or isinstance(kept, (bool, int, float, str)):
            continue
        else:
            what = f"a {type(kept).__name__}"
        raise PolicyError(
            f"{type(optimizer).__name__} keeps {what} under {key!r} for {name!r}, of shape {tuple(weight.shape)}, which cannot be masked "
            "with the weight; use an optimizer whose state has the weight's shape (SGD, the Adam family), or exclude the weight"
        )


def mask_state(optimizer: Optimizer, group: dict[str, Any], weight: Tensor, mask: Tensor) -> None:
    """Puts the state of masked elements to what it is at first. ``mask`` is this rank's part of the weight's mask."""
    for key, kept in optimizer.state.get(weight, {}).items():
        if isinstance(kept, Tensor) and kept.shape == weight.shape and kept.numel() > 1:
            first = _first_value(optimizer, group, key)
            local(kept).masked_fill_(~mask, first) if first else mask_(local(kept), mask)


def _first_value(optimizer: Optimizer, group: dict[str, Any], key: str) -> float:
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0


def momentum_of(state: dict[str, Any]) -> Tensor | None:
    """A parameter's momentum: SGD's buffer, or Adam's first moment over the root of its second; None before the first step."""
    buffer = state.get("momentum_buffer")
    if isinstance(buffer, torch.Tensor):
        return buffer
    first, second = state.get("exp_avg"), state.get("exp_avg_sq")
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first / (second.sqrt() + 1e-8)
    return None

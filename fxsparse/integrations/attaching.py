"""What the callbacks have in common: find compiled models inside a module, and attach the optimizers that train them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..attach import Attachment
from ..compiled_model import CompiledModel
from ..errors import PolicyError
from ..optimizer_state import group_of


def compiled_models(module: nn.Module) -> dict[str, CompiledModel]:
    """Every compiled model in a module, by its path, each once.

    Raises: PolicyError if there is none.
    """
    found = {path: inner for path, inner in module.named_modules() if isinstance(inner, CompiledModel)}
    if not found:
        raise PolicyError(
            f"there is no compiled model in {type(module).__name__}; compile the network, or a part of it, with fxsparse.compile first"
        )
    return found


def plain_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer inside the wrappers that libraries put around it."""
    while not hasattr(optimizer, "register_step_post_hook") or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    plain: Optimizer = optimizer
    return plain


def attach_all(module: nn.Module, optimizers: Iterable[Any]) -> list[Attachment]:
    """Attaches every optimizer to each compiled model in a module whose parameters it trains."""
    plain = [plain_optimizer(optimizer) for optimizer in optimizers]
    handles = []
    for model in compiled_models(module).values():
        for optimizer in plain:
            if any(group_of(optimizer, parameter) is not None for parameter in model.parameters()):
                handles.append(model.attach(optimizer))
    return handles


def sparsity_of(module: nn.Module) -> float:
    """The fraction of zeros among the weights of all contractions of the compiled models in a module."""
    kept = total = 0
    for model in compiled_models(module).values():
        for row in model.sparsity().values():
            kept += row["weight"]["kept"]
            total += row["weight"]["total"]
    return 1.0 - kept / total if total else 0.0

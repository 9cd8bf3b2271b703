"""A structural copy of a module tree: new module objects, the same (or converted) parameters and buffers."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Convert = Callable[[torch.Tensor], torch.Tensor]


def clone_modules(root: nn.Module, convert: Convert | None = None) -> nn.Module:
    """A copy of the module tree whose modules are new objects and whose tensors are the originals.

    Attributes that are bound methods of a copied module, or refer to one, are bound to its copy. Hooks are copied.

    Args:
        convert: replaces every parameter, buffer and tensor attribute (once each, so that shared tensors stay shared).
    """
    originals = list(dict.fromkeys(root.modules()))
    copies: dict[int, nn.Module] = {id(module): _new_like(module) for module in originals}
    tensors: dict[int, torch.Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return copies.get(id(value), value)
        if isinstance(value, torch.Tensor) and convert is not None:
            if id(value) not in tensors:
                tensors[id(value)] = convert(value)
            return tensors[id(value)]
        if isinstance(value, types.MethodType) and id(value.__self__) in copies:
            return types.MethodType(value.__func__, copies[id(value.__self__)])
        return value

    for module in originals:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        twin = copies[id(module)]
        for name, value in module.__dict__.items():
            twin.__dict__[name] = _copied(name, value, replaced)
    return copies[id(root)]


def _new_like(module: nn.Module) -> nn.Module:
    """An empty object of the module's class; a ScriptModule keeps its own object, it has no Python attributes."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    twin: nn.Module = type(module).__new__(type(module))
    return twin


def _copied(name: str, value: Any, replaced: Callable[[Any], Any]) -> Any:
    if name in ("_parameters", "_buffers", "_modules"):
        return {key: replaced(inner) for key, inner in value.items()}
    if name == "_flat_weights":
        return [replaced(inner) for inner in value]
    if name.endswith("_hooks") or name.endswith("_hooks_with_kwargs") or name.endswith("_hooks_always_called"):
        return copy.copy(value)
    return replaced(value)

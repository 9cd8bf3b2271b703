"""What the price of a call depends on, as hashable keys."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .recording import Spec, spec_of

_SIMPLE = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Held:
    """A tensor in a graph: its form, and whose storage it lives in.

    Attributes:
        owner: the node that made the storage, and which of its storages; ("", NAME) for a parameter or buffer.
        node: the node whose value it is.
        fixed: it depends on no sample. parameter: its storage is a parameter's.
    """

    spec: Spec
    owner: tuple[str, int | str]
    node: str = ""
    fixed: bool = False
    parameter: bool = False


def specs_of(arguments: Any) -> Any:
    """Arguments with the forms of tensors in place of tensors."""
    return pytree.tree_map_only(Held, lambda item: item.spec, arguments)


def module_key(module: nn.Module) -> Any:
    """What a module's price depends on beside its arguments; None if that cannot be said."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.") or "forward" in module.__dict__:
        return None
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return None
    config = []
    for name, value in module.__dict__.items():
        plain = isinstance(value, (*_SIMPLE, types.FunctionType, types.BuiltinFunctionType))
        if plain or (isinstance(value, (tuple, list)) and all(isinstance(item, _SIMPLE) for item in value)):
            config.append((name, tuple(value) if isinstance(value, list) else value))
    tensors = [
        (name, None if tensor is None else spec_of(tensor)) for name, tensor in (*module._parameters.items(), *module._buffers.items())
    ]
    children = [(name, None if child is None else module_key(child)) for name, child in module._modules.items()]
    if any(child is not None and key is None for (_, key), child in zip(children, module._modules.values(), strict=True)):
        return None
    return kind, tuple(config), tuple(tensors), tuple(children)


def sizeless(key: Any) -> Any:
    """A module's key without its sizes: of its tensors only dtypes and whether they learn."""
    kind, config, tensors, children = key
    settings = tuple(item for item in config if item[0] not in ("num_features", "normalized_shape"))
    return kind, settings, tuple((name, None if spec is None else spec[2:]) for name, spec in tensors), children


def is_hashable(value: Any) -> bool:
    """Whether a value can be part of a key."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def call_key(head: Any, leaves: list[Any]) -> Any:
    """A hashable description of a call; None if an argument cannot be part of one."""
    parts: list[Any] = []
    seen: dict[Held, int] = {}
    for leaf in leaves:
        if isinstance(leaf, Held):
            parts.append((leaf.spec, leaf.fixed, leaf.parameter, seen.setdefault(leaf, len(seen))))
        elif isinstance(leaf, slice):
            bounds = (leaf.start, leaf.stop, leaf.step)
            if not all(isinstance(bound, _SIMPLE) for bound in bounds):
                return None
            parts.append(("slice", *bounds))
        elif isinstance(leaf, _SIMPLE) or leaf is Ellipsis:
            parts.append((type(leaf), leaf))
        else:
            return None
    try:
        key = (head, tuple(parts))
        hash(key)
    except TypeError:
        return None
    return key

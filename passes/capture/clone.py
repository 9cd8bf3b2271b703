"""A structural copy of a module tree: new module objects, the same (or converted) parameters and buffers."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Convert = Callable[[torch.Tensor], torch.Tensor]

_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict, defaultdict)


def clone_modules(root: nn.Module, convert: Convert | None = None) -> nn.Module:
    """A copy of the module tree whose modules are new objects and whose tensors are the originals.

    Lists, dicts and sets among the attributes are copied, with the modules in them. Attributes that are bound methods of a
    copied module are bound to its copy. Other objects are shared, but copied too if there is a ``convert``.

    Args:
        convert: replaces every parameter, buffer and tensor attribute (once each, so that shared tensors stay shared).
    """
    cloner = _Cloner(convert)
    copied: nn.Module = cloner.copy(root)
    return copied


class _Cloner:
    def __init__(self, convert: Convert | None) -> None:
        self._convert = convert
        self._made: dict[int, Any] = {}
        self._originals: list[Any] = []  # kept alive, so that no id is given twice

    def copy(self, value: Any) -> Any:
        """The copy of an attribute's value; the same one each time."""
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, torch.jit.ScriptModule):
            return value  # it has no Python attributes
        if isinstance(value, nn.Module):
            return self._object(value, type(value).__new__(type(value)))
        if isinstance(value, torch.Tensor):
            return self._note(value, self._convert(value) if self._convert is not None else value)
        if type(value) in _MAPPINGS:
            mapping = self._note(value, copy.copy(value))
            mapping.update({key: self.copy(inner) for key, inner in value.items()})
            return mapping
        if type(value) in _SEQUENCES:
            return self._sequence(value)
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.copy(value.__self__))
        if self._convert is not None and is_plain_object(value):
            return self._object(value, object.__new__(type(value)))
        return value

    def _note(self, original: Any, copied: Any) -> Any:
        self._originals.append(original)
        self._made[id(original)] = copied
        return copied

    def _object(self, original: Any, copied: Any) -> Any:
        self._note(original, copied)
        for name, value in original.__dict__.items():
            is_hooks = isinstance(original, nn.Module) and name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
            copied.__dict__[name] = copy.copy(value) if is_hooks else self.copy(value)
        return copied

    def _sequence(self, value: Any) -> Any:
        if isinstance(value, (list, deque)):
            filled = self._note(value, copy.copy(value))
            for index, inner in enumerate(value):
                filled[index] = self.copy(inner)
            return filled
        return self._note(value, type(value)(self.copy(inner) for inner in value))


def is_lazy(tensor: torch.Tensor) -> bool:
    """Whether a parameter or buffer of a lazy module has no shape yet."""
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


def is_plain_object(value: Any) -> bool:
    """Whether it is an object of a user's class that keeps its state in attributes."""
    kind = type(value)
    if isinstance(value, (type, types.ModuleType, types.FunctionType, BaseException)) or not hasattr(value, "__dict__"):
        return False
    makes: Any = kind.__new__
    return makes is object.__new__ and not kind.__module__.startswith(("torch", "builtins", "numpy", "threading", "logging"))

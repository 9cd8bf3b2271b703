"""Results of any type: how a graph makes again the object that the model's Python returned around its tensors."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch

_DEPTH = 16


class Slot:
    """The place of a tensor in a template."""

    def __init__(self, index: int) -> None:
        self.index = index


class Template:
    """An object that was made in forward, without its tensors. Calling it with tensors gives a new object of that form."""

    __name__ = "template"

    def __init__(self, value: Any, tensors: list[torch.Tensor]) -> None:
        self._slots = [Slot(index) for index in range(len(tensors))]
        memo: dict[int, Any] = {id(tensor): slot for tensor, slot in zip(tensors, self._slots, strict=True)}
        self._value = copy.deepcopy(value, memo)
        self.kind = type(value).__name__
        self._form = pickle.dumps(self._value)

    def holds_no_tensor(self) -> bool:
        """Whether every tensor of the object became a slot."""
        return not tensors_in(self._value)

    def __call__(self, tensors: list[torch.Tensor]) -> Any:
        memo: dict[int, Any] = {id(slot): tensor for slot, tensor in zip(self._slots, tensors, strict=True)}
        return copy.deepcopy(self._value, memo)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._form == other._form

    def __hash__(self) -> int:
        return hash(self._form)

    def __repr__(self) -> str:
        return f"template of {self.kind}"


def parts_of(value: Any) -> list[tuple[str, Any, Any]] | None:
    """How to reach what a container holds: ("item", key, part) or ("attribute", name, part); None if it is no container."""
    if isinstance(value, torch.Size):
        return None
    if isinstance(value, Mapping):
        return [("item", key, part) for key, part in value.items()]
    if isinstance(value, (tuple, list)):
        return [("item", index, part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [("attribute", field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return None


def constructor_of(value: Any) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The class and keyword arguments that make a dataclass again; None if they cannot."""
    kind = type(value)
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if field.init]
        if isinstance(value, Mapping):
            return kind, dict(value.items())
        if len(fields) == len(dataclasses.fields(value)):
            return kind, {field.name: getattr(value, field.name) for field in fields}
        return None
    return None


def tensors_in(value: Any, depth: int = _DEPTH, seen: set[int] | None = None) -> list[torch.Tensor]:
    """The tensors that an object holds, down through containers and attributes, each once."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        if id(value) in seen:
            return []
        seen.add(id(value))
        return [value]
    if depth == 0 or id(value) in seen or isinstance(value, (type, str, bytes, int, float, torch.nn.Module)) or value is None:
        return []
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, Mapping):
        inner += [*value.keys(), *value.values()]
    elif isinstance(value, (tuple, list, set, frozenset)):
        inner += value
    inner += vars(value).values() if hasattr(value, "__dict__") and not callable(value) else ()
    return [tensor for part in inner for tensor in tensors_in(part, depth - 1, seen)]

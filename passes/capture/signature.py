"""How the arguments of a call map to the inputs of a graph: tensors flow, everything else is part of the contract."""

from __future__ import annotations

import copy
import enum
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .fake_twin import UNKNOWN, Unknown

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), type, torch.dtype, torch.layout, torch.memory_format, torch.device),
    *(enum.Enum, slice, range, frozenset, types.FunctionType, types.BuiltinFunctionType, Unknown),
)


def object_in(example: Arguments | None) -> str | None:
    """The type of an argument that may change from call to call: neither a tensor nor a plain value. None if there is none."""
    for leaf in pytree.tree_leaves(example):
        if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)) and type(leaf).__module__ != "numpy":
            return type(leaf).__name__
    return None


def with_own_objects(example: Arguments) -> Arguments:
    """The call with copies of the objects in it, so that Python may write to them."""
    args, kwargs = pytree.tree_map(lambda leaf: leaf if isinstance(leaf, (torch.Tensor, *_CONSTANTS)) else copy.deepcopy(leaf), example)
    return tuple(args), dict(kwargs)


class Mismatch(Exception):
    """A call does not have the form that was captured; the message says how it differs."""


class CallSignature:
    """The form of one call: which leaves are tensors, which of them are one object, and what every other leaf was.

    Args:
        forward: the function whose parameters name the inputs; its first parameter is the module.
        example: positional and keyword arguments. None stands for a tensor in every required parameter.
    """

    def __init__(self, forward: Callable[..., Any], example: Arguments | None) -> None:
        parameters = list(inspect.signature(inspect.unwrap(forward)).parameters.values())[1:]
        self._positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._is_wrapped = inspect.unwrap(forward) is not forward
        self._takes_extra = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._names = None if takes_any_name else frozenset(named)
        self._required_names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        if example is None:
            required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            keyword = {p.name: UNKNOWN for p in required if p.kind is p.KEYWORD_ONLY}
            example = (tuple(UNKNOWN for p in required if p.kind is not p.KEYWORD_ONLY), keyword)
        args, kwargs = self._normal_form(*example)
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        names = self._leaf_names(args, kwargs)
        tensors: list[Any] = []
        self.tensor_names: list[str] = []
        self._slots: list[int | None] = []
        self._constants: list[Any] = []
        for leaf, name in zip(leaves, names, strict=True):
            is_input = isinstance(leaf, torch.Tensor) or leaf is UNKNOWN
            slot = next((i for i, known in enumerate(tensors) if known is leaf and leaf is not UNKNOWN), None) if is_input else None
            if is_input and slot is None:
                slot = len(tensors)
                tensors.append(leaf)
                self.tensor_names.append(name)
            self._slots.append(slot)
            self._constants.append(None if is_input else leaf)
        self._example: list[Any] = tensors
        self._plain = self._slots[: len(tensors)] == list(range(len(tensors))) and self._is_flat(args, kwargs)
        self._trailing_defaults = [self._defaults.get(name, inspect.Parameter.empty) for name in self._positional[len(tensors) :]]
        self._plain = self._plain and all(
            value is default or (type(value) is type(default) and value == default)
            for value, default in zip(self._constants[len(tensors) :], self._trailing_defaults, strict=False)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_example": []}

    def tensors_of_example(self) -> list[Any]:
        """The example's tensors, one for each graph input; UNKNOWN where there is none."""
        return self._example

    def forget_example(self) -> None:
        """Lets the example tensors go."""
        self._example = []

    def arguments(self, tensors: tuple[Any, ...]) -> Arguments:
        """The call's arguments with ``tensors`` in place of the example's."""
        leaves = [tensors[slot] if slot is not None else value for slot, value in zip(self._slots, self._constants, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tuple(args), dict(kwargs)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """The tensors of a call, in the order of the graph's inputs.

        Raises: Mismatch if the call's structure, constants or shared tensors differ from the captured ones.
        """
        is_short = self._plain and not kwargs and len(args) == len(self.tensor_names)
        if is_short and all(isinstance(value, torch.Tensor) for value in args) and _are_distinct(args):
            return args
        leaves, spec = pytree.tree_flatten(self._normal_form(args, kwargs))
        if spec != self._spec:
            raise Mismatch("the arguments have another structure")
        found: list[Any] = [None] * len(self.tensor_names)
        for leaf, slot, constant in zip(leaves, self._slots, self._constants, strict=True):
            if slot is None:
                if isinstance(leaf, torch.Tensor) or not _equal(leaf, constant):
                    raise Mismatch(f"an argument is {_short(leaf)}, and was {_short(constant)}")
            elif not isinstance(leaf, torch.Tensor):
                raise Mismatch(f"an argument is {_short(leaf)}, and was a tensor")
            elif found[slot] is not None and found[slot] is not leaf:
                raise Mismatch("two arguments were the same tensor, and are two")
            else:
                found[slot] = leaf
        if not _are_distinct(found):
            raise Mismatch("two arguments are the same tensor, and were two")
        return tuple(found)

    def _normal_form(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional arguments as far as they go (defaults filled in), then the rest by name in sorted order."""
        unknown = [] if self._names is None else sorted(kwargs.keys() - self._names)
        twice = [name for name in self._positional[: len(args)] if name in kwargs and (self._names is None or name in self._names)]
        missing = [name for name in self._required_names if name not in kwargs]
        if unknown or twice or missing:
            problems = ((unknown, "is not one that it takes"), (twice, "is given twice"), (missing, "is missing"))
            raise Mismatch(next(f"the argument {names[0]!r} {what}" for names, what in problems if names))
        if self._is_wrapped:  # what wraps it may ask what was given, and by which name
            return list(args), dict(sorted(kwargs.items()))
        rest = dict(kwargs)
        positional = list(args)
        for name in self._positional[len(args) :]:
            if name in rest:
                positional.append(rest.pop(name))
            elif name in self._defaults:
                positional.append(self._defaults[name])
            else:
                raise Mismatch(f"the argument {name!r} is missing")
        if len(args) > len(self._positional) and not self._takes_extra:
            raise Mismatch(f"{len(args)} positional arguments where at most {len(self._positional)} are taken")
        for name, default in self._defaults.items():
            if name not in self._positional:
                rest.setdefault(name, default)
        return positional, dict(sorted(rest.items()))

    def _leaf_names(self, args: list[Any], kwargs: dict[str, Any]) -> list[str]:
        names: list[str] = []
        heads = [*self._positional, *(f"args_{i}" for i in range(max(0, len(args) - len(self._positional))))]
        for head, value in [*zip(heads, args, strict=False), *kwargs.items()]:
            inner = pytree.tree_leaves(value)
            plain = len(inner) == 1 and inner[0] is value
            names += [head] if plain else [f"{head}_{index}" for index in range(len(inner))]
        return names

    @staticmethod
    def _is_flat(args: list[Any], kwargs: dict[str, Any]) -> bool:
        return not kwargs and all(len(leaves := pytree.tree_leaves(value)) == 1 and leaves[0] is value for value in args)


def _are_distinct(tensors: Sequence[Any]) -> bool:
    """Whether no tensor is there twice. By "is": torch.compile would guard on an id, and recompile for every new tensor."""
    return not any(first is second for index, first in enumerate(tensors) for second in tensors[:index])


def _equal(leaf: Any, constant: Any) -> bool:
    if leaf is constant:
        return True
    try:
        return type(leaf) is type(constant) and bool(leaf == constant)
    except Exception:  # a foreign __eq__ that cannot say counts as different
        return False


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

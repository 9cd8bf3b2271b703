"""The leaves of nested arguments, as torch's pytree finds them, quick for plain tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch.utils import _pytree as pytree


def leaves_of(value: Any) -> list[Any]:
    """Everything in nested tuples, lists, dicts and other registered containers, in order."""
    found: list[Any] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Any]) -> None:
    kind = type(value)
    if kind is tuple or kind is list:
        for item in value:
            _collect(item, found)
    elif kind is dict:
        for item in value.values():
            _collect(item, found)
    elif _is_container(kind):
        found.extend(pytree.tree_leaves(value))
    else:
        found.append(value)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with ``function`` applied to every leaf."""
    return pytree.tree_map(function, value) if _is_container(type(value)) else function(value)


def flatten_call(args: Any, kwargs: Any) -> tuple[list[Any], Form]:
    """The leaves of a call's arguments, and their hashable form, which makes (args, kwargs) of leaves again."""
    if not kwargs and type(args) is tuple and not any(_is_container(type(item)) for item in args):
        return list(args), _flat(len(args))
    leaves, form = pytree.tree_flatten((args, kwargs))
    return leaves, Form(form)


class Form:
    """The structure of a call's arguments; its hash is computed once."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._hash = hash(spec)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Form) and self._hash == other._hash and bool(self.spec == other.spec))

    def fill(self, leaves: list[Any]) -> Any:
        """(args, kwargs) with these leaves."""
        return pytree.tree_unflatten(leaves, self.spec)


@lru_cache(maxsize=64)
def _flat(length: int) -> Form:
    return Form(pytree.tree_flatten(((0,) * length, {}))[1])


def _is_container(kind: type) -> bool:
    return kind in pytree.SUPPORTED_NODES or issubclass(kind, tuple)

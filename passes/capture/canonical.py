"""How a call seen by torch's function overrides is written as a node: operators as operators, methods by name, functions as they are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

_METHODS = {id(getattr(torch.Tensor, name)): name for name in dir(torch.Tensor) if callable(getattr(torch.Tensor, name, None))}

_OPERATORS: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (operator.add, 2),
    "__add__": (operator.add, 2),
    "__radd__": (operator.add, 2),
    "sub": (operator.sub, 2),
    "__sub__": (operator.sub, 2),
    "mul": (operator.mul, 2),
    "__mul__": (operator.mul, 2),
    "__rmul__": (operator.mul, 2),
    "div": (operator.truediv, 2),
    "true_divide": (operator.truediv, 2),
    "__truediv__": (operator.truediv, 2),
    "__div__": (operator.truediv, 2),
    "__floordiv__": (operator.floordiv, 2),
    "__mod__": (operator.mod, 2),
    "matmul": (operator.matmul, 2),
    "__matmul__": (operator.matmul, 2),
    "pow": (operator.pow, 2),
    "__pow__": (operator.pow, 2),
    "neg": (operator.neg, 1),
    "__neg__": (operator.neg, 1),
    "__invert__": (operator.invert, 1),
    "gt": (operator.gt, 2),
    "lt": (operator.lt, 2),
    "ge": (operator.ge, 2),
    "le": (operator.le, 2),
    "eq": (operator.eq, 2),
    "ne": (operator.ne, 2),
    "__and__": (operator.and_, 2),
    "__or__": (operator.or_, 2),
    "__xor__": (operator.xor, 2),
    "__getitem__": (operator.getitem, 2),
    "__setitem__": (operator.setitem, 3),
}
_REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
}
_NAMED_ALIKE = frozenset({"__radd__", "__rmul__"})


def method_name(function: Any) -> str | None:
    """The name of a method of Tensor; None if ``function`` is none."""
    return _METHODS.get(id(function))


def attribute_name(function: Any) -> str | None:
    """The attribute of a tensor that ``function`` reads or writes; None if it does neither."""
    if getattr(function, "__name__", "") not in ("__get__", "__set__"):
        return None
    holder = getattr(function, "__self__", None)
    name = getattr(holder, "__name__", None) or getattr(getattr(holder, "fget", None), "__name__", None)
    return name if name is not None else "?"


def as_node(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """(op, target, args, kwargs) of the node that makes this call."""
    name = method_name(function)
    if name is None:
        attribute = attribute_name(function)
        if attribute is not None:
            return "call_function", getattr, (args[0], attribute), {}
        return "call_function", function, args, kwargs
    if name in _REFLECTED and len(args) == 2 and not kwargs:
        return "call_function", _REFLECTED[name], (args[1], args[0]), {}
    found, count = _OPERATORS.get(name, (None, 0))
    if found is not None and len(args) == count and not kwargs and (isinstance(args[0], torch.Tensor)):
        return "call_function", found, (args[1], args[0]) if name in _NAMED_ALIKE else args, {}
    if not args or not isinstance(args[0], torch.Tensor):
        return "call_function", getattr(torch.Tensor, name), args, kwargs
    return "call_method", name, args, kwargs


def writes_in_place(function: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call gives back one of its arguments, written to."""
    name = str(getattr(function, "__name__", ""))
    own = name.endswith("_") and not name.endswith("__")
    return own or name == "__setitem__" or (name.startswith("__i") and name.endswith("__") and name != "__invert__") or "out" in kwargs

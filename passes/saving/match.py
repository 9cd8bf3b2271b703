"""Finds the nodes of a graph that keep a float tensor for backward and can be rewritten."""

from __future__ import annotations

from typing import Any

from torch import fx

from .of_functions import FUNCTIONS, METHODS
from .of_modules import of_module
from .saver import Saver


def match(gm: fx.GraphModule, node: fx.Node) -> Saver | None:
    """What a node keeps; None if it is none of those that can be rewritten."""
    if node.op == "call_module":
        return of_module(gm, node)
    if node.op == "call_function":
        found = FUNCTIONS.get(node.target) if _hashable(node.target) else None
    elif node.op == "call_method":
        found = METHODS.get(str(node.target))
    else:
        return None
    return found(node) if found is not None else None


def _hashable(target: Any) -> bool:
    return getattr(target, "__hash__", None) is not None
